"""scipy: sparse matrices, a minimum, splines, distances."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import numpy
from scipy import interpolate, optimize, sparse, spatial


def main(n):
    size = 60 * n
    points = numpy.linspace(0, 9, size)
    matrix = sparse.diags([points, points[1:]], [0, 1]).tocsr()
    lowest = optimize.minimize(optimize.rosen, [1.3, 0.7, 0.8])
    spline = interpolate.CubicSpline(points, numpy.sin(points))
    tree = spatial.cKDTree(numpy.outer(points, [1, 2, 3]))
    return (matrix @ matrix.T, lowest, spline,
            [tree.query(point, 3) for point in tree.data])
