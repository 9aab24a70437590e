"""tracemalloc without memory, in forks, and while everything ends.

Each test is a script in a process of its own, since what is wrong here
crashes, aborts or hangs.  A time limit is there only to end what hangs.
"""

import textwrap
import unittest

from test import support
from test.support import import_helper
from test import test_tracemalloc_interpreters as base
from test.test_tracemalloc_interpreters import (
    CONFIGS, MARK, ScriptBase)


# --- No memory ------------------------------------------------------------

# The allocator that fails is below tracemalloc's hooks and there before them:
# tracemalloc gets its own memory from it, too.
NO_MEMORY = f"""\
import _testinternalcapi as capi
import _tracemalloc as tracemalloc
import sys
from itertools import count

MARK = {MARK}

def check_sums():
    total, traced = capi.tracemalloc_sums()
    assert total == traced, (total, traced)

def sizes():
    return [trace[1] for trace in tracemalloc._get_traces()]

def walk(prepare, check=check_sums):
    '''Call what prepare() returns with every request failing in its turn.

    First this one alone, then with all that follow, until none is left.
    Afterwards the exception, or None, is given to check().
    '''
    total = 0
    for rest in False, True:
        for n in count():
            exc, failed = capi.tracemalloc_call_failing(
                prepare(), n, sys.maxsize if rest else n + 1)
            assert isinstance(exc, MemoryError | None), repr(exc)
            assert failed or exc is None, repr(exc)
            check()
            total += failed
            if not failed:
                break
    return total

def lines(source):
    '''A prepare() for source at a line that was never traced before.'''
    number = count(1)
    def prepare():
        namespace = dict(globals())
        exec(chr(10) * next(number) + 'def func(*args): ' + source,
             namespace)
        return namespace['func']
    return prepare

"""


