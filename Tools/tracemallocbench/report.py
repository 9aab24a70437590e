"""Write table.md, the results in words and numbers.

    python3 report.py DIR       again, from DIR/results.json
"""

import pathlib
import shlex
import sys

from plan import COUNTS, DEPTHS, FRAMES, MILLION
from series import (FAMILIES, MEASURED, Results, added_memory, added_ns,
                    another_ratio, families, field_of, full_heap_memory,
                    geometric_mean, pair_added_ns, scaling, shape_rows,
                    slowdown, untraced_ratio)


def number(value):
    """Three digits, thousands separated."""
    if abs(value) >= 100:
        return f'{value:,.0f}'
    return f'{value:.3g}' if abs(value) >= 0.01 else f'{value:.2g}'


def cell(series, scale=1):
    """The best value, or what went wrong."""
    return number(series.best * scale) if series else short(series.failure)


def short(failure):
    """A failure in a word or two."""
    if failure.startswith(('no end', 'crash', 'not measured')):
        return failure
    # 'RuntimeError: ImportError: text': what an interpreter raised.
    names = [part for part in failure.split(': ') if part.endswith('Error')]
    return names[-1] if names else failure[:40]


def spread(series, digits=2):
    """The median with the quartiles."""
    if not series:
        return '-'
    if len(series.values) == 1:
        return f'{series.median:.{digits}f}'
    first, third = series.quartiles
    return (f'{series.median:.{digits}f}'
            f' ({first:.{digits}f}..{third:.{digits}f})')


