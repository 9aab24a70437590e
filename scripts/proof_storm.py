"""proof_storm.py STORM: one storm, run by the build that is tested.

    oracle          test.tracemalloc_oracle, for --seconds
    interpreters    --count interpreters alive at once, all tracing
    threads         64 threads in 7 interpreters, all tracing, for --seconds
    startstop       the same threads, and native ones, while all of them start
                    and stop tracing at random

--hooks puts foreign allocators below tracemalloc's hooks, above, or both.
Afterwards the traces of all interpreters must add up to what
get_traced_memory() says, and nothing may be left when all have stopped.
"""

import argparse
import faulthandler
import random
import sys
import threading

import _interpreters
import _testinternalcapi as capi
import _tracemalloc as tracemalloc

NTHREADS = 64
CONFIGS = ('isolated', 'legacy', 'isolated', 'isolated', 'legacy', 'isolated')
MB = 1 << 20

# What a thread does, in whatever interpreter.
WORK = """if 1:
    import random
    import time
    import threading
    import tracemalloc as module
    import _testinternalcapi as capi
    import _tracemalloc as tracemalloc

    HOWS = 'attached', 'attached', 'attached', 'detached', 'stateless'

    def objects(rng):
        kept = [[str(i), {i: float(i)}] for i in range(rng.randrange(60))]
        del kept[::2]
        return kept

    def blocks(rng):
        addr = capi.tracemalloc_raw_malloc(rng.randrange(1, 3000),
                                           rng.choice(HOWS))
        capi.tracemalloc_track(7, addr, rng.randrange(5000))
        addr2 = capi.tracemalloc_raw_realloc(addr, rng.randrange(1, 3000),
                                             rng.choice(HOWS))
        capi.tracemalloc_untrack(7, addr)
        capi.tracemalloc_raw_free(addr2, rng.choice(HOWS))

    def deep(rng, n=None):
        n = rng.randrange(40) if n is None else n
        return deep(rng, n - 1) if n else objects(rng)

    def ask(rng):
        obj = bytearray(100)
        tracemalloc._get_object_traceback(obj)
        tracemalloc.get_traced_memory()
        tracemalloc.get_tracemalloc_memory()
        tracemalloc.get_traceback_limit()
        if rng.random() < 0.02:
            tracemalloc._get_traces()

    def start_or_stop(rng):
        what = rng.randrange(20)
        if what < 8:
            tracemalloc.start(rng.choice((1, 1, 3, 25)))
        elif what < 14:
            tracemalloc.stop()
        elif what < 17:
            tracemalloc.clear_traces()
        elif what < 19:
            tracemalloc.reset_peak()
        else:
            try:
                module.take_snapshot()
            except RuntimeError:
                pass        # not tracing

    def work(seed, seconds, startstop, errors):
        rng = random.Random(seed)
        kept = []
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                what = rng.randrange(10)
                if what < 4:
                    kept.append(objects(rng))
                elif what < 6:
                    blocks(rng)
                elif what < 8:
                    kept.append(deep(rng))
                elif startstop:
                    start_or_stop(rng)
                else:
                    ask(rng)
                if len(kept) > 30:
                    del kept[rng.randrange(30):]
        except BaseException as exc:
            errors.append(repr(exc))

    def work_in_threads(count, seed, *args):
        errors = []
        threads = [threading.Thread(target=work,
                                    args=(seed * 100 + i, *args, errors))
                   for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise RuntimeError(errors[0])

    def trace():
        tracemalloc.start()
    """


def run(interp, source):
    # Not compiled there, as in test_tracemalloc_interpreters.
    code = compile(source, '<string>', 'exec')
    excinfo = _interpreters.exec(interp, code)
    if excinfo is not None:
        raise AssertionError(excinfo.errdisplay or excinfo.formatted)


def check_sums(*interps):
    total, traced = capi.tracemalloc_sums(*interps)
    if total != traced:
        raise AssertionError(f'{total} bytes in traces, {traced} counted')


def check_stopped():
    tracemalloc.stop()
    if tracemalloc.get_traced_memory() != (0, 0):
        raise AssertionError(f'stopped: {tracemalloc.get_traced_memory()}')


def in_threads(funcs):
    """Call all at once; the first exception is raised afterwards."""
    errors = []

    def guarded(func):
        try:
            func()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(func,))
               for func in funcs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def storm_oracle(args):
    from test import tracemalloc_oracle
    sys.argv = ['tracemalloc_oracle', '--seed', str(args.seed),
                '--minutes', str(args.seconds / 60)]
    if args.sanitizer:
        sys.argv.append('--no-failures')
    tracemalloc_oracle.main()       # ends the process


