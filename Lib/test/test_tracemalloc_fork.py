"""tracemalloc in the child of a fork.

Each test is a script in a process of its own, since what is wrong here
crashes, aborts or hangs.  A time limit is there only to end what hangs.
"""

import textwrap
import unittest

from test import support
from test.support import import_helper
from test.support.tracemalloc_helper import (
    ASAN_FORK_BUG, CONFIGS, MARK, SETUP, ForkBase)


class ForkTests(ForkBase):
    """The child of a fork, with and without other interpreters."""

    def test_live_interpreters(self):
        # Without tracing: the child has nothing to do with them.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_fork(f"""
                    _interpreters.create({config!r})
                    def child():
                        assert len(_interpreters.list_all()) == 1
                        _interpreters.destroy(
                            _interpreters.create({config!r}))
                    in_child(child)
                    """)

    def test_child_traces_on(self):
        self.run_fork("""
            tracemalloc.start(2)
            obj = bytearray(5000)
            traceback = tracemalloc._get_object_traceback(obj)
            def child():
                assert tracemalloc.is_tracing()
                assert tracemalloc.get_traceback_limit() == 2
                assert tracemalloc._get_object_traceback(obj) == traceback
                other = bytearray(4000)
                assert tracemalloc._get_object_traceback(other)
                check_sums()
                tracemalloc.stop()
                assert tracemalloc.get_traced_memory() == (0, 0)
                tracemalloc.start()
                check_sums()
            in_child(child)
            assert tracemalloc._get_object_traceback(obj) == traceback
            check_sums()
            """)

    def test_child_frees(self):
        # What any thread may free: raw blocks, and an object with the trace
        # that PyTraceMalloc_Track() has made.
        self.run_fork("""
            tracemalloc.start()
            hows = 'attached', 'detached', 'stateless'
            addrs = [capi.tracemalloc_raw_malloc(5001) for _ in hows]
            objs = [object()]
            capi.tracemalloc_track(0, id(objs[0]), 5001)
            def child():
                for i, how in enumerate(hows):
                    assert sizes().count(5001) == 4 - i
                    capi.tracemalloc_raw_free(addrs[i], how)
                assert sizes().count(5001) == 1
                check_sums()
                objs.clear()
                assert sizes().count(5001) == 0
                check_sums()
            in_child(child)
            child()
            """)

    def test_child_without_memory(self):
        # CPython itself asks for some, and exits if there is none.
        self.run_fork("""
            from itertools import count
            FAULT, NO_REQUEST_LEFT = 3, 4
            capi.tracemalloc_below_install()
            tracemalloc.start()
            addrs = [capi.tracemalloc_raw_malloc(5001) for _ in range(10)]
            parent = os.getpid()
            def child(failed):
                try:
                    for addr in addrs:
                        capi.tracemalloc_raw_free(addr)
                    assert sizes().count(5001) == 0, sizes().count(5001)
                    check_sums()
                except AssertionError:
                    sys.excepthook(*sys.exc_info())
                    os._exit(FAULT)
                os._exit(0 if failed else NO_REQUEST_LEFT)

            for n in count():
                _, failed = capi.tracemalloc_call_failing(os.fork, n, n + 1)
                if os.getpid() != parent:
                    child(failed)
                status = os.waitstatus_to_exitcode(os.wait()[1])
                assert status != FAULT
                if status == NO_REQUEST_LEFT:
                    break
            """)

    def test_child_frees_objects_of_others(self):
        # Those are in no sum of the child.
        self.run_fork("""
            tracemalloc.start()
            interp = _interpreters.create('legacy')
            reader, writer = os.pipe()
            run(interp, f'''if 1:
                import os
                import _testinternalcapi as capi
                import _tracemalloc as tracemalloc
                tracemalloc.start()
                for size in 50, 500, 5000, 1 << 20:
                    addr = capi.tracemalloc_leak(bytes(size))
                    os.write({writer}, b'%d ' % addr)
                ''')
            addrs = [int(addr) for addr in os.read(reader, 999).split()]
            def child():
                for addr in addrs:
                    capi.tracemalloc_unleak(addr)
                    check_sums()
            in_child(child)
            check_sums(interp)
            """)

    def test_child_untracks_for_others(self):
        # Who has tracked it is gone, and the trace as well.
        self.run_fork("""
            tracemalloc.start()
            interp = _interpreters.create('isolated')
            run(interp, '''if 1:
                import _testinternalcapi as capi
                import _tracemalloc as tracemalloc
                tracemalloc.start()
                capi.tracemalloc_track(0, 4096, 5001)
                ''')
            def child():
                assert capi.tracemalloc_untrack(0, 4096) == 0
                check_sums()
            in_child(child)
            check_sums(interp)
            """)

    def test_fork_when_stopped(self):
        # A thread that was reallocating a block is gone in the child, and so is
        # what it had counted.
        self.run_fork(SETUP + textwrap.dedent("""
            def child():
                tracemalloc.start()
                check_sums()
            def fork():
                tracemalloc.stop()
                in_child(child)
            tracemalloc.start()
            addr = malloc('raw', OLD)
            hold_up(NEW, lambda: realloc('raw', addr, NEW), fork, True)
            """))

    def test_handlers_of_the_c_library(self):
        # Such as gRPC's, which are in Python.  They run inside fork().
        self.run_fork("""
            tracemalloc.start()
            kept = [bytearray(600 + n % 10) for n in range(300)]
            def handler():
                del kept[-10:]
                kept.append([bytearray(n * 7) for n in range(100)])
                called.append(capi.tracemalloc_raw_malloc(70))
            called = []
            capi.tracemalloc_call_at_fork(handler, True)
            def child():
                assert len(called) % 2 == 0, len(called)
                check_sums()
                kept.clear()
                check_sums()
            for _ in range(3):
                in_child(child)
                check_sums()
            child()
            assert len(called) == 6
            """)

    def test_handler_releases_the_gil(self):
        # Other threads allocate while the handler waits inside fork(), and it
        # allocates while it does not have the GIL.
        self.run_fork("""
            import time
            tracemalloc.start()
            stop = []
            def handler():
                time.sleep(0.01)
                for how in 'detached', 'stateless':
                    for _ in range(20):
                        addr = capi.tracemalloc_raw_malloc(70, how)
                        capi.tracemalloc_raw_free(addr, how)
            capi.tracemalloc_call_at_fork(handler, False)
            def work():
                while not stop:
                    kept = [bytearray(n * 7) for n in range(100)]
            def fork():
                for _ in range(10):
                    in_child(check_sums)
                stop.append(True)
            run_threads([work, fork])
            check_sums()
            """)

    def test_handlers_start_and_stop(self):
        # Whoever traces in the end, the locks are as before.
        self.run_fork("""
            interp = _interpreters.create('isolated')
            def restart():
                tracemalloc.stop()
                tracemalloc.start()
            actions = tracemalloc.start, tracemalloc.stop, restart
            handlers = []
            def handler():
                handlers.pop(0)()
            capi.tracemalloc_call_at_fork(handler, True)
            def use():
                tracemalloc.start()
                kept = [bytearray(n * 7) for n in range(100)]
                addr = capi.tracemalloc_raw_malloc(70, 'detached')
                capi.tracemalloc_raw_free(addr, 'detached')
                check_sums()
                tracemalloc.stop()
            def fork():
                for before in actions:
                    for after in actions:
                        for tracing in tracemalloc.start, tracemalloc.stop:
                            tracing()
                            handlers[:] = before, after
                            in_child(use)
                            use()
            fork()
            run(interp, 'import _tracemalloc as t; t.start()')
            fork()
            check_sums(interp)
            """)

    def test_grandchild(self):
        # After a fork the locks are taken as before.
        self.run_fork("""
            tracemalloc.start()
            def child():
                in_child(check_sums)
                check_sums()
            in_child(child)
            """)

    def test_child_has_the_keys_of_others(self):
        self.run_fork("""
            interp = _interpreters.create('isolated')
            keys = capi.tracemalloc_take_keys(1)
            run(interp, 'import _tracemalloc as t; t.start()')
            def child():
                tracemalloc.start()
                check_sums()
            in_child(child)
            """)

    def test_child_without_other_interpreters(self):
        self.run_fork("""
            interps = []
            for config in 'legacy', 'isolated':
                interp = _interpreters.create(config)
                run(interp, 'import _tracemalloc as t; t.start()')
                run(interp, 'obj = bytearray(1 << 20)')
                interps.append(interp)
            for main_traces in False, True:
                if main_traces:
                    tracemalloc.start()
                def child():
                    assert tracemalloc.is_tracing() == main_traces
                    if not main_traces:
                        assert tracemalloc.get_traced_memory() == (0, 0)
                    check_sums()
                    tracemalloc.start()
                    check_sums()
                    tracemalloc.stop()
                    assert tracemalloc.get_traced_memory() == (0, 0)
                in_child(child)
                check_sums(*interps)
            assert tracemalloc.get_traced_memory()[0] > 1 << 21
            """)

    def test_peak_in_child(self):
        # The largest sum remains what it was, with what others had then,
        # though they are gone.  Who makes many new peaks, one after the
        # other, and alone, need not tell at once.
        self.run_fork("""
            MB = 1 << 20
            tracemalloc.start()
            interp = _interpreters.create('isolated')
            run(interp, 'import tracemalloc; tracemalloc.start()')
            run(interp, 'obj = bytearray(4 << 20)')
            tracemalloc.reset_peak()
            many = [bytearray(600) for _ in range(2000)]
            del many
            obj = bytearray(40 * MB)
            del obj
            def child():
                size, peak = tracemalloc.get_traced_memory()
                assert size < 4 * MB, size
                assert peak > 44 * MB, peak
            in_child(child)
            size, peak = tracemalloc.get_traced_memory()
            assert size > 4 * MB, size
            assert 44 * MB < peak < 48 * MB, peak
            """)

    def test_peak_in_child_of_the_only_thread(self):
        # It counts on its own, and its credit is lost in the child.
        self.run_fork("""
            MB = 1 << 20
            tracemalloc.start()
            for _ in range(3000):
                bytearray(600)
            tracemalloc.reset_peak()
            kept = [bytearray(MB) for _ in range(40)]
            del kept[4:]
            def child():
                size, peak = tracemalloc.get_traced_memory()
                assert 4 * MB < size < 8 * MB, size
                assert peak > 40 * MB, peak
            in_child(child)
            """)

    def test_sum_in_child_without_huge_sizes(self):
        # What makes the sum pass 2**64 goes with its interpreter.
        self.run_fork("""
            tracemalloc.start()
            interp = _interpreters.create('isolated')
            run(interp, '''if 1:
                import sys
                import _testinternalcapi as capi
                import _tracemalloc as tracemalloc
                tracemalloc.start()
                for addr in 8, 16, 24:
                    capi.tracemalloc_track(1, addr, sys.maxsize)
                ''')
            in_child(check_sums)
            assert tracemalloc.get_traced_memory()[0] == sys.maxsize
            """)

    @unittest.skipIf(support.HAVE_ASAN_FORK_BUG, ASAN_FORK_BUG)
    def test_child_exits(self):
        # The child finalizes Python, its parent's other threads are gone.
        self.run_fork("""
            tracemalloc.start()
            pool = capi.tracemalloc_pool_start('raw', 2)
            pid = os.fork()
            if pid != 0:
                _, status = os.waitpid(pid, 0)
                assert os.waitstatus_to_exitcode(status) == 0, status
            """)

    CHILD = """
        def child():
            kept = [[str(i)] for i in range(100)]
            addr = capi.tracemalloc_raw_malloc(500)
            assert capi._PyTraceMalloc_GetTraceback(0, addr)
            capi.tracemalloc_raw_free(addr)
            tracemalloc._get_traces()
            check_sums()
            tracemalloc.clear_traces()
            tracemalloc.stop()
            tracemalloc.start()
        """

    @unittest.skipIf(support.HAVE_ASAN_FORK_BUG, ASAN_FORK_BUG)
    def test_fork_while_threads_allocate(self):
        # Any lock of tracemalloc may be held at the fork.
        for work in 'raw', 'track':
            with self.subTest(work):
                self.run_fork(textwrap.dedent(self.CHILD)
                              + textwrap.dedent(f"""
                    tracemalloc.start()
                    pool = capi.tracemalloc_pool_start({work!r}, 2)
                    join = capi.tracemalloc_pool_join
                    thread = threading.Thread(target=join, args=(pool,))
                    thread.start()
                    for _ in range(20):
                        in_child(child)
                    capi.tracemalloc_pool_stop(pool, TIMEOUT)
                    thread.join()
                    check_sums()
                    """))

    @unittest.skipIf(support.HAVE_ASAN_FORK_BUG, ASAN_FORK_BUG)
    def test_fork_while_interpreters_allocate(self):
        self.run_fork(textwrap.dedent(self.CHILD) + textwrap.dedent("""
            interp = _interpreters.create('isolated')
            tracemalloc.start()
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            source = f'''if 1:
                import os
                import _tracemalloc as t
                while True:
                    t.start()
                    kept = [[str(i)] for i in range(100)]
                    t._get_traces()
                    t.stop()
                    try:
                        if os.read({reader}, 1):
                            break
                    except BlockingIOError:
                        pass
                '''
            thread = threading.Thread(target=run, args=(interp, source))
            thread.start()
            for _ in range(20):
                in_child(child)
            os.write(writer, b'x')
            thread.join()
            check_sums(interp)
            """))


# --- Forks in a storm ---------------------------------------------------

# Threads and interpreters that allocate, start, stop and ask, until the end.
STORM = f"""\
import time
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