def table(header, rows):
    lines = [header, ['---'] + ['---:'] * (len(header) - 1), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def compared(name, stock, patched, *more, scale=1):
    """A row: both at their best, and the ratio."""
    return [name, cell(stock, scale), cell(patched, scale),
            spread(patched.over(stock)), *more]


def fine(series):
    """The best value and the median with the quartiles, in thousandths."""
    if not series:
        return cell(series), '-'
    return f'{series.best:.3f}', spread(series, 3)


def both(function, results, *args):
    return [function(results, build, *args) for build in ('stock', 'patched')]


# --- The sections -----------------------------------------------------------

def budget_rows(results):
    places = {5: 'shallow', 50: '50 deep', 500: '500 deep'}
    for frames, depth, limit in ((1, 5, 13), (1, 50, 13), (1, 500, 15),
                                 (25, 5, 13), (25, 500, 18)):
        plural = 'frame' if frames == 1 else 'frames'
        yield compared(
            f'small object, {frames} {plural} kept, {places[depth]} (ns)',
            *both(added_ns, results, 'objects', depth, frames), str(limit))
    for text, operation, limit in (
            ('`[1, 2, 3, 4]`', 'lists', 12),
            ('`bytearray(2000)`', 'buffers', 30),
            ("`'a%d' % 12345`", 'strings', 36),
            ('float from a free list', 'floats', 4)):
        yield compared(f'{text}, 1 frame (ns)',
                       *both(added_ns, results, operation, 5, 1), str(limit))
    stock, patched = both(added_memory, results, MILLION)
    yield compared('bytes for each of 1 M live traces (RssAnon)',
                   stock[0], patched[0], '10')
    yield compared('what `get_tracemalloc_memory()` claims of them',
                   stock[1].over(stock[0]), patched[1].over(patched[0]),
                   '0.9..1.1')
    yield compared('keeping 1 M ints, each (ns)', stock[2], patched[2], '60')
    yield compared('`_get_traces()` of 1 M traces (s)',
                   *(field_of(results, build, '_get_traces', 'queries')
                     for build in ('stock', 'patched')), '0.09')
    yield from program_budget_rows(results)
    yield compared('two isolated interpreters tracing, throughput of one',
                   *(scaling(results, build, 2, 'interpreters', traced=True)
                     for build in ('stock', 'patched')), '1.9')
    for title, kind, function, limit in (
            ('not tracing while another interpreter traces, run time',
             'another', another_ratio, '1.03'),
            ('nothing tracing, run time of stock',
             'nothing', untraced_ratio, '1.005')):
        mean = geometric_mean([function(results, name)
                               for name in results.names(kind, 'name')])
        yield [title, '1', *fine(mean), limit]


def program_budget_rows(results):
    """In place of pyperformance, which is not part of CPython."""
    names = results.names('program', 'name')
    means, largest = [], []
    for build in 'stock', 'patched':
        ratios = [slowdown(results, build, name) for name in names]
        means.append(geometric_mean(ratios))
        largest.append(max((ratio for ratio in ratios if ratio),
                           key=lambda ratio: ratio.median,
                           default=means[-1]))
    yield compared('twelve programs, traced / untraced: geometric mean',
                   *means, '1.25')
    yield compared('the same, largest', *largest, '1.8')


def budget(results):
    yield ('The best values of each build; the ratio is patched / stock in'
           ' the same turn, its median and quartiles. The budget for the'
           ' programs was made for pyperformance, which is not part of'
           ' CPython.\n')
    yield table(['', 'stock', 'patched', 'ratio', 'budget'],
                [row for row in budget_rows(results)
                 if row[2] != 'not measured'])


def operations(results):
    yield ('Added ns for each operation, stock -> patched, and the ratio.'
           ' Depth is the number of frames on the stack.\n')
    rows = []
    for operation in results.names('micro', 'operation'):
        for frames in FRAMES:
            cells = []
            for depth in DEPTHS:
                stock, patched = both(added_ns, results, operation, depth,
                                      frames)
                cells.append(f'{cell(stock)} -> {cell(patched)}:'
                             f' {spread(patched.over(stock))}'
                             if stock or patched else '-')
            if set(cells) != {'-'}:
                rows.append([f'{operation}, {frames} kept', *cells])
    yield table(['frames kept'] + [f'depth {depth}' for depth in DEPTHS],
                rows)


def memory(results):
    yield ('Memory of tracemalloc for each live trace of an int, added time'
           ' for keeping it, and the longest time in which 100 of them were'
           ' made: the table grows meanwhile.\n')
    rows = []
    for n in results.names('memory', 'n'):
        title = f'{n // MILLION} M traces'
        stock, patched = both(added_memory, results, n)
        rows += [
            compared(f'{title}, RssAnon (bytes)', stock[0], patched[0]),
            compared(f'{title}, claimed (bytes)', stock[1], patched[1]),
            compared(f'{title}, claimed / RssAnon',
                     stock[1].over(stock[0]), patched[1].over(patched[0])),
            compared(f'{title}, added time each (ns)', stock[2], patched[2])]
        for frames, word in (0, 'untraced'), (1, 'traced'):
            rows.append(compared(
                f'{title}, longest pause, {word} (ms)',
                *(field_of(results, build, 'longest', 'memory', n=n,
                           frames=frames) for build in ('stock', 'patched')),
                scale=1e3))
    yield table(['', 'stock', 'patched', 'ratio'], rows)


def full_heap(results):
    yield ('Bytes for each trace where tracing starts on a full heap and each'
           ' new block falls into a page of its own; claimed is what'
           ' `get_tracemalloc_memory()` says.\n')
    rows = []
    for title, *pair in families(results):
        for size in results.names('full_heap', 'size'):
            stock, patched = (full_heap_memory(results, build, size)
                              for build in pair)
            name = f'{title}blocks of {size} bytes'
            rows += [
                compared(f'{name}, RssAnon', stock[0], patched[0]),
                compared(f'{name}, claimed', stock[1], patched[1]),
                compared(f'{name}, claimed / RssAnon',
                         stock[1].over(stock[0]),
                         patched[1].over(patched[0]))]
    yield table(['', 'stock', 'patched', 'ratio'], rows)


def queries(results):
    yield 'With 1 M traces, in ms.\n'
    yield table(['', 'stock', 'patched', 'ratio'], [
        compared(f'`{name}()`',
                 *(field_of(results, build, name, 'queries')
                   for build in ('stock', 'patched')), scale=1e3)
        for name in ('_get_traces', 'take_snapshot', 'clear_traces', 'stop')])


def programs(results):
    yield ('Run time traced / untraced in the same process, 1 frame kept.\n')
    rows = []
    for name in results.names('program', 'name'):
        rows.append(compared(name, *both(slowdown, results, name)))
    yield table(['', 'stock', 'patched', 'ratio'], rows)


def nothing(results):
    yield 'Run time patched / stock where tracemalloc was never started.\n'
    yield table(['', 'best', 'ratio'], [
        [name, *fine(untraced_ratio(results, name))]
        for name in results.names('nothing', 'name')])


def another(results):
    yield ('Run time in the main interpreter of the patched build while an'
           ' idle isolated one traces / while it does not.\n')
    yield table(['', 'best', 'ratio'], [
        [name, *fine(another_ratio(results, name))]
        for name in results.names('another', 'name')])


def scaling_rows(results, title, builds, kind, **params):
    """Throughput of 1, 2 and 4, as millions and as multiples of one."""
    for build in builds:
        cells = []
        for count in COUNTS:
            times = field_of(results, build, str(count), kind, **params)
            rate = cell(times.map(lambda seconds: 1e-6 / seconds))
            if times and count > 1:
                factor = scaling(results, build, count, kind, **params)
                rate += f', x{spread(factor)}'
            cells.append(rate)
        yield [f'{title}, {build}', *cells]


def interpreters(results):
    yield ('Isolated interpreters in parallel, millions of passes a second'
           ' (4 objects each) of all together, and how many times that of'
           ' one.\n')
    rows = []
    for traced, word in (False, 'not tracing'), (True, 'each tracing'):
        rows += scaling_rows(results, word, ('stock', 'patched'),
                             'interpreters', traced=traced)
    yield table(['', '1', '2', '4'], rows)


def threads(results):
    yield ('Threads of one interpreter, millions of passes a second. A pass'
           ' of the native threads is two calls of `PyTraceMalloc_Track()`'
           ' and one of `PyTraceMalloc_Untrack()`.\n')
    rows = [*scaling_rows(results, '`Track` without GIL, Python threads',
                          ('stock', 'patched'), 'track_python'),
            *scaling_rows(results, '`Track`, native threads', ('patched',),
                          'track_native')]
    builds = ('freethreaded-stock', 'freethreaded-patched')
    if any(build in results.data['builds'] for build in builds):
        for traced, word in (False, 'not tracing'), (True, 'tracing'):
            rows += scaling_rows(results, f'objects, {word}', builds,
                                 'threads', traced=traced)
    yield table(['', '1', '2', '4'], rows)


def pairs(results):
    yield ('Free-threaded builds: ns that tracing adds to a pass, by the'
           ' clock, for one thread and for each of two. In `queue` one thread'
           ' allocates and the other one frees, and one alone does both.\n')
    builds = FAMILIES[1][1:]
    rows = []
    for name in results.names('pair', 'name'):
        one, two = ([pair_added_ns(results, build, name, count)
                     for build in builds] for count in (1, 2))
        rows += [compared(f'{name}, 1 thread', *one),
                 compared(f'{name}, 2 threads', *two),
                 compared(f'{name}, 2 threads / 1 thread', *(
                     more.over(alone).typical()
                     for alone, more in zip(one, two)))]
    yield table(['', 'stock', 'patched', 'ratio'], rows)


def shapes(results):
    yield ('Programs made to be the worst case of something, NAME/FRAMES'
           ' kept: medians, stock -> patched, and the ratio with quartiles.'
           ' Time is processor time with tracing. RssAnon is what the process'
           ' has grown by at most, claimed the largest'
           ' `get_tracemalloc_memory()`. The aim is no time above stock, and'
           ' no memory above stock by more than 4 MB; the last column names'
           ' what misses it. Stock does not claim the frames that its'
           ' tracebacks hold, so RssAnon is the fair measure of memory.\n')
    rows = []
    for row in shape_rows(results):
        cells = []
        for one in row:
            scale = 1 if one.measure == 'seconds' else 1e-6
            cells += [f'{cell(one.stock, scale)} -> '
                      f'{cell(one.patched, scale)}', spread(one.ratio)]
        missed = [MEASURED[one.measure] for one in row if one.is_above]
        rows.append([row[0].title, *cells, ', '.join(missed) or '-'])
    yield table(['', 'time, s', 'ratio', 'RssAnon, MB', 'ratio',
                 'claimed, MB', 'ratio', 'above stock'], rows)
    yield largest(results) + '\n'


def largest(results):
    """The line that names the largest ratios of all shapes."""
    found, missing = {}, 0
    for row in shape_rows(results):
        missing += not all(one.ratio for one in row)
        for one in row:
            # Memory above stock by little is not counted.
            if one.ratio and (one.measure == 'seconds' or one.is_above
                              or one.ratio.median <= 1):
                text = f'{MEASURED[one.measure]} of {one.title}'
                found.setdefault(one.measure, []).append(
                    (one.ratio.median, text))
    ratios = sorted(map(max, found.values()), reverse=True)
    line = 'largest ratio of patched to stock: ' + (
        '; '.join(f'{ratio:.2f}, {text}' for ratio, text in ratios)
        or 'none was measured')
    line += ' (memory up to 4 MB above stock is not counted)'
    return line + (f'; rows without a ratio: {missing}' if missing else '')


SECTIONS = [
    ('Budget', ('micro', 'memory', 'queries', 'programs', 'nothing',
                'another', 'interpreters'), budget),
    ('Operations', ('micro',), operations),
    ('Memory', ('memory',), memory),
    ('Full heap', ('full_heap',), full_heap),
    ('Queries', ('queries',), queries),
    ('Programs', ('programs',), programs),
    ('Nothing traces', ('nothing',), nothing),
    ('Another interpreter traces', ('another',), another),
    ('Interpreters', ('interpreters',), interpreters),
    ('Threads', ('threads',), threads),
    ('Two threads', ('pairs',), pairs),
    ('Shapes', ('shapes',), shapes),
]


def optimization(facts):
    """Profile-guided, link-time, or neither, by the configure arguments."""
    words = shlex.split(facts['configure'] or '')
    pgo = '--enable-optimizations' in words
    lto = any(word.startswith('--with-lto') and word != '--with-lto=no'
              for word in words)
    if facts.get('debug'):
        return 'a debug build: its times mean little'
    return {(True, True): 'PGO and LTO', (True, False): 'PGO, no LTO',
            (False, True): 'LTO, no PGO',
            (False, False): 'neither PGO nor LTO'}[pgo, lto]


def head(data):
    """The machine and the builds."""
    yield '# tracemalloc, two builds compared\n'
    load = f"; load at the start {data['load']:.1f}" if 'load' in data else ''
    yield (f"{data['machine']}{load}; {data['seconds']} s;"
           f" `python3 Tools/tracemallocbench {data['command']}`\n")
    if data.get('interrupted'):
        yield 'Interrupted: rounds are missing.\n'
    for name, facts in data['builds'].items():
        yield (f"- {name}: {facts['version']}; {optimization(facts)};"
               f" `{facts['compiler']}`; configure arguments:"
               f" `{facts['configure'] or 'none'}`")
    yield ''


def largest_ratio(folder):
    """The line about all shapes, or '' if there are none."""
    results = Results(folder)
    measured = any(row['group'] == 'shapes' for row in results.data['rows'])
    return largest(results) if measured else ''


def write(folder):
    """Make table.md from the results.json of the folder."""
    results = Results(folder)
    data = results.data
    measured = {row['group'] for row in data['rows']}
    parts = list(head(data))
    for title, groups, section in SECTIONS:
        if measured & set(groups):
            parts += [f'## {title}\n', *section(results)]
    if data['errors']:
        parts += ['## Errors\n', *(f'- {error}' for error in data['errors'])]
    (folder / 'table.md').write_text('\n'.join(parts).rstrip() + '\n')


if __name__ == '__main__':
    write(pathlib.Path(sys.argv[1]))