class NoMemoryTests(ScriptBase):
    """Whatever there is no memory for: an error, and books that are right."""

    def run_walk(self, source):
        """Run source in interpreters of all kinds, one tracing at a time."""
        self.run_script(f"""
            NO_MEMORY = {NO_MEMORY!r}
            source = NO_MEMORY + {textwrap.dedent(source)!r}
            capi.tracemalloc_below_install()
            exec(source, {{}})
            tracemalloc.stop()
            for config in {CONFIGS}:
                interp = _interpreters.create(config)
                run(interp, source)
                _interpreters.destroy(interp)
                assert tracemalloc.get_traced_memory() == (0, 0)
            capi.tracemalloc_below_remove()
            """)

    def test_start(self):
        self.run_walk("""
            def prepare():
                tracemalloc.stop()
                return tracemalloc.start
            def check():
                check_sums()
                if not tracemalloc.is_tracing():
                    assert tracemalloc.get_traced_memory() == (0, 0)
            walk(prepare, check)
            assert tracemalloc.is_tracing()
            """)

    def test_objects(self):
        # Python code, at lines that need memory for a new traceback.  No list
        # that grows: without memory, a free-threaded build crashes then.
        self.run_walk("""
            tracemalloc.start(3)
            for source in (
                'return {i: (i, {i}) for i in range(20)}',
                'return [bytearray(700 + i) for i in range(9)]',
                'return {str(i): object() for i in range(20)}',
                'a = bytearray(9); a += bytes(999); a += bytes(9999); del a',
            ):
                assert walk(lines(source)) > 5
            """)

    def test_blocks(self):
        # A block that has no trace is not lost.
        self.run_walk("""
            tracemalloc.start()
            for domain in 'raw', 'mem', 'obj':
                for spare in False, True:
                    for n in count():
                        # The books are empty: they need memory at once.
                        tracemalloc.clear_traces()
                        addr, failed, lost = capi.tracemalloc_realloc_failing(
                            domain, 0, MARK, n, n + 1, spare)
                        assert not lost
                        found = sizes().count(MARK)
                        assert found == (addr is not None), (n, found, addr)
                        check_sums()
                        if addr is not None:
                            capi.tracemalloc_domain_free(domain, addr)
                        assert MARK not in sizes()
                        if not failed:
                            break
                    # The table of traces and the traceback, at least.
                    assert n > 2, n
            """)

    def test_reallocations(self):
        # With memory for the block itself they never fail.  If it has a
        # trace already then there is room for one afterwards.
        self.run_walk("""
            reallocate = lines(
                'return capi.tracemalloc_realloc_failing(*args)')

            def check(domain, old, new, spare, n, clear):
                func = reallocate()
                # What that has made may have the size of a small block.
                tracemalloc.clear_traces()
                addr, *_ = capi.tracemalloc_realloc_failing(
                    domain, 0, old, sys.maxsize, 0, False)
                if clear:
                    tracemalloc.clear_traces()
                # All that follow, too: what is tried instead fails as well.
                addr2, failed, _ = func(
                    domain, addr, new, n, sys.maxsize, spare)
                if spare:
                    assert addr2 is not None, (domain, old, new, n)
                found = sizes()
                if not clear:
                    assert found.count(old) == (addr2 is None)
                    assert found.count(new) == (addr2 is not None)
                check_sums()
                capi.tracemalloc_domain_free(domain, addr2 or addr)
                found = sizes()
                assert old not in found and new not in found
                return failed

            tracemalloc.start()
            # Two blocks on the heap; into, within and out of a pool; down.
            for old, new in ((MARK, 3 * MARK), (3 * MARK, MARK), (51, 397),
                             (397, 51), (397, MARK), (MARK, 397)):
                for domain in 'raw', 'mem', 'obj':
                    for spare in False, True:
                        for clear in False, True:
                            n = 0
                            while check(domain, old, new, spare, n, clear):
                                n += 1
            """)

    def test_reallocations_when_full(self):
        # Whatever the number of blocks is at which a table has to grow, and
        # even if one block in a pool has just moved out of it.
        self.run_walk("""
            def func(growing, *args):
                growing.append(None)
                return capi.tracemalloc_realloc_failing(*args)

            def check(n, length, domain, old, new, spare, track):
                kept = [None] * n
                tracemalloc.clear_traces()
                growing = []
                for i in range(length):
                    growing.append(None)
                addr, *_ = capi.tracemalloc_realloc_failing(
                    domain, 0, old, sys.maxsize, 0, False)
                if track:
                    capi.tracemalloc_track(0, addr, old)
                for i in range(n):
                    kept[i] = bytearray(600)
                addr2, failed, _ = func(
                    growing, domain, addr, new, 0, sys.maxsize, spare)
                found = sizes()
                assert found.count(old) == (addr2 is None), (n, length)
                assert found.count(new) == (addr2 is not None), (n, length)
                check_sums()
                capi.tracemalloc_domain_free(domain, addr2 or addr)
                return failed

            tracemalloc.start()
            failed = 0
            for n in range(30, 60):
                # The 52nd or 64th item moves a list out of the pools.
                for length in 52, 64:
                    for old, new, spare in ((397, 411, True),
                                            (397, 3001, False),
                                            (5003, 7001, True)):
                        for domain in 'mem', 'obj':
                            for track in False, True:
                                failed += check(n, length, domain, old, new,
                                                spare, track)
            assert failed > 0
            """)

    def test_reallocations_without_traceback(self):
        # Whatever the number of tracebacks is at which a table has to grow.
        self.run_walk("""
            track = lines('capi.tracemalloc_track(7, 1, 1)')
            tracks = [track() for _ in range(100)]
            reallocate = lines(
                'return capi.tracemalloc_realloc_failing(*args)')
            unknown = 0
            tracemalloc.start()
            for i in range(len(tracks)):
                func = reallocate()
                tracemalloc.clear_traces()
                for track in tracks[:i]:
                    track()
                addr, *_ = capi.tracemalloc_realloc_failing(
                    'raw', 0, MARK, sys.maxsize, 0, False)
                addr, failed, _ = func(
                    'raw', addr, 2 * MARK, 0, sys.maxsize, True)
                traces = [trace[2] for trace in tracemalloc._get_traces()
                          if trace[1] == 2 * MARK]
                assert len(traces) == 1, (i, traces)
                unknown += traces[0] == (('<unknown>', 0),)
                check_sums()
                capi.tracemalloc_domain_free('raw', addr)
            assert unknown > 0
            """)

    def test_track(self):
        self.run_walk("""
            def track(size):
                res = capi.tracemalloc_track(7, 0x1230, size)
                if res < 0:
                    raise MemoryError(res)

            # Into empty books.
            def check():
                assert sizes().count(MARK) <= 1
                check_sums()
                capi.tracemalloc_untrack(7, 0x1230)
                assert MARK not in sizes()
                check_sums()
            tracemalloc.start(3)
            source = 'tracemalloc.clear_traces(); track(MARK)'
            assert walk(lines(source), check) > 5

            # A block that has a trace keeps it, or gets the new one.
            again = lines('track(2 * MARK)')
            def prepare():
                track(MARK)
                return again()
            def check():
                found = sizes()
                assert found.count(MARK) + found.count(2 * MARK) == 1
                check_sums()
            walk(prepare, check)
            """)

    def test_track_of_another_interpreter(self):
        # It has a trace there, or here, but never both nor none.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_script(NO_MEMORY + textwrap.dedent(f"""
                    capi.tracemalloc_below_install()
                    interp = _interpreters.create({config!r})
                    run(interp, '''if 1:
                        import _testinternalcapi as capi
                        import _tracemalloc as tracemalloc
                        tracemalloc.start()
                        ''')
                    tracemalloc.start()
                    def prepare():
                        run(interp, 'capi.tracemalloc_track(7, 1, {MARK})')
                        tracemalloc.clear_traces()
                        return track
                    def track():
                        if capi.tracemalloc_track(7, 1, {MARK}) < 0:
                            raise MemoryError
                    def check():
                        here = {MARK} in sizes()
                        run(interp, f'''if 1:
                            traces = tracemalloc._get_traces()
                            there = {MARK} in [t[1] for t in traces]
                            assert there != {{here}}, (there, {{here}})
                            ''')
                        total, traced = capi.tracemalloc_sums(interp)
                        assert total == traced, (total, traced)
                    assert walk(prepare, check) > 1
                    """))

    def test_queries(self):
        self.run_walk("""
            import tracemalloc as module
            tracemalloc.start(5)
            kept = []
            def prepare(query):
                def func():
                    tracemalloc.clear_traces()
                    kept[:] = [bytearray(800), object()]
                    return query
                return func
            for query, least in (
                (tracemalloc._get_traces, 9),
                (lambda: tracemalloc._get_object_traceback(kept[1]), 5),
                (module.take_snapshot, 9),
                (lambda: module.get_object_traceback(kept[1]), 5),
                (tracemalloc.get_traced_memory, 1),
                (tracemalloc.get_tracemalloc_memory, 0),
                (tracemalloc.reset_peak, 0),
            ):
                total = walk(prepare(query))
                assert total >= least, (query, total)
                # Whatever query has failed, this thread is traced on.
                assert tracemalloc._get_object_traceback(bytearray(800))
            """)

    def test_clear_and_stop(self):
        # Neither needs memory.
        self.run_walk("""
            for func in tracemalloc.clear_traces, tracemalloc.stop:
                tracemalloc.start()
                kept = [[i] for i in range(1000)]
                exc, failed = capi.tracemalloc_call_failing(
                    func, 0, sys.maxsize)
                # A table may fail to shrink.
                assert exc is None, exc
                assert len(tracemalloc._get_traces()) < 500
                check_sums()
            assert tracemalloc.get_traced_memory() == (0, 0)
            """)

    def test_shrinking_tables(self):
        # The tables give memory back as blocks are freed, if they can.
        self.run_walk("""
            tracemalloc.start()
            def prepare():
                blocks = [capi.tracemalloc_raw_malloc(400)
                          for _ in range(1000)]
                def free():
                    while blocks:
                        capi.tracemalloc_raw_free(blocks.pop())
                return free
            assert walk(prepare) > 1
            """)

    def test_end_of_interpreter(self):
        # It ends while it traces, and gets no memory in between.  There are
        # some hundred requests: not each of them has its turn.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_script(NO_MEMORY + textwrap.dedent(f"""
                    capi.tracemalloc_below_install()
                    tracemalloc.start()

                    def create():
                        interp = _interpreters.create({config!r})
                        run(interp, '''if 1:
                            import _tracemalloc as tracemalloc
                            tracemalloc.start()
                            kept = [[str(i)] for i in range(1000)]
                            ''')
                        return interp

                    def destroy(start, stop):
                        interp = create()
                        exc, failed = capi.tracemalloc_call_failing(
                            lambda: _interpreters.destroy(interp),
                            start, stop)
                        if exc is not None:
                            # Not even begun.
                            assert type(exc) is MemoryError, exc
                            _interpreters.destroy(interp)
                        check_sums()
                        return failed

                    n = 0
                    while destroy(n, sys.maxsize):
                        destroy(n, n + 1)
                        n += 1 + n // 2
                    assert n > 1
                    assert len(_interpreters.list_all()) == 1
                    """))

    def test_no_key_for_new_interpreter(self):
        # It inherits -X tracemalloc: threads that are not attached would need
        # a key, and are not traced without one.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_script(f"""
                    keys = capi.tracemalloc_take_keys(0)
                    limited = keys is not None
                    interp = _interpreters.create({config!r})
                    run(interp, f'''if 1:
                        import _testinternalcapi as capi
                        import _tracemalloc as tracemalloc

                        def start():
                            try:
                                tracemalloc.start()
                            except RuntimeError:
                                return False
                            return True

                        assert tracemalloc.is_tracing()
                        kept = bytearray(10_000)
                        addr = capi.tracemalloc_raw_malloc(20_002, 'detached')
                        traces = tracemalloc._get_traces()
                        sizes = [trace[1] for trace in traces]
                        assert 10_001 in sizes, sizes
                        assert (20_002 in sizes) != {{limited}}
                        capi.tracemalloc_raw_free(addr, 'detached')
                        tracemalloc.stop()
                        assert start() != {{limited}}
                        ''')
                    check_sums(interp)
                    _interpreters.destroy(interp)
                    check_sums()
                    """, '-X', 'tracemalloc')

    def test_hooks_on_top(self):
        # The allocator that fails has tracemalloc's hooks below it; start()
        # and stop() leave both where they are.
        self.run_walk("""
            capi.tracemalloc_below_remove()
            tracemalloc.start()
            capi.tracemalloc_below_install()
            assert walk(lines('return {i: (i, {i}) for i in range(20)}')) > 5
            tracemalloc.stop()
            assert walk(lines('return {i: (i, {i}) for i in range(20)}')) > 5
            tracemalloc.start()
            assert walk(lines('return {i: (i, {i}) for i in range(20)}')) > 5
            walk(lambda: tracemalloc._get_traces)
            capi.tracemalloc_below_remove()
            tracemalloc.stop()
            capi.tracemalloc_below_install()
            """)


# --- Forks in a storm -----------------------------------------------------

# Threads and interpreters that allocate, start, stop and ask, until the end.
STORM = f"""\
import tracemalloc as module

