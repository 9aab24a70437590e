"""tracemalloc among others: wrong sizes, other allocators, filters.

Whatever others do, tracing goes on, and so do they.
"""

import sys
import textwrap
import unittest

from test.support import import_helper
from test.test_tracemalloc_faults import FaultsBase
from test.test_tracemalloc_interpreters import (
    ADDRESS, DOMAIN, ScriptBase, TestBase)

tracemalloc = import_helper.import_module('_tracemalloc')
capi = import_helper.import_module('_testinternalcapi')


class WrongSizeTests(TestBase):
    """A wrong size makes nobody else's allocation fail."""

    def check(self, *sizes):
        interp = self.create()
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        for i, size in enumerate(sizes):
            res = capi.tracemalloc_track(DOMAIN, ADDRESS + 16 * i, size)
            self.assertEqual(res, 0)
        kept = [bytearray(100_000) for _ in range(200)]
        interp.run("kept = [bytearray(100_000) for _ in range(200)]")
        self.assertEqual(tracemalloc.get_traced_memory(),
                         (sys.maxsize, sys.maxsize))
        for obj in kept:
            self.assertIsNotNone(tracemalloc._get_object_traceback(obj))
        for i in range(len(sizes)):
            capi.tracemalloc_untrack(DOMAIN, ADDRESS + 16 * i)
        size, peak = tracemalloc.get_traced_memory()
        self.assertGreaterEqual(size, 0)
        self.assertLessEqual(size, peak)
        kept.clear()
        interp.run("kept.clear()")
        interp.run("tracemalloc.stop()")
        tracemalloc.stop()
        self.assertEqual(tracemalloc.get_traced_memory(), (0, 0))
        tracemalloc.start()
        self.assert_sums()

    def test_almost_largest(self):
        self.check(sys.maxsize - 10_000_000)

    def test_largest(self):
        self.check(sys.maxsize)

    def test_twice(self):
        self.check(sys.maxsize, sys.maxsize - 7)


class OtherAllocatorTests(ScriptBase):
    """stop() and start() trace again, whatever others set meanwhile."""

    def check(self, script):
        self.run_script(textwrap.dedent("""
            get = capi.tracemalloc_get_allocator
            set = capi.tracemalloc_set_allocator
            set_on_top = capi.tracemalloc_set_on_top

            def malloc():
                return capi.tracemalloc_raw_malloc(54_321)

            def check(expected):
                addr = malloc()
                sizes = [trace[1] for trace in tracemalloc._get_traces()]
                assert sizes.count(54_321) == expected, (
                    sizes.count(54_321), expected)
                capi.tracemalloc_raw_free(addr)
                check_sums()

            # What is there while nobody traces.
            bottom = get('raw')
            tracemalloc.start()
            check(1)
            """) + textwrap.dedent(script) + textwrap.dedent("""
            check(1)
            tracemalloc.stop()
            check(0)
            tracemalloc.start()
            check(1)
            """))

    def test_set_without_chaining(self):
        self.check("""
            set_on_top('raw', bottom)
            tracemalloc.stop()
            tracemalloc.start()
            """)

    def test_set_without_chaining_while_stopped(self):
        self.check("""
            tracemalloc.stop()
            set_on_top('raw', bottom)
            tracemalloc.start()
            """)

    def test_put_on_top(self):
        self.check("""
            set_on_top('raw', get('raw'))
            check(1)
            tracemalloc.stop()
            check(0)
            tracemalloc.start()
            """)

    def test_put_on_top_and_removed(self):
        self.check("""
            saved = get('raw')
            set_on_top('raw', saved)
            tracemalloc.stop()
            set('raw', saved)
            check(0)
            tracemalloc.start()
            """)

    def test_set_back_what_was_below(self):
        self.check("""
            set('raw', bottom)
            tracemalloc.stop()
            tracemalloc.start()
            """)

    def test_set_back_hooks(self):
        self.check("""
            saved = get('raw')
            tracemalloc.stop()
            set('raw', saved)
            check(0)
            tracemalloc.start()
            """)


class ErrnoTests(FaultsBase):
    """Whoever frees memory finds errno as it was."""

    def test_errno(self):
        # free() does not change errno, also when there is no memory for what
        # tracemalloc may do then.
        self.run_faults("""
            def work():
                result[0] = capi.tracemalloc_free_and_errno(domain, addrs)

            # The first requests may be those of the call.
            tracemalloc.start()
            for domain, size, start in product(
                    ('raw', 'mem', 'obj'), (100, 5000), (0, 1, 2, 3, TOO_MUCH)):
                addrs = [malloc(domain, size) for _ in range(3000)]
                result = [None]
                exc, _ = capi.tracemalloc_call_failing(
                    work, start, sys.maxsize)
                assert exc is None or start < 3, repr(exc)
                assert result in ([0], [None]), (
                    domain, size, start, result)
            """)


class FilterTests(ScriptBase):
    """A system call is refused after start()."""

    def test_membarrier(self):
        for config in 'legacy', 'isolated':
            with self.subTest(config):
                stdout, _ = self.run_script(f"""
                    tracemalloc.start()
                    interp = _interpreters.create({config!r})
                    source = '''if 1:
                        import _tracemalloc as tracemalloc
                        tracemalloc.start()
                        kept = [bytearray(600) for _ in range(5000)]
                        '''
                    exec(source)
                    run(interp, source)
                    if not capi.tracemalloc_forbid_membarrier():
                        print('not possible')
                        sys.exit()
                    exec(source)
                    run(interp, source)
                    addr = capi.tracemalloc_raw_malloc(100, 'stateless')
                    capi.tracemalloc_raw_free(addr, 'stateless')
                    tracemalloc._get_traces()
                    check_sums(interp)
                    tracemalloc.stop()
                    tracemalloc.start()
                    run(interp, 'tracemalloc.stop()')
                    check_sums()
                    """)
                if stdout:
                    self.skipTest('no filter for system calls')


if __name__ == '__main__':
    unittest.main()
