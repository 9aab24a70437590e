"""What is measured: every measurement of a full and of a quick run."""

import pathlib
from dataclasses import dataclass
from itertools import product

PROGRAMS = sorted(path.stem for path in
                  (pathlib.Path(__file__).parent / 'programs').glob('*.py'))

OPERATIONS = ('objects', 'lists', 'dicts', 'strings', 'buffers', 'kept_ints',
              'reallocs')
DEPTHS = (5, 50, 500)
FRAMES = (1, 25, 100)
COUNTS = (1, 2, 4)
MILLION = 10**6

DEFAULT = ('stock', 'patched')
FREETHREADED = ('freethreaded-stock', 'freethreaded-patched')


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


GROUPS = {group.__name__: group for group in
          (micro, memory, queries, programs, nothing, another, interpreters,
           threads)}
