"""Tests of tracemalloc in several interpreters and in native threads.

What one interpreter alone sees is tested by test_tracemalloc.
"""

import ast
import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import unittest

from test import support
from test.support import import_helper
from test.support import script_helper
from test.support import threading_helper
from test.test_embed import EmbeddingTestsMixin

# Raise SkipTest where they are not supported.
_interpreters = import_helper.import_module('_interpreters')
tracemalloc = import_helper.import_module('_tracemalloc')
capi = import_helper.import_module('_testinternalcapi')
mmap = import_helper.import_module('mmap')
threading_helper.requires_working_threading(module=True)


CONFIGS = ('legacy', 'isolated')
UNKNOWN = (('<unknown>', 0),)

# A domain for PyTraceMalloc_Track(), and an address which no allocator
# returns.
DOMAIN = 0xbeef
ADDRESS = 0x1230

# A block that no other block of the test has the size of.
MARK = 1_234_567
MB = 1 << 20

# How long a native thread may take: less than a whole script.
TIMEOUT = support.LONG_TIMEOUT / 2

ASAN_FORK_BUG = 'libasan: a child finds locks of threads that it has not'


@contextlib.contextmanager
def full_address_space():
    """No block of sys.maxsize bytes can be had, be addresses of 32 bits."""
    with contextlib.ExitStack() as mappings:
        with contextlib.suppress(OSError):
            while True:
                mappings.enter_context(mmap.mmap(-1, sys.maxsize // 4))
        yield


class Subinterpreter:
    """An interpreter that runs source code and answers questions."""

    def __init__(self, config):
        self.id = _interpreters.create(config)
        self.pipe = os.pipe()
        try:
            self.run("""
                import os
                import _tracemalloc as tracemalloc
                import _testinternalcapi as capi
                """)
        except BaseException:
            self.destroy()
            raise

    def run(self, source):
        excinfo = _interpreters.exec(self.id, textwrap.dedent(source))
        if excinfo is not None:
            raise AssertionError(f'in interpreter {self.id}: '
                                 f'{excinfo.errdisplay}')

    def ask(self, expr):
        """Evaluate an expression.  Its value must survive repr()."""
        reader, writer = self.pipe
        self.run(f"os.write({writer}, repr({expr}).encode())")
        return ast.literal_eval(os.read(reader, 60_000).decode())

    def destroy(self):
        if self.id is not None:
            _interpreters.destroy(self.id)
            self.id = None
            for fd in self.pipe:
                os.close(fd)


class TestBase(unittest.TestCase):
    """Tests in this process: nothing traces before, nothing traces after."""

    def setUp(self):
        if tracemalloc.is_tracing():
            self.skipTest("tracemalloc must be stopped before the test")
        self.addCleanup(tracemalloc.stop)

    def create(self, config='isolated'):
        interp = Subinterpreter(config)
        self.addCleanup(interp.destroy)
        return interp

    def assert_sums(self, *interps):
        """The traces of all tracing interpreters add up to the total.

        The current interpreter need not be given.
        """
        ids = [interp.id for interp in interps]
        total, traced = capi.tracemalloc_sums(*ids)
        self.assertEqual(total, traced)

    def get_traceback(self, addr, domain=0):
        return capi._PyTraceMalloc_GetTraceback(domain, addr)

    def ask_traceback(self, interp, addr, domain=0):
        return interp.ask(f"capi._PyTraceMalloc_GetTraceback({domain}, "
                          f"{addr})")

    def count(self, size=MARK, interp=None):
        """How many traces of this size an interpreter has."""
        expr = f"[t[1] for t in tracemalloc._get_traces()].count({size})"
        return eval(expr) if interp is None else interp.ask(expr)


def get_lineno():
    return sys._getframe(1).f_lineno


# --- One interpreter does not see another --------------------------------

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


# --- get_traced_memory() and reset_peak() --------------------------------

class PairTests:
    """The current size and the peak belong to the process."""

    def test_nothing_traces(self):
        interp = self.create(self.config)
        self.assertEqual(tracemalloc.get_traced_memory(), (0, 0))
        self.assertEqual(interp.ask("tracemalloc.get_traced_memory()"),
                         (0, 0))
        tracemalloc.reset_peak()
        tracemalloc.clear_traces()
        self.assertEqual(tracemalloc.get_traced_memory(), (0, 0))

    def test_read_where_nothing_is_traced(self):
        # Neither this nor the second interpreter adds to the pair.
        interp = self.create(self.config)
        second = self.create(self.config)
        interp.run(f"""
            tracemalloc.start()
            obj = bytearray({MB})
            del obj
            obj = bytearray({MB // 2})
            """)
        size, peak = tracemalloc.get_traced_memory()
        self.assertGreater(size, MB // 2)
        self.assertGreater(peak, size)
        self.assertEqual(second.ask("tracemalloc.get_traced_memory()"),
                         (size, peak))
        self.assertEqual(tracemalloc.get_traced_memory(), (size, peak))
        self.assert_sums(interp, second)

    def test_read_everywhere(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        mine = capi.tracemalloc_raw_malloc(3 * MB)
        its = interp.ask(f"capi.tracemalloc_raw_malloc({5 * MB})")
        self.assertGreater(tracemalloc.get_traced_memory()[0], 8 * MB)
        self.assertGreater(interp.ask("tracemalloc.get_traced_memory()")[0],
                           8 * MB)
        interp.run(f"capi.tracemalloc_raw_free({its})")
        self.assertLess(tracemalloc.get_traced_memory()[0], 8 * MB)
        self.assertLess(interp.ask("tracemalloc.get_traced_memory()")[0],
                        8 * MB)
        capi.tracemalloc_raw_free(mine)

    def test_sums(self):
        # The one invariant, after everything that changes it.
        first = self.create(self.config)
        second = self.create('isolated')
        self.assert_sums(first, second)
        tracemalloc.start()
        self.assert_sums(first, second)
        for interp in first, second:
            interp.run(f"""
                tracemalloc.start(5)
                kept = [str(i) * 10 for i in range(500)]
                kept.append(bytearray({MB}))
                addr = capi.tracemalloc_raw_malloc(4321)
                capi.tracemalloc_track({DOMAIN}, {ADDRESS} + id(kept), 77)
                """)
            self.assert_sums(first, second)
        kept = [str(i) * 20 for i in range(500)]
        self.assert_sums(first, second)
        del kept
        first.run("del kept[::2]")
        self.assert_sums(first, second)
        second.run("tracemalloc.clear_traces()")
        self.assert_sums(first, second)
        first.run("capi.tracemalloc_raw_free(addr)")
        second.run("capi.tracemalloc_raw_free(addr)")
        self.assert_sums(first, second)
        tracemalloc.stop()
        self.assert_sums(first, second)
        tracemalloc.start()
        self.assert_sums(first, second)
        second.run("tracemalloc.stop()")
        self.assert_sums(first, second)
        first.destroy()
        self.assert_sums(second)
        tracemalloc.stop()
        self.assertEqual(tracemalloc.get_traced_memory(), (0, 0))

    def test_last_stop(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run(f"tracemalloc.start(); obj = bytearray({MB})")
        tracemalloc.stop()
        self.assertGreater(tracemalloc.get_traced_memory()[0], MB)
        interp.run("tracemalloc.stop()")
        self.assertEqual(tracemalloc.get_traced_memory(), (0, 0))
        self.assertEqual(interp.ask("tracemalloc.get_traced_memory()"),
                         (0, 0))

    def test_start_after_all_stopped(self):
        interp = self.create(self.config)
        interp.run(f"tracemalloc.start(); obj = bytearray({MB})")
        interp.run("tracemalloc.stop()")
        tracemalloc.start()
        # Nothing of the first time is left.
        self.assertLess(tracemalloc.get_traced_memory()[1], MB)
        self.assert_sums(interp)

    def test_clear_traces_takes_own_share(self):
        first = self.create(self.config)
        second = self.create(self.config)
        first.run(f"tracemalloc.start(); obj = bytearray({4 * MB})")
        second.run(f"tracemalloc.start(); obj = bytearray({8 * MB})")
        size, peak = tracemalloc.get_traced_memory()
        self.assertGreater(size, 12 * MB)

        size, peak = first.ask(
            "capi.tracemalloc_call_and_read('clear_traces')")
        self.assertEqual(size, peak)
        self.assertGreater(size, 8 * MB)
        self.assertLess(size, 12 * MB)
        self.assert_sums(first, second)

        size, peak = second.ask(
            "capi.tracemalloc_call_and_read('clear_traces')")
        self.assertEqual(size, peak)
        self.assertLess(size, MB)
        self.assert_sums(first, second)

    def test_clear_traces_where_nothing_is_traced(self):
        interp = self.create(self.config)
        interp.run(f"""
            tracemalloc.start()
            obj = bytearray({MB})
            del obj
            """)
        pair = tracemalloc.get_traced_memory()
        self.assertGreater(pair[1] - pair[0], MB // 2)
        tracemalloc.clear_traces()
        self.assertEqual(tracemalloc.get_traced_memory(), pair)

    def test_reset_peak_where_nothing_is_traced(self):
        interp = self.create(self.config)
        interp.run(f"""
            tracemalloc.start()
            obj = bytearray({MB})
            del obj
            """)
        before = tracemalloc.get_traced_memory()
        self.assertGreater(before[1] - before[0], MB // 2)
        tracemalloc.reset_peak()
        self.assertEqual(tracemalloc.get_traced_memory(),
                         (before[0], before[0]))

    def test_reset_peak_in_subinterpreter(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        obj = bytearray(MB)
        del obj
        size, peak = interp.ask(
            "capi.tracemalloc_call_and_read('reset_peak')")
        self.assertEqual(size, peak)
        size, peak = tracemalloc.get_traced_memory()
        self.assertLess(peak - size, MB // 2)

    def test_peak_is_exact(self):
        interp = self.create(self.config)
        sizes = (1, 100, 512, 513, 40_000, 3 * MB)

        # Blocks of an interpreter that does not trace do not count.
        interp.run("tracemalloc.start()")
        self.assertEqual([capi.tracemalloc_peak_of(size) for size in sizes],
                         [0] * len(sizes))
        tracemalloc.start()
        for size in sizes:
            with self.subTest(size=size):
                self.assertEqual(capi.tracemalloc_peak_of(size), size)
                self.assertEqual(
                    interp.ask(f"capi.tracemalloc_peak_of({size})"), size)
        interp.run("tracemalloc.stop()")
        self.assertEqual(
            interp.ask(f"[capi.tracemalloc_peak_of(n) for n in {sizes}]"),
            [0] * len(sizes))

    def test_peak_without_lock(self):
        # Below the peak nobody asks for the lock of the counters.  With every
        # query it is asked for once, by everybody.
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        for i in range(3):
            capi.tracemalloc_use_credit()
            interp.run("capi.tracemalloc_use_credit()")
            self.assert_sums(interp)
            interp.run("tracemalloc.reset_peak()")

    def test_peak_is_of_the_sum(self):
        # 4 MB here and then 4 MB there is no more than 4 MB at a time.
        first = self.create(self.config)
        second = self.create(self.config)
        for interp in first, second:
            interp.run("tracemalloc.start()")
        tracemalloc.reset_peak()
        low = tracemalloc.get_traced_memory()[0]
        for interp in first, second, first, second:
            addr = interp.ask(f"capi.tracemalloc_raw_malloc({4 * MB})")
            interp.run(f"capi.tracemalloc_raw_free({addr})")
        peak = tracemalloc.get_traced_memory()[1]
        self.assertGreaterEqual(peak, low + 4 * MB)
        self.assertLess(peak, low + 5 * MB)

        # At a time it is 8 MB.
        addrs = [interp.ask(f"capi.tracemalloc_raw_malloc({4 * MB})")
                 for interp in (first, second)]
        for addr in addrs:
            capi.tracemalloc_raw_free(addr)
        peak = tracemalloc.get_traced_memory()[1]
        self.assertGreaterEqual(peak, low + 8 * MB)
        self.assertLess(peak, low + 9 * MB)
        self.assert_sums(first, second)


class LegacyPairTests(PairTests, TestBase):
    config = 'legacy'


class IsolatedPairTests(PairTests, TestBase):
    config = 'isolated'


# --- The raw domain and native threads -----------------------------------

class RawTests:
    """Whose block it is, and with what traceback."""

    def test_detached(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        for name in 'malloc', 'calloc':
            with self.subTest(name):
                interp.run(f"""
                    def allocate():
                        return capi.tracemalloc_raw_{name}({MARK}, 'detached')
                    addr = allocate()
                    """)
                addr = interp.ask("addr")
                self.assertEqual(self.ask_traceback(interp, addr),
                                 (('<string>', 3),))
                self.assertEqual(self.count(interp=interp), 1)
                self.assertIsNone(self.get_traceback(addr))
                self.assert_sums(interp)
                interp.run("capi.tracemalloc_raw_free(addr, 'detached')")
                self.assertEqual(self.count(interp=interp), 0)
                self.assert_sums(interp)

    def test_detached_realloc(self):
        interp = self.create(self.config)
        interp.run("""
            tracemalloc.start(2)
            def allocate():
                addr = capi.tracemalloc_raw_malloc(100, 'detached')
                return capi.tracemalloc_raw_realloc(addr, 4000, 'detached')
            addr = allocate()
            """)
        self.assertEqual(self.ask_traceback(interp, interp.ask("addr")),
                         (('<string>', 5), ('<string>', 6)))
        interp.run("capi.tracemalloc_raw_free(addr, 'detached')")
        self.assert_sums(interp)

    def test_stateless(self):
        # A thread without a thread state belongs to the main interpreter,
        # whoever has started it.
        interp = self.create(self.config)
        tracemalloc.start(3)
        interp.run("tracemalloc.start(3)")
        addr = interp.ask(
            f"capi.tracemalloc_raw_malloc({MARK}, 'stateless', {TIMEOUT})")
        self.assertEqual(self.get_traceback(addr), UNKNOWN)
        self.assertEqual(self.count(), 1)
        self.assertEqual(self.count(interp=interp), 0)
        self.assert_sums(interp)
        addr = interp.ask(f"capi.tracemalloc_raw_realloc({addr}, {MARK + 9}, "
                          f"'stateless', {TIMEOUT})")
        self.assertEqual(self.get_traceback(addr), UNKNOWN)
        self.assertEqual(self.count(), 0)
        self.assertEqual(self.count(MARK + 9), 1)
        self.assertEqual(self.count(MARK + 9, interp), 0)
        self.assert_sums(interp)
        capi.tracemalloc_raw_free(addr, 'stateless', TIMEOUT)
        self.assertEqual(self.count(MARK + 9), 0)
        self.assert_sums(interp)

    def test_stateless_when_main_does_not_trace(self):
        interp = self.create(self.config)
        interp.run("tracemalloc.start()")
        # The main interpreter does not add to the pair, the other one sleeps.
        pair = tracemalloc.get_traced_memory()
        addr = capi.tracemalloc_raw_malloc(100, 'stateless', TIMEOUT)
        self.assertEqual(tracemalloc.get_traced_memory(), pair)
        addr = capi.tracemalloc_raw_realloc(addr, 200, 'stateless', TIMEOUT)
        self.assertEqual(tracemalloc.get_traced_memory(), pair)
        self.assertIsNone(self.get_traceback(addr))
        self.assertIsNone(self.ask_traceback(interp, addr))
        pair = tracemalloc.get_traced_memory()
        capi.tracemalloc_raw_free(addr, 'stateless', TIMEOUT)
        self.assertEqual(tracemalloc.get_traced_memory(), pair)

    def test_track_how(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        for how in 'attached', 'detached':
            with self.subTest(how):
                interp.run(f"""
                    res = capi.tracemalloc_track({DOMAIN}, {ADDRESS}, 50,
                                                 {how!r})
                    """)
                self.assertEqual(interp.ask("res"), 0)
                self.assertEqual(
                    self.ask_traceback(interp, ADDRESS, DOMAIN),
                    (('<string>', 2),))
                self.assertIsNone(self.get_traceback(ADDRESS, DOMAIN))
                self.assert_sums(interp)
                self.assertEqual(
                    interp.ask(f"capi.tracemalloc_untrack({DOMAIN}, "
                               f"{ADDRESS}, {how!r})"), 0)
                self.assertIsNone(
                    self.ask_traceback(interp, ADDRESS, DOMAIN))
                self.assert_sums(interp)

    def test_track_stateless(self):
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        self.assertEqual(
            interp.ask(f"capi.tracemalloc_track({DOMAIN}, {ADDRESS}, 50, "
                       f"'stateless', {TIMEOUT})"), 0)
        self.assertEqual(self.get_traceback(ADDRESS, DOMAIN), UNKNOWN)
        self.assertIsNone(self.ask_traceback(interp, ADDRESS, DOMAIN))
        self.assert_sums(interp)
        self.assertEqual(
            capi.tracemalloc_untrack(DOMAIN, ADDRESS, 'stateless', TIMEOUT),
            0)
        self.assertIsNone(self.get_traceback(ADDRESS, DOMAIN))
        self.assert_sums(interp)

    def test_track_where_nothing_is_traced(self):
        interp = self.create(self.config)
        hows = ('attached', 'detached', 'stateless')
        args = (DOMAIN, ADDRESS)

        # The main interpreter traces, this one does not.
        tracemalloc.start()
        for how in hows[:2]:
            with self.subTest(how=how):
                self.assertEqual(
                    interp.ask(f"capi.tracemalloc_track(*{args}, 50, "
                               f"{how!r})"), -2)
                self.assertEqual(
                    interp.ask(f"capi.tracemalloc_untrack(*{args}, "
                               f"{how!r})"), 0)
        tracemalloc.stop()

        # The other way round.  Untrack finds whatever trace there is.
        interp.run("tracemalloc.start()")
        for how in hows:
            with self.subTest(how=how):
                self.assertEqual(
                    capi.tracemalloc_track(*args, 50, how, TIMEOUT), -2)
                self.assertEqual(
                    interp.ask(f"capi.tracemalloc_track(*{args}, 60)"), 0)
                self.assertEqual(
                    capi.tracemalloc_track(*args, 50, how, TIMEOUT), -2)
                self.assertEqual(
                    capi.tracemalloc_untrack(*args, how, TIMEOUT), 0)
                self.assertIsNone(
                    self.ask_traceback(interp, ADDRESS, DOMAIN))
                self.assert_sums(interp)

        # Nobody traces.
        interp.run("tracemalloc.stop()")
        for how in hows:
            with self.subTest(how=how):
                self.assertEqual(
                    capi.tracemalloc_track(*args, 50, how, TIMEOUT), -2)
                self.assertEqual(
                    capi.tracemalloc_untrack(*args, how, TIMEOUT), -2)
                self.assertEqual(
                    interp.ask(f"capi.tracemalloc_track(*{args}, 50, "
                               f"{how!r}, {TIMEOUT})"), -2)
                self.assertEqual(
                    interp.ask(f"capi.tracemalloc_untrack(*{args}, "
                               f"{how!r}, {TIMEOUT})"), -2)


class LegacyRawTests(RawTests, TestBase):
    config = 'legacy'


class IsolatedRawTests(RawTests, TestBase):
    config = 'isolated'


class MainRawTests(TestBase):
    """The same in a process with one interpreter."""

    def test_detached_frames(self):
        def allocate():
            return capi.tracemalloc_raw_malloc(100, 'detached')
        tracemalloc.start(2)
        addr = allocate()
        lineno = get_lineno() - 1
        traceback = self.get_traceback(addr)
        capi.tracemalloc_raw_free(addr, 'detached')
        self.assertEqual(
            traceback,
            ((__file__, allocate.__code__.co_firstlineno + 1),
             (__file__, lineno)))
        self.assert_sums()

    def test_stateless(self):
        tracemalloc.start(5)
        for func in capi.tracemalloc_raw_malloc, capi.tracemalloc_raw_calloc:
            with self.subTest(func.__name__):
                addr = func(MARK, 'stateless', TIMEOUT)
                self.assertEqual(self.get_traceback(addr), UNKNOWN)
                self.assertEqual(self.count(), 1)
                addr = capi.tracemalloc_raw_realloc(addr, MARK + 9,
                                                    'stateless', TIMEOUT)
                self.assertEqual(self.get_traceback(addr), UNKNOWN)
                self.assertEqual(self.count(), 0)
                self.assertEqual(self.count(MARK + 9), 1)
                self.assert_sums()
                capi.tracemalloc_raw_free(addr, 'stateless', TIMEOUT)
                self.assertEqual(self.count(MARK + 9), 0)
                self.assert_sums()

    def test_stateless_total_nframe(self):
        tracemalloc.start()
        addr = capi.tracemalloc_raw_malloc(MARK, 'stateless', TIMEOUT)
        traces = [trace for trace in tracemalloc._get_traces()
                  if trace[1] == MARK]
        capi.tracemalloc_raw_free(addr)
        self.assertEqual(traces, [(0, MARK, UNKNOWN, 1)])

    def test_no_thread_state_is_made(self):
        # A hook in a thread without a thread state leaves it without one:
        # nothing is allocated but the block.
        tracemalloc.start()
        tracemalloc.clear_traces()
        addr = capi.tracemalloc_raw_malloc(MARK, 'stateless', TIMEOUT)
        unknown = [trace for trace in tracemalloc._get_traces()
                   if trace[2] == UNKNOWN]
        capi.tracemalloc_raw_free(addr, 'stateless', TIMEOUT)
        self.assertEqual(unknown, [(0, MARK, UNKNOWN, 1)])
        self.assert_sums()

    def test_realloc_from_null(self):
        tracemalloc.start()
        for how in 'attached', 'detached', 'stateless':
            with self.subTest(how):
                addr = capi.tracemalloc_raw_realloc(0, MARK, how, TIMEOUT)
                self.assertEqual(self.count(), 1)
                self.assert_sums()
                capi.tracemalloc_raw_free(addr, how, TIMEOUT)
                self.assertEqual(self.count(), 0)
                self.assert_sums()

    def test_realloc_that_fails(self):
        # The block is still there, and so is its trace.
        tracemalloc.start()
        addr = capi.tracemalloc_raw_malloc(MARK)
        lineno = get_lineno() - 1
        for how in 'attached', 'detached', 'stateless':
            with self.subTest(how):
                with full_address_space():
                    self.assertIsNone(capi.tracemalloc_raw_realloc(
                        addr, sys.maxsize, how, TIMEOUT))
                self.assertEqual(self.get_traceback(addr),
                                 ((__file__, lineno),))
                self.assertEqual(self.count(), 1)
                self.assert_sums()
        capi.tracemalloc_raw_free(addr)
        self.assert_sums()

    def test_handoff(self):
        # The trace of a new block is not taken for that of a block
        # which was at the same address.
        tracemalloc.start()
        self.assertEqual(capi.tracemalloc_handoff(20_000, TIMEOUT), 0)
        self.assert_sums()


# --- Blocks that die in another interpreter ------------------------------

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


# --- The end of an interpreter -------------------------------------------

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


# --- A user's reference tracer -------------------------------------------

class RefTracerTests(TestBase):
    """tracemalloc has a PyRefTracer of its own, and leaves a user's alone."""

    def setUp(self):
        super().setUp()
        if capi.tracemalloc_get_ref_tracer() is not None:
            self.skipTest("there is a reference tracer")
        self.addCleanup(capi.tracemalloc_unset_ref_tracer)

    def check_counts(self):
        before = capi.tracemalloc_get_ref_tracer()
        self.assertIsInstance(before, tuple)
        for _ in range(1000):
            object()
        after = capi.tracemalloc_get_ref_tracer()
        self.assertIsInstance(after, tuple)
        self.assertGreaterEqual(after[0] - before[0], 1000)
        self.assertGreaterEqual(after[1] - before[1], 1000)

    def test_set_before_start(self):
        capi.tracemalloc_set_ref_tracer()
        self.check_counts()
        tracemalloc.start()
        self.check_counts()
        tracemalloc.stop()
        self.check_counts()
        tracemalloc.start()
        tracemalloc.start()
        self.check_counts()
        tracemalloc.stop()
        self.check_counts()

    def test_set_while_tracing(self):
        tracemalloc.start()
        capi.tracemalloc_set_ref_tracer()
        self.check_counts()
        tracemalloc.stop()
        self.check_counts()

    def test_unset_while_tracing(self):
        capi.tracemalloc_set_ref_tracer()
        tracemalloc.start()
        capi.tracemalloc_unset_ref_tracer()
        self.assertIsNone(capi.tracemalloc_get_ref_tracer())
        tracemalloc.stop()
        self.assertIsNone(capi.tracemalloc_get_ref_tracer())

    def test_none_set(self):
        tracemalloc.start()
        self.assertIsNone(capi.tracemalloc_get_ref_tracer())
        tracemalloc.stop()
        self.assertIsNone(capi.tracemalloc_get_ref_tracer())

    def test_several_interpreters(self):
        interp = self.create('isolated')
        capi.tracemalloc_set_ref_tracer()
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        self.check_counts()
        tracemalloc.stop()
        self.check_counts()
        interp.run("tracemalloc.stop()")
        self.check_counts()

    def test_reused_objects(self):
        # bpo-35053: an object from a free list has the traceback of its
        # last creation, whether or not there is a user's tracer.
        for user in False, True:
            with self.subTest(user=user):
                if user:
                    capi.tracemalloc_set_ref_tracer()
                support.gc_collect()
                with support.disable_gc():
                    tracemalloc.start()
                    # More than there are in the free list already.  The
                    # last ones, which are traced, go back there first.
                    lists = [[None] for _ in range(1000)]
                    while lists:
                        lists.pop()
                    again = [None]
                    lineno = get_lineno() - 1
                    traceback = tracemalloc._get_object_traceback(again)
                    tracemalloc.stop()
                self.assertEqual(traceback, ((__file__, lineno),))


# --- Scripts -------------------------------------------------------------

# What each script begins with.
PRELUDE = f"""\
import os
import sys
import threading
import _interpreters
import _testinternalcapi as capi
import _tracemalloc as tracemalloc

TIMEOUT = {TIMEOUT}

def run(interp, source):
    # Not compiled there: the parser of a debug build counts in a variable of
    # the process, without a lock.
    code = compile(source, '<string>', 'exec')
    excinfo = _interpreters.exec(interp, code)
    if excinfo is not None:
        raise AssertionError(excinfo.errdisplay)

def check_sums(*interps):
    total, traced = capi.tracemalloc_sums(*interps)
    assert total == traced, (total, traced)

def run_threads(targets):
    errors = []
    def call(target):
        try:
            target()
        except BaseException as exc:
            errors.append(exc)
    threads = [threading.Thread(target=call, args=(target,))
               for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for exc in errors:
        raise exc

"""


@support.requires_subprocess()
class ScriptBase(unittest.TestCase):
    """Tests that crash or hang where something is wrong."""

    def run_script(self, script, *args, malloc=None, returncode=0, **env):
        """Run a script in a new process and return its stdout and stderr."""
        environ = os.environ.copy()
        for name in 'PYTHONTRACEMALLOC', 'PYTHONMALLOC', 'PYTHONDEVMODE':
            environ.pop(name, None)
        if malloc is not None:
            environ['PYTHONMALLOC'] = malloc
        environ.update(env)
        script = PRELUDE + textwrap.dedent(script)
        cmd = [sys.executable, '-X', 'faulthandler', *args, '-c', script]
        with support.SuppressCrashReport():
            try:
                proc = subprocess.run(cmd, env=environ, text=True,
                                      errors='backslashreplace',
                                      stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE,
                                      timeout=support.LONG_TIMEOUT)
            except subprocess.TimeoutExpired as exc:
                self.fail(f'the script hangs: {exc.stderr}')
        self.assertEqual(proc.returncode, returncode,
                         f'\n{proc.stdout}\n{proc.stderr}')
        return proc.stdout, proc.stderr

    def run_twice(self, script, *args):
        """Run a script with the usual and with the debug allocators."""
        for malloc in None, 'debug':
            with self.subTest(malloc=malloc):
                self.run_script(script, *args, malloc=malloc)


class InheritanceTests(ScriptBase):
    """-X tracemalloc and PYTHONTRACEMALLOC reach every interpreter."""

    # Written by an interpreter as the first thing which it does.
    FIRST = """\
import _tracemalloc as tracemalloc
assert tracemalloc.is_tracing()
assert tracemalloc.get_traceback_limit() == 3
traces = tracemalloc._get_traces()
names = {filename for trace in traces for filename, _ in trace[2]}
assert '<frozen importlib._bootstrap>' in names, names
assert max(len(trace[2]) for trace in traces) == 3
"""

    def check(self, script, *args, **env):
        for config in CONFIGS:
            with self.subTest(config=config):
                self.run_script(f'FIRST = {self.FIRST!r}\n'
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


class ReferenceTests(ScriptBase):
    """tracemalloc keeps no object alive and runs no Python code."""

    def test_filename_is_not_kept(self):
        self.run_twice("""
            name = ''.join(['some', 'where', '.py'])
            code = compile('kept = [object() for _ in range(50)]', 'x', 'exec')
            code = code.replace(co_filename=name)
            before = sys.getrefcount(name)
            tracemalloc.start(5)
            exec(code)
            assert tracemalloc._get_object_traceback(kept[9])[0][0] == name
            assert sys.getrefcount(name) == before
            tracemalloc.clear_traces()
            assert sys.getrefcount(name) == before
            exec(code)
            tracemalloc.stop()
            assert sys.getrefcount(name) == before
            """)

    def test_filename_dies(self):
        # The text of the filename outlives the object.
        self.run_twice("""
            import gc
            import weakref
            class Name(str):
                pass
            name = Name('nowhere.py')
            dead = weakref.ref(name)
            code = compile('kept = bytearray(5000)', 'x', 'exec')
            code = code.replace(co_filename=name)
            tracemalloc.start()
            exec(code)
            del code, name
            gc.collect()
            assert dead() is None
            (filename, lineno), = tracemalloc._get_object_traceback(kept)
            assert type(filename) is str
            assert filename == 'nowhere.py', filename
            tracemalloc.clear_traces()
            """)

    def test_clear_drops_last_reference(self):
        # The last reference to a filename must not be dropped under a lock
        # that its deallocation needs.
        self.run_twice("""
            for i in range(20):
                tracemalloc.start()
                name = 'name %d of a file that is soon gone' % i
                exec(compile('obj = object()', name, 'exec'))
                del name
                tracemalloc.clear_traces()
                tracemalloc.stop()
            """)

    def test_hooks_run_no_code(self):
        self.run_twice("""
            calls = []
            class Name(str):
                def __hash__(self):
                    calls.append('__hash__')
                    return 7
                def __eq__(self, other):
                    calls.append('__eq__')
                    return True
                def __del__(self):
                    calls.append('__del__')
            names = [Name('one.py'), Name('two.py')]
            code = compile('kept.append(bytearray(5000))', 'x', 'exec')
            codes = [code.replace(co_filename=name) for name in names]
            kept = []
            del calls[:]
            tracemalloc.start()
            for code in codes:
                exec(code)
            found = [tracemalloc._get_object_traceback(obj) for obj in kept]
            tracemalloc.clear_traces()
            tracemalloc.stop()
            assert calls == [], calls
            assert [traceback[0][0] for traceback in found] \\
                == ['one.py', 'two.py'], found
            """)

    def test_filenames(self):
        # Every kind of str comes back as it was.
        self.run_twice(r"""
            names = ['a.py', '\xe9.py', '\u20ac.py', '\U0001f40d.py',
                     'a\0b.py', '\udcff.py', '', 'x' * 5000]
            kept = []
            code = compile('kept.append(bytearray(5000))', 'x', 'exec')
            tracemalloc.start()
            for name in names:
                exec(code.replace(co_filename=name))
            found = [tracemalloc._get_object_traceback(obj)[0][0]
                     for obj in kept]
            assert found == names, found
            """)


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

    def test_allocators_below(self):
        # What is below the hooks is recorded for ever, but only once.
        self.run_twice("""
            def cycle():
                capi.tracemalloc_below_install()
                tracemalloc.start()
                tracemalloc.stop()
                capi.tracemalloc_below_remove()
                tracemalloc.start()
                tracemalloc.stop()
            cycle()
            count = capi.tracemalloc_records()
            for _ in range(5):
                cycle()
            assert capi.tracemalloc_records() == count
            """)

    def test_allocators_below_removed(self):
        # Whoever was below the hooks sets what was there before, as if nobody
        # was above.  The hooks go in again when somebody starts.
        self.run_twice("""
            def check(func):
                func('tracemalloc.start()')
                func('kept = bytearray(1000)')
                func('assert tracemalloc._get_object_traceback(kept)')
                func('del kept')

            interp = _interpreters.create('isolated')
            run(interp, 'import _tracemalloc as tracemalloc')
            def others(source):
                run(interp, source)
            def mine(source):
                exec(source, globals())

            # This interpreter may go on tracing, in vain.
            for stop, func, ids in ((True, mine, ()), (True, others, (interp,)),
                                    (False, others, (interp,))):
                capi.tracemalloc_below_install()
                check(mine)
                capi.tracemalloc_below_remove()
                if stop:
                    tracemalloc.stop()
                check(func)
                check_sums(*ids)
                others('tracemalloc.stop()')
                tracemalloc.stop()
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


@unittest.skipUnless(hasattr(os, 'fork'), 'need os.fork()')
@support.requires_fork()
class ForkBase(ScriptBase):
    """Scripts that fork."""

    FORK = """
        import signal

        def in_child(func):
            pid = os.fork()
            if pid == 0:
                # A child that deadlocks dies of it.
                signal.alarm(max(int(TIMEOUT) - 1, 1))
                try:
                    func()
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    os._exit(1)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            status = os.waitstatus_to_exitcode(status)
            assert status == 0, status
        """

    def run_fork(self, script, *args):
        script = textwrap.dedent(self.FORK) + textwrap.dedent(script)
        self.run_script(script, '-W', 'ignore::DeprecationWarning', *args)


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


class KeyTests(ScriptBase):
    """Keys of thread specific storage."""

    def test_no_keys_left(self):
        self.run_script("""
            interps = [_interpreters.create(config)
                       for config in ('legacy', 'isolated')]
            keys = capi.tracemalloc_take_keys(0)
            if keys is None:
                sys.exit()
            source = '''if 1:
                import _tracemalloc as tracemalloc
                for _ in range(3):
                    try:
                        tracemalloc.start(4)
                    except RuntimeError:
                        pass
                    else:
                        raise AssertionError('no error')
                    assert not tracemalloc.is_tracing()
                    assert tracemalloc.get_traceback_limit() == 1
                    assert tracemalloc.get_traced_memory() == (0, 0)
                    assert tracemalloc._get_traces() == []
                    tracemalloc.stop()
                '''
            exec(source)
            for interp in interps:
                run(interp, source)
            # More interpreters need no key.
            run(_interpreters.create('isolated'), 'pass')
            del keys
            source = 'import _tracemalloc as t; t.start(); x = [[]]'
            exec(source)
            for interp in interps:
                run(interp, source)
            check_sums(*interps)
            """)

    def test_one_key_left(self):
        # stop() and the end of an interpreter give the key back.
        self.run_script("""
            def can_start(interp):
                excinfo = _interpreters.exec(interp, '''if 1:
                    import _tracemalloc as tracemalloc
                    tracemalloc.start()
                    ''')
                if excinfo is not None:
                    assert excinfo.type.__name__ == 'RuntimeError', excinfo
                return excinfo is None
            first = _interpreters.create('isolated')
            second = _interpreters.create('isolated')
            keys = capi.tracemalloc_take_keys(1)
            if keys is None:
                sys.exit()
            assert can_start(first)
            assert not can_start(second)
            run(first, 'tracemalloc.stop()')
            assert can_start(second)
            assert not can_start(first)
            _interpreters.destroy(second)
            assert can_start(first)
            """)


class FatalErrorTests(unittest.TestCase):
    """The debug allocator reports a block that is corrupted."""

    def test_traceback_of_block_being_freed(self):
        import_helper.import_module('_testcapi')
        for func in 'pymem_buffer_overflow', 'pymem_api_misuse':
            with self.subTest(func), support.SuppressCrashReport():
                rc, out, err = script_helper.assert_python_failure(
                    '-X', 'tracemalloc=2', '-c',
                    f'import _testcapi\n_testcapi.{func}()',
                    PYTHONMALLOC='debug')
                self.assertIn(b'Memory block allocated at (most recent call '
                              b'first):\n  File "<string>", line 2\n', err)


class MemoryErrorTests(ScriptBase):
    """There is no memory for a trace."""

    def test_no_memory(self):
        import_helper.import_module('_testcapi')
        self.run_script("""
            from _testcapi import set_nomemory, remove_mem_hooks

            # Lines that tracemalloc has not seen.  They are compiled before:
            # not all of the compiler reports that there is no memory.
            def make(i):
                namespace = {'capi': capi}
                exec(chr(10) * i + '''if 1:
                    def work():
                        kept = [bytearray(1000 + i) for i in range(5)]
                        for block in kept:
                            block += bytes(3000)
                        addr = capi.tracemalloc_raw_malloc(100)
                        if addr is not None:
                            grown = capi.tracemalloc_raw_realloc(addr, 9000)
                            capi.tracemalloc_raw_free(grown or addr)
                        return addr and grown
                    ''', namespace)
                return namespace['work']

            works = [make(i) for i in range(300)]

            # The allocators that fail are those which tracemalloc wraps.
            set_nomemory(1 << 30)
            tracemalloc.start(3)
            failed = 0
            for i, work in enumerate(works):
                set_nomemory(i % 60, i % 60 + 1)
                try:
                    done = work()
                except MemoryError:
                    done = None
                set_nomemory(1 << 30)
                failed += not done
                if i % 50 == 0:
                    check_sums()
            assert failed > 20, failed
            check_sums()
            tracemalloc.stop()
            remove_mem_hooks()
            """)


# --- What was reported ---------------------------------------------------

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


# --- Python initialized again --------------------------------------------

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


if __name__ == "__main__":
    unittest.main()
