"""Values of several turns, read from results.json and compared."""

import json
import math
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass
class Series:
    """A value for each turn, or the reason why there is none.

    The best is what the least times of all turns amount to: the machine when
    nothing else slowed it down.
    """

    values: list = field(default_factory=list)
    best: float = math.nan
    failure: str = ''

    def __bool__(self):
        return bool(self.values)

    @property
    def median(self):
        return median(self.values)

    @property
    def quartiles(self):
        """The first and the third."""
        if len(self.values) < 2:
            return self.median, self.median
        first, _, third = quantiles(self.values, n=4, method='inclusive')
        return first, third

    def map(self, function, *others):
        """Apply the function turn by turn to these series' values."""
        for series in (self, *others):
            if not series:
                return Series(failure=series.failure)
        rows = zip(self.values, *(other.values for other in others))
        return Series([function(*row) for row in rows],
                      function(self.best, *(o.best for o in others)))

    def typical(self):
        """The same with the median as the best.

        The least times of two kinds of work may come from different turns,
        and a quotient of both is less certain than one of the same turn.
        """
        return Series(self.values, self.median) if self else self

    def over(self, other):
        """Ratios of the values of the same turn."""
        return self.map(lambda mine, theirs: mine / theirs, other)


def geometric_mean(all_series):
    """The mean over series, of those that have values, turn by turn."""
    present = [series for series in all_series if series]
    if not present:
        return Series(failure='not measured')
    return present[0].map(
        lambda *row: math.exp(sum(map(math.log, row)) / len(row)),
        *present[1:])


class Results:
    """What results.json holds."""

    def __init__(self, folder):
        self.data = json.loads((folder / 'results.json').read_text())

    def series(self, build, value, kind, /, **params):
        """The value, a function of a turn's result, of the row like this."""
        for row in self.data['rows']:
            if row['kind'] == kind and params.items() <= row['params'].items():
                runs = row['runs'].get(build, [])
                break
        else:
            runs = []
        failures = [run['failure'] for run in runs if 'failure' in run]
        if failures:
            return Series(failure=failures[0])
        if not runs:
            return Series(failure='not measured')
        least = {name: min(run[name] for run in runs) for name in runs[0]}
        return Series([value(run) for run in runs], value(least))

    def names(self, kind, param):
        """The values that a parameter has, in their order."""
        return list(dict.fromkeys(row['params'][param]
                                  for row in self.data['rows']
                                  if row['kind'] == kind))


# --- What is derived from the runs -------------------------------------------

PAGE = 4096             # bytes of memory; less than that makes no ratio


def added_ns(results, build, operation, depth, frames):
    return results.series(
        build, lambda run: (run['traced'] - run['untraced']) * 1e9,
        'micro', operation=operation, depth=depth, frames=frames)


def added_memory(results, build, n):
    """(bytes by RssAnon, bytes claimed, ns) for each of n traces."""
    traced, untraced = (
        results.series(build, dict, 'memory', n=n, frames=frames)
        for frames in (1, 0))
    return (
        # What the process has left over from its start is not always the same.
        traced.map(lambda t, u: (t['rss'] - u['rss']) / t['traces'],
                   untraced).typical(),
        traced.map(lambda t: t['claimed'] / t['traces']).typical(),
        traced.map(lambda t, u: (t['seconds'] - u['seconds']) * 1e9 / n,
                   untraced))


def full_heap_memory(results, build, size):
    """(bytes by RssAnon, bytes claimed) for each trace."""
    return tuple(
        results.series(
            build, lambda run: max(run[word], PAGE) / run['traces'],
            'full_heap', size=size).typical()
        for word in ('rss', 'claimed'))


def field_of(results, build, name, kind, /, **params):
    """One field of the runs as it is."""
    return results.series(build, lambda run: run[name], kind, **params)


def slowdown(results, build, program):
    return results.series(
        build, lambda run: run['traced'] / run['untraced'],
        'program', name=program).typical()


def untraced_ratio(results, program):
    """Run time of the patched build over stock's, when nothing traces."""
    stock, patched = (field_of(results, build, 'seconds', 'nothing',
                               name=program)
                      for build in ('stock', 'patched'))
    return patched.over(stock)


def another_ratio(results, program):
    """Run time while another interpreter traces, over that without."""
    return results.series('patched', lambda run: run['traced'] / run['alone'],
                          'another', name=program)


def scaling(results, build, count, kind, **params):
    """How many times the throughput of one that of so many is."""
    one, more = (field_of(results, build, str(number), kind, **params)
                 for number in (1, count))
    return one.over(more).typical()


# --- Two threads -------------------------------------------------------------

def pair_added_ns(results, build, name, count):
    """What tracing adds to a pass of each of so many threads."""
    return results.series(
        build, lambda run: (run[f'traced_{count}']
                            - run[f'untraced_{count}']) * 1e9,
        'pair', name=name).typical()


# --- Shapes ------------------------------------------------------------------

SMALL = 4 * 10**6       # bytes more than stock that a small program may have

FAMILIES = (('', 'stock', 'patched'),
            ('free-threaded: ', 'freethreaded-stock', 'freethreaded-patched'))
MEASURED = {'seconds': 'time', 'rss': 'RssAnon', 'claimed': 'claimed'}


def families(results):
    """(title, stock, patched) of each kind of build that was measured."""
    return [family for family in FAMILIES
            if results.data['builds'].keys() & set(family)]


@dataclass
class Compared:
    """A measure of one shape in both builds."""

    title: str
    measure: str
    stock: Series
    patched: Series

    @property
    def ratio(self):
        floor = 0 if self.measure == 'seconds' else PAGE
        return self.patched.map(
            lambda mine, theirs: max(mine, floor) / max(theirs, floor),
            self.stock).typical()

    @property
    def is_above(self):
        """Is it above stock, by more than a small program may be?"""
        if not self.ratio or self.ratio.median <= 1:
            return False
        more = self.patched.map(lambda mine, theirs: mine - theirs,
                                self.stock).median
        return self.measure == 'seconds' or more > SMALL


def shape_rows(results):
    """A list of three Compared, one for each measure, for each shape."""
    shapes = dict.fromkeys(
        (row['params']['name'], row['params']['frames'])
        for row in results.data['rows'] if row['kind'] == 'shape')
    for title, *pair in families(results):
        for name, frames in shapes:
            yield [Compared(f'{title}{name}/{frames}', measure, *(
                results.series(build, lambda run: run[measure], 'shape',
                               name=name, frames=frames).typical()
                for build in pair)) for measure in MEASURED]
