"""Draw the results as SVG files with matplotlib.

    python3 plots.py DIR        again, from DIR/results.json
"""

import pathlib
import sys

from plan import COUNTS, DEPTHS, FRAMES, MILLION
from series import (MEASURED, Results, added_memory, added_ns, scaling,
                    shape_rows, slowdown)

try:
    import matplotlib
except ImportError:
    matplotlib = None
else:
    matplotlib.use('svg')
    import matplotlib.pyplot as plt

BUILDS = ('stock', 'patched')
COLORS = {'stock': '#8a8a8a', 'patched': '#1f6fb2'}


def save(figure, path):
    figure.savefig(path, metadata={'Date': None})
    plt.close(figure)


def operations(results, path):
    """Added time by depth: a panel an operation, a line style a frame."""
    names = results.names('micro', 'operation')
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.5), sharex=True,
                                sharey=True, layout='constrained')
    styles = dict(zip(FRAMES, ('-', '--', ':')))
    for axis, operation in zip(axes.flat, names):
        for build in BUILDS:
            for frames, style in styles.items():
                points = [(depth, series.best) for depth in DEPTHS
                          if (series := added_ns(results, build, operation,
                                                 depth, frames))]
                axis.plot(*zip(*points) if points else ((), ()),
                          linestyle=style, marker='.', color=COLORS[build],
                          label=f'{build}, {frames} kept')
        axis.set(title=operation.replace('_', ' '), xscale='log',
                 yscale='log')
        axis.set_xticks(DEPTHS, map(str, DEPTHS))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names):]:
        axis.axis('off')
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(),
                         loc='center')
    figure.supxlabel('frames on the stack')
    figure.supylabel('added ns for each operation')
    save(figure, path)


def bars(axis, labels, value, unit):
    """Groups of two horizontal bars; value(build, label) is a series."""
    for shift, build in (-0.2, 'stock'), (0.2, 'patched'):
        for index, label in enumerate(labels):
            series = value(build, label)
            if series:
                axis.barh(index + shift, series.median, 0.38,
                          color=COLORS[build])
                # The quartiles of the turns.
                axis.plot(series.quartiles, [index + shift] * 2,
                          color='black', linewidth=0.8)
        axis.barh(0, 0, color=COLORS[build], label=build)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.legend()
    axis.grid(axis='x', alpha=0.3)


def programs(results, path):
    figure, axis = plt.subplots(figsize=(7, 5.5), layout='constrained')
    bars(axis, results.names('program', 'name'),
         lambda build, name: slowdown(results, build, name),
         'run time traced / untraced, 1 frame kept')
    axis.set_xscale('log')
    axis.set_xticks([1, 2, 5, 10, 20], ['1', '2', '5', '10', '20'])
    axis.minorticks_off()
    save(figure, path)


def memory(results, path):
    sizes = {f'{n // MILLION} M traces': n
             for n in results.names('memory', 'n')}
    labels = [f'{size}, {word}' for size in sizes
              for word in ('RssAnon', 'claimed')]

    def value(build, label):
        size, word = label.split(', ')
        return added_memory(results, build, sizes[size])[word == 'claimed']

    figure, axis = plt.subplots(figsize=(7, 3), layout='constrained')
    bars(axis, labels, value, 'bytes for each live trace')
    save(figure, path)


def interpreters(results, path):
    figure, axis = plt.subplots(figsize=(6, 4), layout='constrained')
    for build in BUILDS:
        for traced, style, word in ((False, '--', 'not tracing'),
                                    (True, '-', 'tracing')):
            factors = [scaling(results, build, count, 'interpreters',
                               traced=traced) for count in COUNTS]
            if all(factors):
                axis.plot(COUNTS, [factor.median for factor in factors],
                          linestyle=style, marker='o', color=COLORS[build],
                          label=f'{build}, {word}')
    axis.set_xticks(COUNTS)
    axis.set(xlabel='isolated interpreters at the same time',
             ylabel='throughput, times that of one', ylim=(0, None))
    axis.legend()
    axis.grid(alpha=0.3)
    save(figure, path)


def shapes(results, path):
    """The three ratios of each row, and a line where stock is."""
    rows = [row for row in shape_rows(results)
            if any(one.ratio for one in row)]
    figure, axis = plt.subplots(figsize=(7, 1 + 0.22 * len(rows)),
                                layout='constrained')
    for column, marker in enumerate(('o', 's', 'x')):
        points = [(row[column].ratio.median, index)
                  for index, row in enumerate(rows) if row[column].ratio]
        axis.plot(*zip(*points) if points else ((), ()), marker,
                  label=list(MEASURED.values())[column])
    axis.axvline(1, color=COLORS['stock'])
    axis.set_yticks(range(len(rows)), [row[0].title for row in rows])
    axis.invert_yaxis()
    axis.set(xscale='log', xlabel='patched / stock')
    axis.legend()
    axis.grid(alpha=0.3)
    save(figure, path)


PLOTS = {'micro': operations, 'programs': programs, 'memory': memory,
         'interpreters': interpreters, 'shapes': shapes}


def write(folder):
    """Make the SVG files of the groups that results.json has."""
    if matplotlib is None:
        print('The plots are left out, as this Python has no matplotlib;'
              " install it with 'python3 -m pip install matplotlib' or"
              f" 'apt-get install python3-matplotlib', then run 'python3"
              f" {__file__} {folder}'.")
        return
    results = Results(folder)
    measured = {row['group'] for row in results.data['rows']}
    # The same results make the same bytes.
    with plt.rc_context({'svg.hashsalt': 'tracemallocbench'}):
        for group, plot in PLOTS.items():
            if group in measured:
                plot(results, folder / f'{group}.svg')


if __name__ == '__main__':
    write(pathlib.Path(sys.argv[1]))