MARK = {MARK}
reader, writer = os.pipe()
os.set_blocking(reader, False)
ended = []

def start_interpreter(config):
    interp = _interpreters.create(config)
    run(interp, f'''if 1:
        import os
        import _testinternalcapi as capi
        import _tracemalloc as tracemalloc
        def is_ended():
            try:
                return not os.read({{reader}}, 1)
            except BlockingIOError:
                return False
        def work():
            i = 0
            while not is_ended():
                i += 1
                tracemalloc.start(1 + i % 3)
                kept = [[str(i)] for i in range(50)]
                addr = capi.tracemalloc_raw_malloc({{MARK}})
                tracemalloc._get_traces()
                if i % 4 == 0:
                    tracemalloc.stop()
                elif i % 4 == 1:
                    tracemalloc.clear_traces()
                addr = capi.tracemalloc_raw_realloc(addr, 40, 'detached')
                capi.tracemalloc_raw_free(addr)
        ''')
    return lambda: run(interp, 'work()')

def repeat(func):
    def target():
        while not ended:
            func()
    return target

def allocate():
    kept = [[str(i)] for i in range(50)]
    kept *= 6

def toggle():
    tracemalloc.start(2)
    allocate()
    tracemalloc.stop()

def ask():
    obj = object()
    tracemalloc._get_object_traceback(obj)
    tracemalloc._get_traces()
    tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()

