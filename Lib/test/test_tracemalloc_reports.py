"""Issues of tracemalloc that were reported: one test for each."""

import unittest

from test.support.tracemalloc_helper import CONFIGS, ScriptBase


class ReportedTests(ScriptBase):
    """One test for each report."""

    def test_gh_101520_state_per_interpreter(self):
        """gh-101520: all interpreters share the tables of traces."""
        for config in CONFIGS:
            with self.subTest(config=config):
                self.run_twice(f"""
                    interp = _interpreters.create({config!r})
                    tracemalloc.start()
                    obj = object()
                    run(interp, '''if 1:
                        import _tracemalloc as tracemalloc
                        assert not tracemalloc.is_tracing()
                        tracemalloc.start(2)
                        tracemalloc.clear_traces()
                        tracemalloc.stop()
                        ''')
                    assert tracemalloc.is_tracing()
                    assert tracemalloc._get_object_traceback(obj)
                    """)

    def test_gh_110029_start_create_stop(self):
        """gh-110029: stop() frees filenames of a subinterpreter."""
        for config in CONFIGS:
            with self.subTest(config=config):
                self.run_twice(f"""
                    tracemalloc.start()
                    interp = _interpreters.create({config!r})
                    run(interp, 'x = [object() for _ in range(100)]')
                    tracemalloc.stop()
                    tracemalloc.start()
                    _interpreters.destroy(interp)
                    tracemalloc.stop()
                    """)
                self.run_twice(f"""
                    tracemalloc.start()
                    _interpreters.destroy(_interpreters.create({config!r}))
                    tracemalloc.stop()
                    """)

    def test_gh_134604_option_create_exit(self):
        """gh-134604: -X tracemalloc and a subinterpreter crash at exit."""
        for config in CONFIGS:
            with self.subTest(config=config):
                self.run_twice(f"""
                    interp = _interpreters.create({config!r})
                    """, '-X', 'tracemalloc')

    def test_gh_144172_start_create_run_destroy_exit(self):
        """gh-144172: filenames are used after the end of an interpreter."""
        for config in CONFIGS:
            with self.subTest(config=config):
                self.run_twice(f"""
                    tracemalloc.start()
                    for _ in range(2):
                        interp = _interpreters.create({config!r})
                        run(interp, 'import json; x = json.loads("[1, 2]")')
                        _interpreters.destroy(interp)
                    tracemalloc._get_traces()
                    """)

    def test_gh_119450_import_in_isolated(self):
        """gh-119450: _tracemalloc cannot be imported in all interpreters."""
        self.run_twice("""
            for config in 'isolated', 'legacy', 'isolated':
                interp = _interpreters.create(config)
                run(interp, '''if 1:
                    import tracemalloc
                    tracemalloc.start()
                    tracemalloc.take_snapshot()
                    ''')
            """)

    def test_gh_155725_raw_hook_without_gil(self):
        """gh-155725: the raw hooks wait for the GIL."""
        self.run_twice("""
            tracemalloc.start()
            passes = capi.tracemalloc_run_pool('raw', 4, 500, True, TIMEOUT)
            assert passes == 2000, passes
            check_sums()
            """)

    def test_gh_96071_gilstate_ensure(self):
        """gh-96071: PyGILState_Ensure() in a new thread deadlocks."""
        self.run_twice("""
            tracemalloc.start()
            for _ in range(10):
                passes = capi.tracemalloc_run_pool('gilstate', 4, 20, False,
                                                   TIMEOUT)
                assert passes == 80, passes
            check_sums()
            """)

    def test_gh_130093_track_in_pool(self):
        """gh-130093: PyTraceMalloc_Track() in a pool, waited for with GIL."""
        self.run_twice("""
            tracemalloc.start()
            passes = capi.tracemalloc_run_pool('track', 4, 500, True, TIMEOUT)
            assert passes == 2000, passes
            check_sums()
            """)

    def check_stop_race(self, work):
        self.run_twice(f"""
            interp = _interpreters.create('legacy')
            pool = capi.tracemalloc_pool_start({work!r}, 2)
            joined = threading.Thread(target=capi.tracemalloc_pool_join,
                                      args=(pool,))
            joined.start()
            for i in range(150):
                tracemalloc.start()
                kept = [bytearray(1000) for _ in range(20)]
                if i % 30 == 0:
                    run(interp, 'x = [object() for _ in range(50)]')
                tracemalloc.stop()
            for _ in range(1000):
                tracemalloc.start()
                tracemalloc.stop()
            capi.tracemalloc_pool_stop(pool, TIMEOUT)
            joined.join()
            assert tracemalloc.get_traced_memory() == (0, 0)
            """)

    def test_gh_128679_stop_race_raw(self):
        """gh-128679: stop() while other threads allocate."""
        self.check_stop_race('raw')

    def test_gh_131566_stop_race_track(self):
        """gh-131566: stop() while other threads track memory."""
        self.check_stop_race('track')

    def test_gh_128679_stop_race_in_interpreters(self):
        """gh-128679: several interpreters start and stop, others allocate."""
        self.run_twice("""
            source = '''if 1:
                import _tracemalloc as tracemalloc
                for _ in range(40):
                    tracemalloc.start()
                    kept = [bytearray(1000) for _ in range(20)]
                    tracemalloc.stop()
                '''
            other = 'for _ in range(4000): bytearray(2000)'
            interps = [_interpreters.create('isolated') for _ in range(3)]
            pool = capi.tracemalloc_pool_start('raw', 2)
            run_threads([lambda: run(interps[0], source),
                         lambda: run(interps[1], source),
                         lambda: run(interps[2], other),
                         lambda: exec(source)])
            capi.tracemalloc_pool_stop(pool, TIMEOUT)
            assert tracemalloc.get_traced_memory() == (0, 0)
            """)

    # What the threads of gh-126314 and gh-126315 do, at the same time.
    THREADS = """
        import random
        import tracemalloc as module

        def target(seed):
            rand = random.Random(seed)
            actions = [
                tracemalloc.start,
                tracemalloc.start,
                tracemalloc.stop,
                tracemalloc.clear_traces,
                tracemalloc.get_traced_memory,
                tracemalloc.reset_peak,
                tracemalloc.is_tracing,
                tracemalloc.get_tracemalloc_memory,
                tracemalloc._get_traces,
                {action},
            ]
            for i in range({loops}):
                kept = [[str(i)] for i in range(30)]
                rand.choice(actions)()
                tracemalloc._get_object_traceback(kept)
                del kept
        run_threads([lambda seed=seed: target(seed) for seed in range(4)])
        tracemalloc.stop()
        assert tracemalloc.get_traced_memory() == (0, 0)
        tracemalloc.start()
        check_sums()
        """

    def test_gh_126314_start_stop_in_threads(self):
        """gh-126314: start() and stop() in threads (free threading)."""
        self.run_twice(self.THREADS.format(action='tracemalloc.stop',
                                           loops=100))

    def test_gh_126315_snapshot_in_threads(self):
        """gh-126315: take_snapshot() in threads (free threading)."""
        self.run_twice(self.THREADS.format(
            action='lambda: module.is_tracing() and module.take_snapshot()',
            loops=60).replace(
                'tracemalloc.stop,', 'lambda: None,', 1))

    def test_gh_139116_stop_while_threads_allocate(self):
        """gh-139116: stop() deadlocks with other threads (free threading)."""
        self.run_twice("""
            import gc
            done = threading.Event()
            def target():
                while not done.is_set():
                    [str(i) for i in range(20)]
            def switch():
                try:
                    for _ in range(50):
                        tracemalloc.start()
                        [str(i) for i in range(20)]
                        gc.collect(0)
                        tracemalloc.stop()
                finally:
                    done.set()
            run_threads([target, target, switch])
            """)

    def test_gh_144763_line_lookup_in_threads(self):
        """gh-144763: deadlock in the lookup of a line (free threading)."""
        self.run_twice("""
            import gc
            source = 'def f():' + chr(10)
            source += ' x = [[]]; y = {}' + chr(10)
            source += (' x.append(str(len(x)))' + chr(10)) * 100
            exec(source)
            def target():
                for _ in range(10):
                    f()
                    for _ in f.__code__.co_lines():
                        pass
            def collect():
                for _ in range(10):
                    gc.collect()
                    tracemalloc._get_traces()
                    tracemalloc.clear_traces()
            tracemalloc.start(10)
            run_threads([target, target, target, collect])
            tracemalloc.stop()
            """)

    def test_gh_143057_track_takes_no_lock(self):
        """gh-143057: PyTraceMalloc_Track() locks when nothing traces."""
        self.run_twice("""
            for how in 'attached', 'detached', 'stateless':
                # This thread has the GIL and waits for the other one.
                res = capi.tracemalloc_track(5, 0x1230, 10, how, TIMEOUT)
                assert res == -2, res
                res = capi.tracemalloc_untrack(5, 0x1230, how, TIMEOUT)
                assert res == -2, res
            passes = capi.tracemalloc_run_pool('track', 4, 500, True, TIMEOUT)
            assert passes == 2000, passes
            # Nor one of tracemalloc's own.
            args = 5, 0x1230
            def track():
                how = 'stateless', TIMEOUT
                return (capi.tracemalloc_track(*args, 10, *how),
                        capi.tracemalloc_untrack(*args, *how))
            res = capi.tracemalloc_call_locked(track)
            assert res == (-2, -2), res
            """)

    def test_gh_129185_track_after_finalization(self):
        """gh-129185: PyTraceMalloc_Track() and _Untrack() at the end."""
        for args in (), ('-X', 'tracemalloc'):
            for malloc in None, 'debug':
                with self.subTest(args=args, malloc=malloc):
                    _, stderr = self.run_script("""
                        capi.tracemalloc_track_at_exit()
                        """, *args, malloc=malloc)
                    self.assertIn('after finalization: '
                                  'track -2, untrack -2', stderr)

    def test_gh_129185_track_late(self):
        """gh-129185: PyTraceMalloc_Track() in a destructor at the end."""
        self.run_twice("""
            from test import support
            class Late:
                def __del__(self, capi=capi):
                    for how in 'attached', 'detached', 'stateless':
                        capi.tracemalloc_track(5, 0x1230, 10, how)
                        capi.tracemalloc_untrack(5, 0x1230, how)
            support.late_deletion(Late())
            tracemalloc.start()
            """)


if __name__ == '__main__':
    unittest.main()
