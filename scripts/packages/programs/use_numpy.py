"""numpy: arrays of several types, views of them, objects, records."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import numpy


def main(n):
    kept = []
    for i in range(40 * n):
        table = numpy.arange(600 + 2 * i, dtype='f8').reshape(2, -1)
        kept += [table * 2, table.T[1:], numpy.sort(table[0])[::-1],
                 table.astype('U8'), numpy.unique(table.astype('i2') % 7)]
    things = numpy.array([[str(i)] * 2 for i in range(200 * n)], dtype=object)
    pairs = numpy.zeros(100 * n, dtype=[('name', 'S9'), ('value', 'i4')])
    pairs['value'] = range(100 * n)
    grown = numpy.empty(10)
    grown.resize(5000 * n)
    return kept, things, pairs[pairs['value'] > 50].tolist(), grown