def storm_interpreters(args):
    rng = random.Random(args.seed)
    tracemalloc.start(3)
    interps = []
    todo = list(range(args.count))

    def create():
        while True:
            try:
                i = todo.pop()
            except IndexError:
                return
            interp = _interpreters.create(('isolated', 'legacy')[i % 5 == 0])
            interps.append(interp)
            run(interp, f'''if 1:
                import _tracemalloc
                _tracemalloc.start({i % 30 + 1})
                kept = [[str(i)] for i in range(200)]
                ''')

    nthreads = 1 if args.one_by_one else 8
    in_threads([create] * nthreads)
    print(len(interps), 'interpreters', flush=True)
    check_sums(*interps)

    rng.shuffle(interps)
    half = interps[:len(interps) // 2]
    rest = interps[len(half):]

    def destroy():
        while True:
            try:
                interp = half.pop()
            except IndexError:
                return
            _interpreters.destroy(interp)

    in_threads([destroy] * nthreads)
    check_sums(*rest)
    for interp in rest:
        run(interp, 'del kept; _tracemalloc.clear_traces()')
    check_sums(*rest)
    half = rest
    in_threads([destroy] * nthreads)
    check_sums()
    check_stopped()


def storm_threads(args, startstop=False):
    namespace = {}
    exec(WORK, namespace)
    interps = [_interpreters.create(config) for config in CONFIGS]
    for interp in interps:
        run(interp, WORK + '\n    trace()\n')
    tracemalloc.start()
    each = NTHREADS // (len(interps) + 1)
    pools = []
    if startstop:
        pools = [capi.tracemalloc_pool_start(work, 2)
                 for work in ('raw', 'track', 'gilstate')]

    def main_threads():
        namespace['work_in_threads'](
            NTHREADS - each * len(interps), args.seed, args.seconds,
            startstop)

    def threads_of(number, interp):
        return lambda: run(interp, f'work_in_threads({each},'
                                   f' {args.seed * 10 + number + 1},'
                                   f' {args.seconds}, {startstop})')

    try:
        in_threads([main_threads] + [threads_of(*pair)
                                     for pair in enumerate(interps)])
    finally:
        for pool in pools:
            print(capi.tracemalloc_pool_stop(pool, args.timeout / 2),
                  'passes of native threads', flush=True)
    for interp in interps:
        run(interp, 'trace()')
    tracemalloc.start()
    check_sums(*interps)
    for interp in interps[::2]:
        _interpreters.destroy(interp)
    check_sums(*interps[1::2])
    for interp in interps[1::2]:
        run(interp, 'tracemalloc.stop()')
    check_sums()
    check_stopped()
    for interp in interps[1::2]:
        _interpreters.destroy(interp)


def storm_startstop(args):
    storm_threads(args, startstop=True)


STORMS = {
    'oracle': storm_oracle,
    'interpreters': storm_interpreters,
    'threads': storm_threads,
    'startstop': storm_startstop,
}


def install_hooks(where):
    if where == 'none':
        return None
    import proof_hooks
    if where in ('below', 'both'):
        proof_hooks.install()
    if where in ('above', 'both'):
        tracemalloc.start()
        proof_hooks.install()
        tracemalloc.stop()
    return proof_hooks


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('storm', choices=STORMS)
    parser.add_argument('--hooks', default='none',
                        choices=('none', 'below', 'above', 'both'))
    parser.add_argument('--seconds', type=float, default=10)
    parser.add_argument('--count', type=int, default=500)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--timeout', type=float, default=1200)
    parser.add_argument('--sanitizer', action='store_true')
    parser.add_argument('--one-by-one', action='store_true',
                        help='do not create interpreters at the same time, '
                             'which CPython has data races in')
    args = parser.parse_args()
    faulthandler.dump_traceback_later(args.timeout, exit=True)
    allocator = capi.pymem_getallocatorsname()
    hooks = install_hooks(args.hooks)
    print(f'{args.storm}, seed {args.seed}, allocator {allocator}, '
          f'foreign hooks: {args.hooks}', flush=True)
    STORMS[args.storm](args)
    if hooks is not None:
        calls = hooks.calls()
        print('calls of the foreign hooks:', calls)
        if not all(calls):
            raise AssertionError('a foreign hook was lost')
    print('storm: all right', flush=True)


if __name__ == '__main__':
    main()
