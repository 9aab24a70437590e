"""Compare tracemalloc with a model of it, in random order of events.

    ./python -m test.tracemalloc_oracle --minutes 10

Threads and interpreters of all kinds allocate and free memory, and start and
stop tracing.  Modules/_testinternalcapi/test_tracemalloc_oracle.c says what
they do and what is compared.  This is the driver, and the Python code whose
frames are found in the tracebacks.

The seed is printed first: with the same options it gives the same sequence of
operations.  In a parallel round that is each thread's own; how they mingle is
up to the system.
"""

import sys

try:
    import _testinternalcapi as capi
    import _tracemalloc
except ImportError:
    capi = _tracemalloc = None


# --- What actors run, in any interpreter ----------------------------------

# Ways to call a function.  Each makes other frames, or makes them otherwise.
SOURCE = '''
def plain(call, n):
    return call(n)

def cell(call, n):
    def inner():
        return call(n)
    return inner()

def generator(call, n):
    def gen():
        yield call(n)
    for _ in gen():
        pass

def nested_generator(call, n):
    def gen():
        yield call(n)
    def outer():
        yield from gen()
    next(outer())

def from_c(call, n):
    sorted([n], key=lambda n: call(n))

def comprehension(call, n):
    [call(x) for x in (n,)]

def class_body(call, n):
    class C:
        attr = call(n)

class C:
    def __init__(self, call, n):
        call(n)

    def __getattr__(self, name):
        self.__init__(*name)

def init(call, n):
    C(call, n)

def many_lines(call, n):
    (
        call
    )(

        n

    )
'''
STYLES = ('plain', 'cell', 'generator', 'nested_generator', 'from_c',
          'comprehension', 'class_body', 'init', 'many_lines')

# Filenames of each kind of str, and line numbers that need more bytes.
FILES = (('<oracle>', 0), ('/caf\xe9.py', 300), ('\u0416' * 40 + '.py', 7),
         ('\U0001f40d.py', 70_000), ('/a/long/name' * 25, 2))

MANY = 60      # calls of any style; beyond that, C recursion is too deep


def make_styles():
    styles = []
    for filename, lineno in FILES:
        namespace = {}
        exec(compile('\n' * lineno + SOURCE, filename, 'exec'), namespace)
        styles.extend(namespace[name] for name in STYLES)
    # No line at all.
    func = namespace['plain']
    func.__code__ = func.__code__.replace(co_linetable=b'')
    return styles


styles = make_styles()


def descend(actor, depth, seed):
    """Rest in the oracle, below that many calls."""
    sys.setrecursionlimit(1_000_000)

    def down(n):
        if n <= 0:
            capi.tracemalloc_oracle_act(actor)
        elif n > MANY:
            down(n - 1)
        else:
            styles[(seed >> n % 24) % len(styles)](down, n - 1)

    down(depth)
    make_noise(seed % 8)


def make_noise(kind):
    """Memory of Python's own, while other actors do the same."""
    if kind == 0:
        _tracemalloc._get_traces()
    elif kind == 1:
        _tracemalloc._get_object_traceback(object())
    elif kind < 5:
        junk = [[i, str(i), {i: float(i)}] for i in range(100)]
        del junk[::2]


# --- The driver -----------------------------------------------------------

class Population:
    """The interpreters that there are, with their threads."""

    def __init__(self, rng, may_fail):
        import _interpreters
        self.interpreters = _interpreters
        self.rng = rng
        self.may_fail = may_fail
        self.created = 0
        self.subinterps = []      # (id, index in the oracle)
        main_id = _interpreters.get_main()[0]
        capi.tracemalloc_oracle_add(main_id, 2, 2, may_fail)

    def create(self):
        config = self.rng.choice(('legacy', 'isolated'))
        id = self.interpreters.create(config)
        index = capi.tracemalloc_oracle_add(id, self.rng.randint(1, 2), 0,
                                            self.may_fail)
        self.subinterps.append((id, index))
        self.created += 1

    def destroy(self):
        n = self.rng.randrange(len(self.subinterps))
        id, index = self.subinterps.pop(n)
        capi.tracemalloc_oracle_remove(index)
        self.interpreters.destroy(id)

    def change(self):
        n = len(self.subinterps)
        if n < 2 or n < 4 and self.rng.random() < 0.15:
            self.create()
        elif self.rng.random() < 0.1:
            self.destroy()


def run_rounds(args, rng, population):
    """Yield the number of traces that were compared in each round."""
    while True:
        population.change()
        parallel = (args.mode == 'parallel'
                    or args.mode == 'both' and rng.random() < 0.5)
        nsteps = rng.choice((20, 100, args.steps))
        if parallel:
            # Races need time, and steps are fast.
            nsteps *= 10
        quiet = parallel and rng.random() < 0.5
        try:
            yield capi.tracemalloc_oracle_round(
                rng.getrandbits(64), nsteps, parallel, quiet)
        except AssertionError as exc:
            mode = 'parallel' if parallel else 'serial'
            raise AssertionError(
                f'{mode}, {nsteps} steps{", quiet" * quiet}: {exc}') from None


def run(args):
    import random
    import time

    rng = random.Random(args.seed)
    population = Population(rng, not args.no_failures)
    start = reported = now = time.monotonic()
    rounds = compared = 0

    def report():
        print(f'{rounds} rounds in {now - start:.0f} s, '
              f'{population.created} interpreters created, '
              f'{compared} traces compared', flush=True)

    try:
        for n in run_rounds(args, rng, population):
            rounds += 1
            compared += n
            now = time.monotonic()
            if now - reported > 10:
                report()
                reported = now
            if (rounds == args.rounds
                or not args.rounds and now - start > args.minutes * 60):
                break
    except AssertionError as exc:
        print(f'seed {args.seed}, round {rounds} ({exc})', flush=True)
        return 1
    while population.subinterps:
        population.destroy()
    report()
    return 0


def main():
    import argparse
    import faulthandler
    import os

    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--seed', type=int)
    parser.add_argument('--minutes', type=float, default=1)
    parser.add_argument('--rounds', type=int,
                        help="instead of --minutes")
    parser.add_argument('--mode', choices=('serial', 'parallel', 'both'),
                        default='both')
    parser.add_argument('--steps', type=int, default=500,
                        help="the most in a round (default: %(default)s)")
    parser.add_argument('--no-failures', action='store_true',
                        help="don't ask for memory which isn't there; needed "
                             "with some sanitizers")
    parser.add_argument('--timeout', type=float, default=0,
                        help="seconds after which to give up")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = int.from_bytes(os.urandom(4))
    print(f'seed {args.seed}', flush=True)
    if args.timeout:
        faulthandler.dump_traceback_later(args.timeout, exit=True)
    # The main interpreter's actors are still there, and their blocks.
    os._exit(run(args))


if __name__ == '__main__':
    main()
