"""Interpreters and processes that begin and end, in all orders."""

import os
import textwrap
import unittest

from test import support
from test.support import import_helper
from test.support.tracemalloc_helper import (
    CONFIGS, MARK, MB, ScriptBase, TestBase)
from test.test_embed import EmbeddingTestsMixin

tracemalloc = import_helper.import_module('_tracemalloc')


# --- Interpreters that end ----------------------------------------------

class EndTests:
    """Interpreters that end, in this process."""

    def test_takes_its_share(self):
        interp = self.create(self.config)
        interp.run(f"tracemalloc.start(); obj = bytearray({MB})")
        self.assertGreater(tracemalloc.get_traced_memory()[0], MB)
        interp.destroy()
        self.assertEqual(tracemalloc.get_traced_memory(), (0, 0))

    def test_main_goes_on(self):
        interp = self.create(self.config)
        tracemalloc.start()
        obj = bytearray(MARK)
        traceback = tracemalloc._get_object_traceback(obj)
        interp.run(f"tracemalloc.start(); obj = bytearray({MB})")
        interp.destroy()
        self.assertTrue(tracemalloc.is_tracing())
        self.assertEqual(tracemalloc._get_object_traceback(obj), traceback)
        self.assertLess(tracemalloc.get_traced_memory()[0], MARK + MB)
        self.assert_sums()

    def test_main_stops_first(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start(); obj = object()")
        tracemalloc.stop()
        interp.run("other = object()")
        self.assertEqual(
            interp.ask("tracemalloc._get_object_traceback(other)"),
            (('<string>', 1),))
        interp.destroy()
        self.assertEqual(tracemalloc.get_traced_memory(), (0, 0))
        tracemalloc.start()
        self.assert_sums()

    def test_neither_traces(self):
        interp = self.create(self.config)
        tracemalloc.start()
        tracemalloc.stop()
        interp.run("tracemalloc.start()")
        interp.run("tracemalloc.stop()")
        interp.destroy()
        self.assertEqual(tracemalloc.get_traced_memory(), (0, 0))

    def test_any_order(self):
        interps = [self.create(self.config) for _ in range(4)]
        for interp in interps:
            interp.run("tracemalloc.start(); obj = bytearray(5000)")
        for i in 2, 0, 3, 1:
            interps[i].destroy()
            self.assert_sums(*(interp for interp in interps if interp.id))
        self.assertEqual(tracemalloc.get_traced_memory(), (0, 0))


class LegacyEndTests(EndTests, TestBase):
    config = 'legacy'


class IsolatedEndTests(EndTests, TestBase):
    config = 'isolated'


class LifecycleTests(ScriptBase):
    """Orders in which interpreters and the process end."""

    def test_subinterpreter_ends_first(self):
        self.run_twice("""
            tracemalloc.start()
            for config in 'legacy', 'isolated':
                interp = _interpreters.create(config)
                run(interp, 'import _tracemalloc as t; t.start(); x = [[]]')
                _interpreters.destroy(interp)
                check_sums()
            """)

    def test_main_stops_first(self):
        self.run_twice("""
            tracemalloc.start()
            interps = []
            for config in 'legacy', 'isolated':
                interp = _interpreters.create(config)
                run(interp, 'import _tracemalloc as t; t.start(); x = [[]]')
                interps.append(interp)
            tracemalloc.stop()
            for interp in interps:
                run(interp, 'y = [object() for _ in range(1000)]')
                _interpreters.destroy(interp)
            assert tracemalloc.get_traced_memory() == (0, 0)
            """)

    def test_hooks_are_removed(self):
        # By the last interpreter that stops, and only then.
        self.run_twice("""
            def allocators():
                try:
                    return capi.pymem_getallocatorsname()
                except RuntimeError:
                    # Not CPython's own.
                    return None
            before = allocators()
            assert before is not None
            interps = [_interpreters.create(config)
                       for config in ('legacy', 'isolated')]
            for interp in interps:
                run(interp, 'import _tracemalloc as tracemalloc')
            for _ in range(3):
                tracemalloc.start()
                assert allocators() is None
                for interp in interps:
                    run(interp, 'tracemalloc.start()')
                tracemalloc.stop()
                assert allocators() is None
                for interp in interps:
                    assert allocators() is None
                    run(interp, 'tracemalloc.stop()')
                assert allocators() == before
            """)

    def test_exit_with_live_interpreters(self):
        for config in CONFIGS:
            for main_traces in True, False:
                with self.subTest(config=config, main_traces=main_traces):
                    self.run_twice(f"""
                        if {main_traces}:
                            tracemalloc.start()
                        for _ in range(3):
                            interp = _interpreters.create({config!r})
                            run(interp, 'import _tracemalloc as t; t.start()')
                            run(interp, 'x = [object() for _ in range(1000)]')
                        """)

    def test_exit_with_live_interpreters_and_option(self):
        self.run_twice("""
            for config in 'legacy', 'isolated':
                run(_interpreters.create(config), 'x = [[] for _ in "abc"]')
            """, '-X', 'tracemalloc=5')

    def test_stop_in_destructors(self):
        # Objects die while their interpreter ends.
        self.run_twice("""
            source = '''if 1:
                import _tracemalloc as t
                class Late:
                    def __init__(self, func):
                        self.func = func
                    def __del__(self):
                        self.func()
                        self.kept = [object() for _ in range(100)]
                t.start(3)
                a = Late(t.stop)
                b = Late(t.start)
                c = Late(t.clear_traces)
                d = Late(t._get_traces)
                '''
            for config in 'legacy', 'isolated':
                interp = _interpreters.create(config)
                run(interp, source)
                _interpreters.destroy(interp)
            assert tracemalloc.get_traced_memory() == (0, 0)
            run(_interpreters.create('legacy'), source)
            run(_interpreters.create('isolated'), source)
            exec(source)
            """)

    def test_many_interpreters(self):
        count = 15 if support.Py_DEBUG else 100
        for config in CONFIGS:
            with self.subTest(config=config):
                self.run_script(f"""
                    tracemalloc.start()
                    for _ in range({count}):
                        interp = _interpreters.create({config!r})
                        run(interp, 'import _tracemalloc as t; t.start()')
                        _interpreters.destroy(interp)
                    check_sums()
                    tracemalloc.stop()
                    assert tracemalloc.get_traced_memory() == (0, 0)
                    """)

    def test_many_interpreters_at_once(self):
        count = 10 if support.Py_DEBUG else 40
        self.run_script(f"""
            interps = [_interpreters.create('isolated')
                       for _ in range({count})]
            tracemalloc.start()
            for interp in interps:
                run(interp, 'import _tracemalloc as t; t.start(); x = [[]]')
            check_sums(*interps)
            for interp in interps[::2] + interps[1::2]:
                _interpreters.destroy(interp)
            check_sums()
            """)

    def test_daemon_threads_at_exit(self):
        # Not with PYTHONMALLOC=debug, as in test_native_threads_at_exit().
        # Threads that are detached in C code, in the allocators, while the
        # process ends and their thread states are deleted.
        for work in 'raw', 'track':
            for stop in False, True:
                with self.subTest(work, stop=stop):
                    self.run_script(f"""
                        tracemalloc.start(5)
                        pools = [capi.tracemalloc_pool_start({work!r}, 0)
                                 for _ in range(3)]
                        for pool in pools:
                            threading.Thread(target=capi.tracemalloc_pool_join,
                                             args=(pool,), daemon=True).start()
                        # Each of them: drop_gil() looks at the thread state
                        # once more after another thread may have the GIL.
                        for pool in pools:
                            while capi.tracemalloc_pool_passes(pool) < 50:
                                pass
                        if {stop}:
                            tracemalloc.stop()
                        """)

    def test_native_threads_at_exit(self):
        # Not with PYTHONMALLOC=debug, where a process may crash with or
        # without tracing: finalization sets the default raw allocator for
        # some moments, and that is another one in a release build.
        for work in 'raw', 'track':
            with self.subTest(work):
                self.run_script(f"""
                    interp = _interpreters.create('isolated')
                    run(interp, 'import _tracemalloc as t; t.start()')
                    tracemalloc.start()
                    pool = capi.tracemalloc_pool_start({work!r}, 3)
                    while capi.tracemalloc_pool_passes(pool) < 100:
                        object()
                    """)

    def test_two_tracing_threads(self):
        # Two interpreters with a GIL each trace at the same time.
        self.run_twice("""
            source = '''if 1:
                import _tracemalloc as t
                for i in range(20):
                    t.start(1 + i % 4)
                    kept = [[str(j)] for j in range(300)]
                    t._get_traces()
                    t.get_traced_memory()
                    t.reset_peak()
                    if i % 3 == 0:
                        t.clear_traces()
                    if i % 5 == 0:
                        t.stop()
                t.start()
                '''
            interps = [_interpreters.create('isolated') for _ in range(3)]
            run_threads([lambda interp=interp: run(interp, source)
                         for interp in interps] + [lambda: exec(source, {})])
            check_sums(*interps)
            """)


class LateTests(ScriptBase):
    """Whoever allocates, frees and asks while something ends."""

    def test_daemon_threads(self):
        # They are stopped at a moment that finalization chooses.  Traced or
        # not, it may free a thread state that its thread is just attaching or
        # detaching (gh-124878).  Without a GIL that is likely enough to be
        # seen, so there it is left to test_daemon_threads_at_exit(), which
        # detaches each thread once.
        how = 'attached' if support.Py_GIL_DISABLED else 'detached'
        for stop in False, True:
            with self.subTest(stop=stop):
                self.run_twice(f"""
                    import gc
                    def blocks():
                        addr = capi.tracemalloc_raw_malloc(50, {how!r})
                        capi.tracemalloc_raw_free(addr, {how!r})
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


# --- Python initialized again -------------------------------------------

@support.requires_subprocess()
class EmbeddingBase(EmbeddingTestsMixin, unittest.TestCase):

    def run_traced(self, *args, malloc=None, tracemalloc='3'):
        env = os.environ.copy()
        for name in 'PYTHONTRACEMALLOC', 'PYTHONMALLOC', 'PYTHONDEVMODE':
            env.pop(name, None)
        if malloc is not None:
            env['PYTHONMALLOC'] = malloc
        if tracemalloc is not None:
            env['PYTHONTRACEMALLOC'] = tracemalloc
        with support.SuppressCrashReport():
            return self.run_embedded_interpreter(
                *args, env=env, timeout=support.LONG_TIMEOUT)


class EmbeddingTests(EmbeddingBase):
    """Python is initialized and finalized several times."""

    def test_subinterpreters(self):
        for malloc in None, 'debug':
            with self.subTest(malloc=malloc):
                self.run_traced('test_repeated_init_and_subinterpreters',
                                malloc=malloc)

    def test_initialize_again(self):
        code = textwrap.dedent("""
            import _tracemalloc as tracemalloc
            assert not tracemalloc.is_tracing()
            assert tracemalloc.get_traceback_limit() == 1
            assert tracemalloc.get_traced_memory() == (0, 0)
            tracemalloc.start(7)
            kept = [object() for _ in range(1000)]
            """)
        self.run_traced('test_repeated_init_exec', code, tracemalloc=None)

    def test_initialize_again_with_option(self):
        code = textwrap.dedent("""
            import _interpreters
            import _tracemalloc as tracemalloc
            assert tracemalloc.is_tracing()
            assert tracemalloc.get_traceback_limit() == 3
            interp = _interpreters.create('isolated')
            excinfo = _interpreters.exec(interp, '''if 1:
                import _tracemalloc as tracemalloc
                assert tracemalloc.is_tracing()
                assert tracemalloc.get_traceback_limit() == 3
                ''')
            assert excinfo is None, excinfo.errdisplay
            """)
        self.run_traced('test_repeated_init_exec', code)

    def test_initialize_again_with_live_interpreters(self):
        code = textwrap.dedent("""
            import _interpreters
            import _tracemalloc as tracemalloc
            assert tracemalloc.get_traced_memory() == (0, 0)
            tracemalloc.start()
            for config in 'legacy', 'isolated':
                interp = _interpreters.create(config)
                excinfo = _interpreters.exec(interp, '''if 1:
                    import _tracemalloc as tracemalloc
                    tracemalloc.start()
                    kept = [object() for _ in range(1000)]
                    ''')
                assert excinfo is None, excinfo.errdisplay
            """)
        self.run_traced('test_repeated_init_exec', code, tracemalloc=None)

    def test_initialize_again_with_detached_threads(self):
        # They are somewhere in Python code, each time.
        code = textwrap.dedent("""
            import _testinternalcapi as capi
            import _tracemalloc as tracemalloc
            tracemalloc.start()
            addr = capi.tracemalloc_raw_malloc(100, 'detached')
            traceback = capi._PyTraceMalloc_GetTraceback(0, addr)
            assert traceback == (('<string>', 5),), traceback
            capi.tracemalloc_raw_free(addr)
            """)
        self.run_traced('test_repeated_init_exec', code, tracemalloc=None)

    def test_initialize_again_with_reference_tracer(self):
        code = textwrap.dedent("""
            import _testinternalcapi as capi
            assert capi.tracemalloc_get_ref_tracer() is None
            capi.tracemalloc_set_ref_tracer()
            assert capi.tracemalloc_get_ref_tracer() is not None
            """)
        self.run_traced('test_repeated_init_exec', code, tracemalloc=None)

    # Ten times, for the next two.
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

    def check_traced(self, *args):
        for malloc, option in (None, None), ('debug', '3'):
            with self.subTest(malloc=malloc, option=option):
                self.run_traced(*args, malloc=malloc, tracemalloc=option)

    def test_ten_times(self):
        self.check_traced('test_repeated_init_exec', *[self.CODE] * 10)

    def test_track_all_the_time(self):
        # Before, after and while Python is initialized and finalized.
        self.check_traced('test_repeated_init_track', self.CODE)


if __name__ == '__main__':
    unittest.main()
