"""What is measured: every measurement of a full and of a quick run."""

import pathlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

PROGRAMS = sorted(path.stem for path in
                  (pathlib.Path(__file__).parent / 'programs').glob('*.py'))

OPERATIONS = ('objects', 'lists', 'dicts', 'floats', 'strings', 'buffers',
              'kept_ints', 'reallocs')
DEPTHS = (5, 50, 500)
FRAMES = (1, 25, 100)
COUNTS = (1, 2, 4)
MILLION = 10**6

DEFAULT = ('stock', 'patched')
FREETHREADED = ('freethreaded-stock', 'freethreaded-patched')

# Worst cases by name: the frames to keep, and how much of it there is in a
# full and in a quick run, which leaves out those with 0; shapes.py says of
# what.
SHAPES = {
    'deep_path': ((1, 5, 25, 100), 20_000, 2000),
    'random_walks': ((1, 25, 100), 5000, 500),
    'known_paths': ((1, 25, 100), 1000, 100),
    'recursion': ((1, 25, 6000), 3, 1),
    'new_stacks': ((1, 2, 25), 5000, 200),
    'tree_recursion': ((1, 25, 100), 14, 10),
    'short_threads': ((1, 25), 50_000, 1000),
    'deep_threads': ((1, 25), 300, 20),
    'yield_from': ((1, 25, 100), 5000, 500),
    'asyncio_tasks': ((1, 25), 10_000, 500),
    'exec_one_name': ((1, 25), 100_000, 3000),
    'exec_own_names': ((1, 25), 100_000, 3000),
    'full_heap': ((1, 25), MILLION, 200_000),
    'tides': ((1, 25), 300, 30),
    'sawtooth': ((1, 25), 500_000, 50_000),
    'huge_list': ((1,), 4000, 400),
    'test_json': ((100,), 1, 0),
    'test_typing': ((100,), 1, 0),
    'test_dataclasses': ((100,), 1, 1),
}
SUITES = ('test_json', 'test_typing', 'test_dataclasses')

PAIRS = ('private', 'growing', 'queue')
BLOCK_SIZES = (16, 96)


@dataclass(frozen=True)
class Measurement:
    """A kind of workload with its parameters, to be run in some builds.

    In each round a fresh process of each build does it, and they take turns.
    """

    group: str
    kind: str
    params: dict
    rounds: int
    turns: int
    builds: tuple = DEFAULT
    timeout: int = 120          # seconds, for a turn

    @property
    def name(self):
        """The parameter that tells it from others of its kind, if any."""
        names = [str(self.params[key]) for key in ('name', 'operation', 'size')
                 if key in self.params]
        return names[0] if names else self.kind

    def is_row(self, pattern):
        """Is it what --row asks for, NAME or NAME/FRAMES?"""
        name, slash, frames = pattern.partition('/')
        return fnmatchcase(self.name, name) and (
            not slash or frames == str(self.params.get('frames')))


def micro(quick):
    for depth, frames, operation in product(DEPTHS, FRAMES, OPERATIONS):
        # A quick run has all operations in one corner of the grid, and
        # objects in the places that there is a budget for.
        if quick and (frames == 100 or (depth, frames) == (50, 25)):
            continue
        if quick and operation != 'objects' and (depth, frames) != (5, 1):
            continue
        yield Measurement(
            'micro', 'micro', {'operation': operation, 'depth': depth,
                               'frames': frames, 'n': 1500},
            rounds=1 if quick else 3, turns=30)


def memory(quick):
    for n in (MILLION,) if quick else (MILLION, 10 * MILLION):
        for frames in 0, 1:
            yield Measurement(
                'memory', 'memory', {'n': n, 'frames': frames},
                rounds=1 if quick else 3 if n == MILLION else 2, turns=1)


def queries(quick):
    yield Measurement('queries', 'queries', {'n': MILLION},
                      rounds=1, turns=1 if quick else 5)


def programs(quick):
    for name in PROGRAMS:
        yield Measurement(
            'programs', 'program', {'name': name, 'n': 2 if quick else 4},
            rounds=1 if quick else 3, turns=5 if quick else 10)


def nothing(quick):
    for name in PROGRAMS:
        yield Measurement(
            'nothing', 'nothing', {'name': name, 'n': 2},
            rounds=1 if quick else 4, turns=10 if quick else 40)


def another(quick):
    for name in PROGRAMS:
        yield Measurement(
            'another', 'another', {'name': name, 'n': 2},
            rounds=1 if quick else 2, turns=10 if quick else 30,
            builds=('patched',))


def interpreters(quick):
    for traced in False, True:
        yield Measurement(
            'interpreters', 'interpreters',
            {'traced': traced, 'n': 50_000 if quick else 100_000},
            rounds=1 if quick else 3, turns=5 if quick else 7, timeout=20)


def threads(quick):
    n = 20_000 if quick else 100_000
    rounds = 1 if quick else 2
    yield Measurement('threads', 'track_python', {'n': n}, rounds, turns=5,
                      timeout=20)
    yield Measurement('threads', 'track_native', {'n': n}, rounds, turns=5,
                      builds=('patched',), timeout=20)
    for traced in False, True:
        yield Measurement(
            'threads', 'threads', {'traced': traced, 'n': n}, rounds,
            turns=5, builds=FREETHREADED, timeout=60)


def shapes(quick):
    for name, (kept, full, less) in SHAPES.items():
        n = less if quick else full
        for frames in kept if n else ():
            yield Measurement(
                'shapes', 'shape', {'name': name, 'frames': frames, 'n': n},
                rounds=1 if quick else 2 if name in SUITES else 3, turns=1,
                builds=DEFAULT + FREETHREADED, timeout=300)


def pairs(quick):
    for name in PAIRS:
        yield Measurement(
            'pairs', 'pair', {'name': name,
                              'n': 20_000 if quick else 200_000},
            rounds=1 if quick else 3, turns=5, builds=FREETHREADED,
            timeout=60)


def full_heap(quick):
    for size in BLOCK_SIZES:
        yield Measurement(
            'full_heap', 'full_heap',
            {'size': size, 'n': (2 if quick else 8) * MILLION},
            rounds=1 if quick else 3, turns=1,
            builds=DEFAULT + FREETHREADED)


GROUPS = {group.__name__: group for group in
          (micro, memory, full_heap, queries, programs, nothing, another,
           interpreters, threads, pairs, shapes)}

# The groups that look at the memory of the process.
NEED_LINUX = ('memory', 'full_heap', 'shapes')


def choose(groups, rows, quick):
    """The measurements of some groups and rows; none chosen means all."""
    return [measurement for name, group in GROUPS.items()
            if not groups or name in groups
            for measurement in group(quick)
            if not rows or any(map(measurement.is_row, rows))]