def fight(*funcs):
    '''Call these while all the others are at work.'''
    # So many threads want the GIL that these would hardly get it.
    sys.setswitchinterval(1e-4)
    # While nothing else runs: see test_tracemalloc_concurrent.
    targets = list(map(start_interpreter, ['legacy', 'isolated'] * 2))
    targets += [repeat(func) for func in (allocate, allocate, ask)]
    pools = [capi.tracemalloc_pool_start(work, 1)
             for work in ('raw', 'track', 'gilstate')]
    targets += [lambda pool=pool: capi.tracemalloc_pool_join(pool)
                for pool in pools[:2]]
    def target():
        try:
            run_threads(funcs)
        finally:
            ended.append(1)
            os.close(writer)
            for pool in pools:
                capi.tracemalloc_pool_stop(pool, TIMEOUT)
    run_threads([*targets, target])

def sizes():
    return [trace[1] for trace in tracemalloc._get_traces()]

def child():
    '''What is left of the storm in the child of a fork: nothing.'''
    assert len(_interpreters.list_all()) == 1
    tracemalloc.start()
    check_sums()
    assert MARK not in sizes()      # a block of the other interpreters
    kept = [[str(i)] for i in range(50)]
    addr = capi.tracemalloc_raw_malloc(MARK)
    assert capi._PyTraceMalloc_GetTraceback(0, addr)
    assert capi.tracemalloc_track(7, addr, MARK) == 0
    check_sums()
    traces = module.take_snapshot().traces
    assert [trace.size for trace in traces].count(MARK) == 2
    assert capi.tracemalloc_untrack(7, addr) == 0
    capi.tracemalloc_raw_free(addr)
    assert MARK not in sizes()
    check_sums()
    tracemalloc.clear_traces()
    check_sums()
    tracemalloc.stop()
    assert tracemalloc.get_traced_memory() == (0, 0)
    tracemalloc.start()
    check_sums()