def times(least, count):
    '''Count, but where everything is slow no more than need be.'''
    end = time.monotonic() + TIMEOUT / 5
    for i in range(count):
        if i >= least and time.monotonic() > end:
            break
        yield i

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


@unittest.skipIf(support.HAVE_ASAN_FORK_BUG, ASAN_FORK_BUG)
class ForkStormTests(ForkBase):
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
                for i in times(15, {self.forks}):
                    in_child(child_with_interpreters if i % 5 == 0
                             else traced_child)
            fight(forks)
            """)

    def test_forks_while_main_starts_and_stops(self):
        self.run_storm(f"""
            def forks():
                for _ in times(12, {self.forks // 4}):
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
                for _ in times(5, {self.forks // 10}):
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

            def processes(counter):
                for _ in counter:
                    for method, *target in (('fork', traced_child),
                                            ('forkserver', exec, source)):
                        context = multiprocessing.get_context(method)
                        process = context.Process(target=target[0],
                                                  args=target[1:])
                        process.start()
                        process.join()
                        assert process.exitcode == 0, (method, process)
            # Before the storm: what is imported and started but once.
            processes(range(1))
            tracemalloc.clear_traces()
            fight(lambda: processes(times(5, {self.forks // 10})))
            """, '-X', 'tracemalloc')


@unittest.skipIf(support.HAVE_ASAN_FORK_BUG, ASAN_FORK_BUG)
class HeldUpTests(ForkBase):
    """Forks while a thread is in the middle of an allocator.

    It has taken a trace out, or is about to put one in.  In the
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


if __name__ == '__main__':
    unittest.main()
