"""One interpreter does not see what another one traces."""

import os
import sys
import textwrap
import threading
import unittest

from test import support
from test.support import import_helper
from test.support import threading_helper
from test.support.tracemalloc_helper import (
    ADDRESS, CONFIGS, DOMAIN, FIRST, MARK, TIMEOUT, UNKNOWN,
    ScriptBase, TestBase, full_address_space, get_lineno)

tracemalloc = import_helper.import_module('_tracemalloc')
capi = import_helper.import_module('_testinternalcapi')


# --- Start, stop and queries --------------------------------------------

class IsolationTests:
    """In an interpreter of the kind of the subclass."""

    def test_import(self):
        interp = self.create(self.config)
        interp.run("""
            import tracemalloc
            tracemalloc.start(2)
            obj = bytearray(1000)
            snapshot = tracemalloc.take_snapshot()
            assert snapshot.traceback_limit == 2
            assert snapshot.statistics('lineno')
            frame = tracemalloc.get_object_traceback(obj)[0]
            assert frame.filename == '<string>', frame
            assert frame.lineno == 4, frame
            tracemalloc.stop()
            """)

    def test_module_is_not_shared(self):
        interp = self.create(self.config)
        tracemalloc.mark = 1
        self.addCleanup(delattr, tracemalloc, 'mark')
        self.assertFalse(interp.ask("hasattr(tracemalloc, 'mark')"))

    def test_start_in_subinterpreter(self):
        interp = self.create(self.config)
        limit = tracemalloc.get_traceback_limit()
        interp.run(f"tracemalloc.start({limit + 7}); obj = object()")
        obj = object()
        self.assertFalse(tracemalloc.is_tracing())
        self.assertEqual(tracemalloc.get_traceback_limit(), limit)
        self.assertEqual(tracemalloc._get_traces(), [])
        self.assertIsNone(tracemalloc._get_object_traceback(obj))
        self.assertEqual(tracemalloc.get_tracemalloc_memory(), 0)
        self.assertTrue(interp.ask("tracemalloc.is_tracing()"))
        self.assertEqual(interp.ask("tracemalloc.get_traceback_limit()"),
                         limit + 7)

    def test_start_in_main(self):
        interp = self.create(self.config)
        tracemalloc.start(7)
        interp.run("obj = object()")
        self.assertFalse(interp.ask("tracemalloc.is_tracing()"))
        self.assertEqual(interp.ask("tracemalloc.get_traceback_limit()"), 1)
        self.assertEqual(interp.ask("tracemalloc._get_traces()"), [])
        self.assertIsNone(
            interp.ask("tracemalloc._get_object_traceback(obj)"))
        self.assertEqual(
            interp.ask("tracemalloc.get_tracemalloc_memory()"), 0)

    def test_start_twice_keeps_limit(self):
        interp = self.create(self.config)
        interp.run("tracemalloc.start(3)")
        tracemalloc.start(5)
        interp.run("tracemalloc.start(9)")
        self.assertEqual(interp.ask("tracemalloc.get_traceback_limit()"), 3)
        self.assertEqual(tracemalloc.get_traceback_limit(), 5)

    def test_limits(self):
        interp = self.create(self.config)
        tracemalloc.start(3)
        interp.run("""
            def allocate(depth):
                if depth:
                    return allocate(depth - 1)
                return bytearray(3000)
            tracemalloc.start(20)
            obj = allocate(9)
            """)

        def allocate(depth):
            if depth:
                return allocate(depth - 1)
            return bytearray(3000)
        obj = allocate(9)
        self.assertEqual(len(tracemalloc._get_object_traceback(obj)), 3)
        self.assertEqual(
            interp.ask("len(tracemalloc._get_object_traceback(obj))"), 11)

        # The last limit stays after stop().
        interp.run("tracemalloc.stop()")
        tracemalloc.stop()
        self.assertEqual(interp.ask("tracemalloc.get_traceback_limit()"), 20)
        self.assertEqual(tracemalloc.get_traceback_limit(), 3)

    def test_stop_in_subinterpreter(self):
        interp = self.create(self.config)
        tracemalloc.start()
        obj = bytearray(MARK)
        traceback = tracemalloc._get_object_traceback(obj)
        interp.run("tracemalloc.start()")
        interp.run("tracemalloc.stop()")
        self.assertTrue(tracemalloc.is_tracing())
        self.assertEqual(tracemalloc._get_object_traceback(obj), traceback)
        later = bytearray(100)
        self.assertIsNotNone(tracemalloc._get_object_traceback(later))

    def test_stop_in_main(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start(); obj = bytearray(100)")
        tracemalloc.stop()
        self.assertTrue(interp.ask("tracemalloc.is_tracing()"))
        interp.run("later = bytearray(100)")
        for name in 'obj', 'later':
            with self.subTest(name):
                self.assertEqual(
                    interp.ask(f"tracemalloc._get_object_traceback({name})"),
                    (('<string>', 1),))

    def test_stop_where_nothing_traces(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.stop()")
        self.assertTrue(tracemalloc.is_tracing())

        other = self.create(self.config)
        other.run("tracemalloc.start()")
        tracemalloc.stop()
        tracemalloc.stop()
        self.assertTrue(other.ask("tracemalloc.is_tracing()"))

    def test_clear_in_subinterpreter(self):
        interp = self.create(self.config)
        tracemalloc.start()
        obj = bytearray(MARK)
        traceback = tracemalloc._get_object_traceback(obj)
        interp.run("tracemalloc.start(); obj = bytearray(100)")
        interp.run("tracemalloc.clear_traces()")
        self.assertIsNone(
            interp.ask("tracemalloc._get_object_traceback(obj)"))
        self.assertEqual(tracemalloc._get_object_traceback(obj), traceback)
        self.assertEqual(self.count(MARK + 1), 1)

    def test_clear_in_main(self):
        interp = self.create(self.config)
        interp.run("tracemalloc.start(); obj = bytearray(100)")
        tracemalloc.start()
        tracemalloc.clear_traces()
        self.assertEqual(
            interp.ask("tracemalloc._get_object_traceback(obj)"),
            (('<string>', 1),))

    def test_traces_are_apart(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        mine = capi.tracemalloc_raw_malloc(MARK)
        self.addCleanup(capi.tracemalloc_raw_free, mine)
        self.assertEqual(self.count(), 1)
        self.assertEqual(self.count(interp=interp), 0)

        interp.run(f"addr = [capi.tracemalloc_raw_malloc({MARK})"
                   f"        for _ in range(3)]")
        self.assertEqual(self.count(), 1)
        self.assertEqual(self.count(interp=interp), 3)
        interp.run("for a in addr: capi.tracemalloc_raw_free(a)")
        self.assertEqual(self.count(), 1)
        self.assertEqual(self.count(interp=interp), 0)

    def test_snapshot_changes_nothing(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        addr = interp.ask(f"capi.tracemalloc_raw_malloc({MARK})")
        for _ in range(3):
            self.assertEqual(self.count(), 0)
            self.assertEqual(self.count(interp=interp), 1)
        self.assert_sums(interp)
        capi.tracemalloc_raw_free(addr)

    def test_tracemalloc_memory(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("""
            tracemalloc.start()
            kept = [object() for _ in range(20_000)]
            """)
        self.assertGreater(interp.ask("tracemalloc.get_tracemalloc_memory()"),
                           20_000)
        # Not a trace more in this interpreter.
        self.assertLess(len(tracemalloc._get_traces()), 10_000)
        interp.run("tracemalloc.stop()")
        self.assertEqual(
            interp.ask("tracemalloc.get_tracemalloc_memory()"), 0)
        self.assertGreater(tracemalloc.get_tracemalloc_memory(), 0)

    def test_threads_of_subinterpreter(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("""
            import threading
            tracemalloc.start()
            def target():
                global obj
                obj = bytearray(100)
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
            """)
        self.assertEqual(
            interp.ask("tracemalloc._get_object_traceback(obj)"),
            (('<string>', 6),))
        self.assert_sums(interp)

    def test_bad_input(self):
        interp = self.create(self.config)
        interp.run("""
            for nframe, error in (
                (0, ValueError),
                (-1, ValueError),
                (2**30, ValueError),
                (2**70, OverflowError),
                ('x', TypeError),
                (1.0, TypeError),
            ):
                try:
                    tracemalloc.start(nframe)
                except error as exc:
                    if error is ValueError:
                        assert 'number of frames' in str(exc), exc
                else:
                    raise AssertionError(f'no error for {nframe!r}')
                assert not tracemalloc.is_tracing()
                assert tracemalloc.get_traceback_limit() == 1
            # The largest that is possible.
            tracemalloc.start(65_535)
            assert tracemalloc.get_traceback_limit() == 65_535
            tracemalloc.stop()
            tracemalloc.start(2)
            try:
                tracemalloc.start(0)
            except ValueError:
                pass
            assert tracemalloc.is_tracing()
            assert tracemalloc.get_traceback_limit() == 2
            """)
        self.assertFalse(tracemalloc.is_tracing())


class LegacyIsolationTests(IsolationTests, TestBase):
    config = 'legacy'


class IsolatedIsolationTests(IsolationTests, TestBase):
    config = 'isolated'


# --- -X tracemalloc -----------------------------------------------------

class InheritanceTests(ScriptBase):
    """-X tracemalloc and PYTHONTRACEMALLOC reach every interpreter."""

    def check(self, script, *args, **env):
        for config in CONFIGS:
            with self.subTest(config=config):
                self.run_script(f'FIRST = {FIRST!r}\n'
                                f'config = {config!r}\n'
                                + textwrap.dedent(script), *args, **env)

    SCRIPT = """
        interps = []
        for _ in range(3):
            interps.append(_interpreters.create(config))
            run(interps[-1], FIRST)
            check_sums(*interps)
        """

    def test_option(self):
        self.check(self.SCRIPT, '-X', 'tracemalloc=3')

    def test_environment(self):
        self.check(self.SCRIPT, PYTHONTRACEMALLOC='3')

    def test_nested(self):
        self.check("""
            interp = _interpreters.create(config)
            run(interp, f'''if 1:
                import _interpreters
                interp = _interpreters.create({config!r})
                excinfo = _interpreters.exec(interp, {FIRST!r})
                assert excinfo is None, excinfo.errdisplay
                _interpreters.destroy(interp)
                ''')
            _interpreters.destroy(interp)
            check_sums()
            """, '-X', 'tracemalloc=3')

    def test_main_stops(self):
        # The option is the process's: stop() in the main interpreter stops
        # no other one, neither one that is there nor one that comes.
        self.check("""
            before = _interpreters.create(config)
            tracemalloc.stop()
            run(before, FIRST)
            after = _interpreters.create(config)
            run(after, FIRST)
            check_sums(before, after)
            _interpreters.destroy(before)
            _interpreters.destroy(after)
            assert tracemalloc.get_traced_memory() == (0, 0)
            """, '-X', 'tracemalloc=3')

    def test_limit_is_of_the_option(self):
        self.check("""
            tracemalloc.stop()
            tracemalloc.start(9)
            run(_interpreters.create(config), FIRST)
            assert tracemalloc.get_traceback_limit() == 9
            """, '-X', 'tracemalloc=3')

    def test_stop_in_subinterpreter(self):
        self.check("""
            interp = _interpreters.create(config)
            run(interp, FIRST)
            run(interp, 'tracemalloc.stop()')
            assert tracemalloc.is_tracing()
            run(_interpreters.create(config), FIRST)
            """, '-X', 'tracemalloc=3')

    def test_start_is_not_inherited(self):
        self.check("""
            tracemalloc.start(3)
            interp = _interpreters.create(config)
            run(interp, '''if 1:
                import _tracemalloc as tracemalloc
                assert not tracemalloc.is_tracing()
                assert tracemalloc.get_traceback_limit() == 1
                assert tracemalloc._get_traces() == []
                ''')
            check_sums(interp)
            """)

    def test_bad_values(self):
        for value in '-1', str(2**30), 'x', '1.5':
            for args, env in (
                (('-X', f'tracemalloc={value}'), {}),
                ((), {'PYTHONTRACEMALLOC': value}),
            ):
                with self.subTest(args=args, env=env):
                    _, stderr = self.run_script('', *args, returncode=1,
                                                **env)
                    self.assertRegex(stderr,
                                     'invalid number of frames|'
                                     'number of frames must be in range')

    def test_zero(self):
        self.check("""
            interp = _interpreters.create(config)
            run(interp, '''if 1:
                import _tracemalloc as tracemalloc
                assert not tracemalloc.is_tracing()
                ''')
            """, '-X', 'tracemalloc=0')


# --- Blocks that die in another interpreter -----------------------------

class ForeignTests:
    """Whoever frees a block, its trace goes."""

    def setUp(self):
        super().setUp()
        self.interp = self.create(self.config)
        tracemalloc.start()
        self.interp.run("tracemalloc.start()")

    # A freed address may be used again at once, even by the question
    # about it: blocks that are gone are known by their sizes.

    def check_where(self, main, interp, size=MARK):
        """How many traces of this size each of the two has."""
        self.assertEqual((self.count(size), self.count(size, self.interp)),
                         (main, interp))
        self.assert_sums(self.interp)

    def check_untracked(self, domain=DOMAIN):
        self.assertIsNone(self.get_traceback(ADDRESS, domain))
        self.assertIsNone(self.ask_traceback(self.interp, ADDRESS, domain))
        self.assert_sums(self.interp)

    def test_free_in_main(self):
        for how in 'attached', 'detached', 'stateless':
            with self.subTest(how):
                addr = self.interp.ask(f"capi.tracemalloc_raw_malloc({MARK})")
                self.check_where(0, 1)
                capi.tracemalloc_raw_free(addr, how, TIMEOUT)
                self.check_where(0, 0)

    def test_free_in_subinterpreter(self):
        for how in 'attached', 'detached', 'stateless':
            with self.subTest(how):
                addr = capi.tracemalloc_raw_malloc(MARK)
                self.check_where(1, 0)
                self.interp.run(f"capi.tracemalloc_raw_free({addr}, {how!r}, "
                                f"{TIMEOUT})")
                self.check_where(0, 0)

    def test_free_in_third(self):
        third = self.create(self.config)
        third.run("tracemalloc.start()")
        for _ in range(10):
            addr = self.interp.ask(f"capi.tracemalloc_raw_malloc({MARK})")
            third.run(f"capi.tracemalloc_raw_free({addr})")
            self.assertEqual(self.count(interp=self.interp), 0)
        self.assert_sums(self.interp, third)

    def test_free_where_nothing_is_traced(self):
        tracemalloc.stop()
        for how in 'attached', 'detached', 'stateless':
            with self.subTest(how):
                addr = self.interp.ask(f"capi.tracemalloc_raw_malloc({MARK})")
                self.check_where(0, 1)
                capi.tracemalloc_raw_free(addr, how, TIMEOUT)
                self.check_where(0, 0)

    def test_reuse_by_another(self):
        # The address of a freed block has the new owner's trace alone.
        for _ in range(100):
            addr = self.interp.ask(f"capi.tracemalloc_raw_malloc({MARK})")
            capi.tracemalloc_raw_free(addr)
            again = capi.tracemalloc_raw_malloc(MARK)
            self.assertIsNotNone(self.get_traceback(again))
            self.assertIsNone(self.ask_traceback(self.interp, again))
            capi.tracemalloc_raw_free(again)
        self.check_where(0, 0)

    def test_realloc_moves_trace(self):
        addr = self.interp.ask(f"capi.tracemalloc_raw_malloc({MARK})")
        self.check_where(0, 1)
        addr = capi.tracemalloc_raw_realloc(addr, MARK + 9)
        lineno = get_lineno() - 1
        self.assertEqual(self.get_traceback(addr), ((__file__, lineno),))
        self.check_where(0, 0)
        self.check_where(1, 0, MARK + 9)

        self.interp.run(
            f"\naddr = capi.tracemalloc_raw_realloc({addr}, {4 * MARK})")
        addr = self.interp.ask("addr")
        self.assertEqual(self.ask_traceback(self.interp, addr),
                         (('<string>', 2),))
        self.check_where(0, 0, MARK + 9)
        self.check_where(0, 1, 4 * MARK)

        addr = self.interp.ask(f"capi.tracemalloc_raw_realloc({addr}, {MARK}, "
                               f"'stateless', {TIMEOUT})")
        self.assertEqual(self.get_traceback(addr), UNKNOWN)
        self.check_where(0, 0, 4 * MARK)
        self.check_where(1, 0)
        self.interp.run(f"capi.tracemalloc_raw_free({addr})")
        self.check_where(0, 0)

    def test_realloc_where_nothing_is_traced(self):
        tracemalloc.stop()
        for size in MARK - 9, 4 * MARK:
            for how in 'attached', 'detached', 'stateless':
                with self.subTest(size=size, how=how):
                    addr = self.interp.ask(
                        f"capi.tracemalloc_raw_malloc({MARK})")
                    self.check_where(0, 1)
                    addr = capi.tracemalloc_raw_realloc(addr, size, how,
                                                        TIMEOUT)
                    self.check_where(0, 0)
                    self.check_where(0, 0, size)
                    self.assertIsNone(self.ask_traceback(self.interp, addr))
                    capi.tracemalloc_raw_free(addr)
                    self.check_where(0, 0)

    def test_realloc_that_fails(self):
        addr = self.interp.ask(f"capi.tracemalloc_raw_malloc({MARK})")
        traceback = self.ask_traceback(self.interp, addr)
        self.assertIsNotNone(traceback)
        for how in 'attached', 'detached', 'stateless':
            with self.subTest(how):
                with full_address_space():
                    self.assertIsNone(capi.tracemalloc_raw_realloc(
                        addr, sys.maxsize, how, TIMEOUT))
                self.assertEqual(self.ask_traceback(self.interp, addr),
                                 traceback)
                self.check_where(0, 1)
        capi.tracemalloc_raw_free(addr)
        self.check_where(0, 0)

    def test_untrack(self):
        for how in 'attached', 'detached', 'stateless':
            with self.subTest(how):
                self.assertEqual(self.interp.ask(
                    f"capi.tracemalloc_track({DOMAIN}, {ADDRESS}, 99)"), 0)
                self.assertEqual(
                    capi.tracemalloc_untrack(DOMAIN, ADDRESS, how, TIMEOUT),
                    0)
                self.check_untracked()
                self.assertEqual(
                    capi.tracemalloc_track(DOMAIN, ADDRESS, 99), 0)
                self.assertEqual(self.interp.ask(
                    f"capi.tracemalloc_untrack({DOMAIN}, {ADDRESS}, "
                    f"{how!r}, {TIMEOUT})"), 0)
                self.check_untracked()

    def test_untrack_object(self):
        # Nobody but its interpreter may free it; anybody may name it.
        addr = self.interp.ask(f"id(obj := bytes({MARK}))")
        self.assertIsNotNone(self.ask_traceback(self.interp, addr))
        self.assertEqual(capi.tracemalloc_track(0, addr, 99), 0)
        self.assertIsNone(self.ask_traceback(self.interp, addr))
        self.assertEqual(self.interp.ask(
            f"capi.tracemalloc_untrack(0, {addr})"), 0)
        self.assertIsNone(capi._PyTraceMalloc_GetTraceback(0, addr))

        addr = self.interp.ask(f"id(obj := bytes({MARK}))")
        self.assertEqual(capi.tracemalloc_untrack(0, addr), 0)
        self.assertIsNone(self.ask_traceback(self.interp, addr))
        self.assert_sums(self.interp)

    def test_untrack_is_of_one_domain(self):
        self.interp.run(f"""
            capi.tracemalloc_track({DOMAIN}, {ADDRESS}, 99)
            capi.tracemalloc_track({DOMAIN + 1}, {ADDRESS}, 98)
            """)
        capi.tracemalloc_untrack(DOMAIN, ADDRESS)
        self.check_untracked()
        self.assertIsNotNone(
            self.ask_traceback(self.interp, ADDRESS, DOMAIN + 1))
        capi.tracemalloc_untrack(DOMAIN + 1, ADDRESS)
        self.check_untracked(DOMAIN + 1)

    def test_blocks_of_dead_interpreter(self):
        # Such a block can still be freed, and its trace is gone before.
        addrs = self.interp.ask(
            "[capi.tracemalloc_raw_malloc(3000) for _ in range(50)]")
        self.interp.destroy()
        self.assert_sums()
        for addr in addrs:
            self.assertIsNone(self.get_traceback(addr))
        for addr in addrs[::2]:
            capi.tracemalloc_raw_free(addr)
        self.assert_sums()
        for addr in addrs[1::2]:
            capi.tracemalloc_raw_free(
                capi.tracemalloc_raw_realloc(addr, 4000))
        self.assert_sums()

    def test_many_blocks(self):
        addrs = self.interp.ask(
            "[capi.tracemalloc_raw_malloc(64) for _ in range(2000)]")
        for addr in addrs[::2]:
            capi.tracemalloc_raw_free(addr)
        self.assert_sums(self.interp)
        self.interp.run(f"for addr in {addrs[1::2]}:\n"
                        f"    capi.tracemalloc_raw_free(addr)")
        self.assert_sums(self.interp)

    def test_concurrent_frees(self):
        # One thread allocates in the other interpreter, this one frees.
        reader, writer = os.pipe()
        source = f"""
            for i in range(2000):
                addr = capi.tracemalloc_raw_malloc({MARK // 10} + i)
                os.write({writer}, addr.to_bytes(8))
            """

        def allocate():
            try:
                self.interp.run(source)
            finally:
                os.close(writer)
        count = 0
        with threading_helper.catch_threading_exception() as cm:
            thread = threading.Thread(target=allocate)
            with threading_helper.start_threads([thread]):
                with open(reader, 'rb') as file:
                    while data := file.read(8):
                        capi.tracemalloc_raw_free(int.from_bytes(data))
                        count += 1
            self.assertIsNone(cm.exc_value)
        self.assertEqual(count, 2000)
        self.assert_sums(self.interp)
        left = self.interp.ask(
            f"[t[1] for t in tracemalloc._get_traces()"
            f" if t[1] in range({MARK // 10}, {MARK // 10 + 2000})]")
        self.assertEqual(left, [])


class LegacyForeignTests(ForeignTests, TestBase):
    config = 'legacy'

    # Legacy interpreters share the allocator of the main interpreter.  But an
    # object belongs to a thread in the free-threaded build.
    if not support.Py_GIL_DISABLED:
        def test_objects(self):
            for size in 300, 3000, MARK:
                with self.subTest(size=size):
                    addr = self.interp.ask(
                        f"capi.tracemalloc_leak(bytes({size}))")
                    size = sys.getsizeof(bytes(size))
                    self.assertGreaterEqual(self.count(size, self.interp), 1)
                    self.assert_sums(self.interp)
                    before = self.count(size, self.interp)
                    capi.tracemalloc_unleak(addr)
                    self.assertEqual(self.count(size, self.interp), before - 1)
                    self.assert_sums(self.interp)

        def test_objects_of_main(self):
            for tracing in True, False:
                for size in 300, 3000, MARK:
                    with self.subTest(tracing=tracing, size=size):
                        addr = capi.tracemalloc_leak(bytes(size))
                        size = sys.getsizeof(bytes(size))
                        before = self.count(size)
                        self.assertGreaterEqual(before, 1)
                        self.interp.run(f"capi.tracemalloc_unleak({addr})")
                        self.assertEqual(self.count(size), before - 1)
                        self.assert_sums(self.interp)
                self.interp.run("tracemalloc.stop()")

    def test_interned_strings(self):
        self.interp.run("""
            import sys
            kept = [sys.intern(f'tracemalloc {i}') for i in range(500)]
            """)
        mine = [sys.intern(f'tracemalloc {i}') for i in range(600)]
        self.assert_sums(self.interp)
        self.interp.run("del kept")
        self.assert_sums(self.interp)
        self.interp.destroy()
        self.assert_sums()
        del mine
        self.assert_sums()


class IsolatedForeignTests(ForeignTests, TestBase):
    config = 'isolated'


if __name__ == '__main__':
    unittest.main()