def traced_child():
    assert tracemalloc.is_tracing()
    child()

def child_with_interpreters():
    child()
    for config in 'legacy', 'isolated':
        interp = _interpreters.create(config)
        run(interp, 'import _tracemalloc as t; t.start(); kept = [[]]')
        check_sums(interp)
        _interpreters.destroy(interp)
        check_sums()
"""


@unittest.skipIf(support.HAVE_ASAN_FORK_BUG, base.ASAN_FORK_BUG)
class ForkStormTests(base.ForkBase):
    """Forks while threads and interpreters are at work.

    Each child has only the traces of the main interpreter, and these add up;
    and it can go on from whatever moment the fork has caught.
    """

    forks = 1000 if support.is_resource_enabled('cpu') else 50

    def run_storm(self, script, *args):
        self.run_fork(STORM + textwrap.dedent(script), *args)

    def test_forks(self):
        self.run_storm(f"""
            tracemalloc.start()
            def forks():
                for i in range({self.forks}):
                    in_child(child_with_interpreters if i % 5 == 0
                             else traced_child)
            fight(forks)
            """)

    def test_forks_while_main_starts_and_stops(self):
        self.run_storm(f"""
            def forks():
                for _ in range({self.forks // 4}):
                    toggle()
                    in_child(child)
                    tracemalloc.start()
                    in_child(child)
            # Each of them is in the children of the other at first.
            fight(forks, forks)
            """)

    def test_other_processes(self):
        self.run_storm(f"""
            import subprocess
            argv = [sys.executable, '-I', '-S', '-c', 'pass']
            def spawn():
                for i in range({self.forks // 10}):
                    subprocess.run(argv, check=True)
                    # A fork with Python code in the child.
                    subprocess.run(argv, check=True, preexec_fn=child)
                    if hasattr(os, 'posix_spawn'):
                        pid = os.posix_spawn(argv[0], argv, os.environ)
                        status = os.waitpid(pid, 0)[1]
                        assert status == 0, status
            tracemalloc.start()
            fight(spawn)
            """)

    def test_multiprocessing(self):
        import_helper.import_module('_multiprocessing')
        self.run_storm(f"""
            import multiprocessing

            # This child inherits no function and need not import one.
            source = '''if 1:
                import _testinternalcapi as capi
                import _tracemalloc as tracemalloc
                assert tracemalloc.is_tracing()
                kept = bytearray(5000)
                assert tracemalloc._get_object_traceback(kept)
                total, traced = capi.tracemalloc_sums()
                assert total == traced, (total, traced)
                '''

            def processes(count):
                for _ in range(count):
                    for method, *target in (('fork', traced_child),
                                            ('forkserver', exec, source)):
                        context = multiprocessing.get_context(method)
                        process = context.Process(target=target[0],
                                                  args=target[1:])
                        process.start()
                        process.join()
                        assert process.exitcode == 0, (method, process)
            # Before the storm: what is imported and started but once.
            processes(1)
            tracemalloc.clear_traces()
            fight(lambda: processes({self.forks // 10}))
            """, '-X', 'tracemalloc')


@unittest.skipIf(support.HAVE_ASAN_FORK_BUG, base.ASAN_FORK_BUG)
class HeldUpTests(base.ForkBase):
    """Forks while a thread is in the middle of an allocator.

    It has taken a trace out of the books, or is about to put one in.  In the
    child it does not exist and never comes back.
    """

    SCRIPT = """
        OLD, NEW = 10_001, 20_002
        capi.tracemalloc_below_install()
        tracemalloc.start()
        interp = _interpreters.create({config!r})
        run(interp, '''if 1:
            import _testinternalcapi as capi
            import _tracemalloc as tracemalloc
            tracemalloc.start()
            ''')

        def find():
            found = [trace[1] for trace in tracemalloc._get_traces()]
            return found.count(OLD), found.count(NEW)

        def child():
            # The block may have a trace or not; the sizes add up.
            assert sum(find()) <= 1, find()
            check_sums()
            if addr:
                capi.tracemalloc_raw_free(addr)
                assert find() == (0, 0)
            # Tables grow and shrink, and start anew.
            for _ in range(3):
                tracemalloc.start()
                addrs = [capi.tracemalloc_raw_malloc(NEW)
                         for _ in range(1000)]
                assert find() == (0, 1000)
                for a in addrs[::2]:
                    capi.tracemalloc_raw_free(a)
                assert find() == (0, 500)
                check_sums()
                tracemalloc.clear_traces()
                assert find() == (0, 0)
                check_sums()
                for a in addrs[1::2]:
                    capi.tracemalloc_raw_free(a)
                tracemalloc.stop()
                assert tracemalloc.get_traced_memory() == (0, 0)

        def hold_up(key, call):
            capi.tracemalloc_gate_close(key)
            thread = threading.Thread(target=run, args=(interp, call))
            thread.start()
            try:
                capi.tracemalloc_gate_wait(TIMEOUT)
                in_child(child)
            finally:
                capi.tracemalloc_gate_open()
                thread.join()
            check_sums(interp)

        reader, writer = os.pipe()

        def allocate(owner):
            if owner == 'main':
                return capi.tracemalloc_raw_malloc(OLD)
            run(interp, f'''if 1:
                import os
                addr = capi.tracemalloc_raw_malloc({{OLD}})
                os.write({{writer}}, addr.to_bytes(8))
                ''')
            return int.from_bytes(os.read(reader, 8))

        for how in {hows}:
            addr = 0
            hold_up(NEW, f'addr = capi.tracemalloc_raw_malloc({{NEW}}, '
                         f'{{how!r}})')
            run(interp, 'capi.tracemalloc_raw_free(addr)')
            assert find() == (0, 0)
            for owner in 'main', 'sub':
                for op, key in ('realloc', NEW), ('free', None):
                    addr = allocate(owner)
                    args = f'{{addr}}, {{NEW}}' if key else f'{{addr}}'
                    hold_up(key or addr,
                            f'addr = capi.tracemalloc_raw_{{op}}({{args}}, '
                            f'{{how!r}})')
                    if key:
                        run(interp, 'capi.tracemalloc_raw_free(addr)')
                    assert find() == (0, 0)
                    check_sums(interp)
        """

    def check(self, config, *hows):
        self.run_fork(self.SCRIPT.format(config=config, hows=hows))

    def test_isolated(self):
        hows = ['detached']
        if not support.Py_GIL_DISABLED:
            # There fork() waits until attached threads get to a safe point,
            # also for one that waits for a native thread.
            hows += ['attached', 'stateless']
        self.check('isolated', *hows)

    def test_legacy(self):
        # Only without the GIL that the thread which forks needs, too.
        self.check('legacy', 'detached')


class ClearedTests(ScriptBase):
    """Traces are cleared while a thread reallocates a block that has one.

    Its trace was removed before, and is still counted.
    """

    def test_sums_agree(self):
        self.run_script("""
            from itertools import product

            OLD, NEW = 10_001, 20_002
            capi.tracemalloc_below_install()

            def realloc(addr, size):
                # No request fails.
                return capi.tracemalloc_realloc_failing(
                    domain, addr, size, 0, 0, False)[0]

            def move():
                global addr
                addr = realloc(addr, NEW)

            def restart():
                tracemalloc.stop()
                tracemalloc.start()

            for domain, tracked, meanwhile in product(
                    ('raw', 'mem', 'obj'), (False, True),
                    (tracemalloc.clear_traces, tracemalloc.stop, restart)):
                tracemalloc.start()
                addr = realloc(0, OLD)
                if tracked:
                    # Now any interpreter may remove the trace.
                    capi.tracemalloc_track(0, addr, OLD)
                capi.tracemalloc_gate_close(NEW, True)
                thread = threading.Thread(target=move)
                thread.start()
                try:
                    capi.tracemalloc_gate_wait(TIMEOUT)
                    meanwhile()
                finally:
                    capi.tracemalloc_gate_open()
                    thread.join()
                sizes = [trace[1] for trace in tracemalloc._get_traces()]
                assert sizes.count(NEW) == tracemalloc.is_tracing(), sizes
                check_sums()
                capi.tracemalloc_domain_free(domain, addr)
                check_sums()
                tracemalloc.stop()
            capi.tracemalloc_below_remove()
            """)


# --- The end --------------------------------------------------------------

class EndTests(ScriptBase):
    """Whoever allocates, frees and asks while something ends."""

    def test_daemon_threads(self):
        # They are stopped at a moment that finalization chooses.
        for stop in False, True:
            with self.subTest(stop=stop):
                self.run_twice(f"""
                    import gc
                    def blocks():
                        addr = capi.tracemalloc_raw_malloc(50, 'detached')
                        capi.tracemalloc_raw_free(addr, 'detached')
                    funcs = [tracemalloc._get_traces,
                             tracemalloc.clear_traces, blocks]
                    if {support.Py_GIL_DISABLED}:
                        # A daemon thread that waits to stop the world, as
                        # for a collection, can end as the owner of the lock,
                        # traced or not; Python then hangs at exit.
                        gc.disable()
                    else:
                        funcs.append(tracemalloc.start)
                    started = threading.Barrier(len(funcs) + 1)
                    def work(func):
                        started.wait()
                        while True:
                            func()
                            kept = [[str(i)] for i in range(30)]
                    for func in funcs:
                        threading.Thread(target=work, args=(func,),
                                         daemon=True).start()
                    tracemalloc.start(3)
                    started.wait()
                    if {stop}:
                        tracemalloc.stop()
                    """)

    # Objects that ask when they die, from one that dies first to one that
    # dies as late as possible; and functions that are called before.  A dot
    # for each answer that is right; exceptions would be lost.
    LATE = """
import _testinternalcapi as capi
import _tracemalloc as tracemalloc
import atexit
import codecs
import os
import sys
import types

tracemalloc.clear_traces()

# The dictionaries of modules are cleared before the end.
def ask(t=types.SimpleNamespace(**vars(tracemalloc)),
        track=capi.tracemalloc_track, untrack=capi.tracemalloc_untrack,
        bytearray=bytearray, write=os.write):
    kept = bytearray(700)
    track(5, 16, 1, 'detached')
    domains = [trace[0] for trace in t._get_traces()]
    untrack(5, 16, 'detached')
    tracing = t.is_tracing()
    size = t.get_traced_memory()[0]
    t.reset_peak()
    write(1, b'.' if (
        (t._get_object_traceback(kept) is not None) == tracing
        and (domains != []) == tracing
        and domains.count(5) == tracing
        and (t.get_tracemalloc_memory() > 0) == tracing
        # The memory of other interpreters is in it, too.
        and (size > 0 or not tracing)
    ) else b'x')

def ask_and_switch(ask=ask, stop=tracemalloc.stop, start=tracemalloc.start):
    ask()
    stop()
    ask()
    start()
    ask()

class Late:
    def __init__(self, func):
        self.func = func
    def __del__(self):
        self.func()

ask()
a = Late(ask)
sys.late = Late(ask_and_switch)
# Codecs go after the modules, and a cycle when it is found.
cycle = [Late(ask_and_switch)]
cycle.append(cycle)
def search(name): pass
search.cycle = cycle
codecs.register(search)
atexit.register(ask)
atexit.register(ask_and_switch)
"""

    def test_atexit_and_destructors(self):
        # If there were other interpreters then the main one of a free-threaded
        # build does not find its last cycle, traced or not.
        lost = 3 if support.Py_GIL_DISABLED else 0
        for end in True, False:
            for malloc in None, 'debug':
                for args in (), ('-X', 'tracemalloc=3'):
                    with self.subTest(end=end, malloc=malloc, args=args):
                        stdout, stderr = self.run_script(f"""
                            LATE = {self.LATE!r}
                            for config in {CONFIGS}:
                                interp = _interpreters.create(config)
                                run(interp, LATE)
                                if {end}:
                                    _interpreters.destroy(interp)
                            tracemalloc.start()
                            check_sums(*([] if {end} else {{1, 2}}))
                            exec(LATE)
                            """, *args, malloc=malloc)
                        self.assertEqual(stdout, '.' * (3 * 12 - lost))
                        self.assertEqual(stderr, '')

    def test_destroyed_by_another_interpreter(self):
        for config in CONFIGS:
            with self.subTest(config):
                self.run_twice(f"""
                    start = '''if 1:
                        import _interpreters
                        import _tracemalloc as tracemalloc
                        tracemalloc.start()
                        kept = [[str(i)] for i in range(300)]
                        '''
                    tracemalloc.start()
                    one = _interpreters.create({config!r})
                    run(one, start)
                    for _ in range(3):
                        two = _interpreters.create('legacy')
                        three = _interpreters.create('isolated')
                        run(two, start)
                        run(three, start)
                        check_sums(one, two, three)
                        run(one, f'''if 1:
                            _interpreters.destroy({{two}})
                            _interpreters.destroy({{three}})
                            # As much here as there was.
                            assert tracemalloc.is_tracing()
                            assert tracemalloc._get_object_traceback(kept[9])
                            ''')
                        assert len(_interpreters.list_all()) == 2
                        check_sums(one)
                    _interpreters.destroy(one)
                    check_sums()
                    """)


class EmbeddingTests(base.EmbeddingBase):
    """Python is initialized and finalized ten times."""

    CODE = textwrap.dedent("""
        import _interpreters
        import _testinternalcapi as capi
        import _tracemalloc as tracemalloc

        assert tracemalloc.get_traced_memory()[0] < 1 << 24
        tracemalloc.start(3)
        lost = [capi.tracemalloc_raw_malloc(1 << 20) for _ in range(9)]
        source = '''if 1:
            import _testinternalcapi as capi
            import _tracemalloc as tracemalloc
            tracemalloc.start(3)
            kept = [[str(i)] for i in range(300)]
            kept[0] = kept
            lost = [capi.tracemalloc_raw_malloc(1 << 20) for _ in range(9)]
            '''
        for config in 'legacy', 'isolated':
            interp = _interpreters.create(config)
            excinfo = _interpreters.exec(interp, source)
            assert excinfo is None, excinfo.errdisplay
        # They stay alive, and so do their blocks.
        """)

    def check(self, *args):
        for malloc, option in (None, None), ('debug', '3'):
            with self.subTest(malloc=malloc, option=option):
                self.run_traced(*args, malloc=malloc, tracemalloc=option)

    def test_ten_times(self):
        self.check('test_repeated_init_exec', *[self.CODE] * 10)

    def test_track_all_the_time(self):
        # Before, after and while Python is initialized and finalized.
        self.check('test_repeated_init_track', self.CODE)


if __name__ == "__main__":
    unittest.main()
