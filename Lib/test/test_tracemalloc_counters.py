"""get_traced_memory() and reset_peak(), which are about all interpreters."""

import unittest

from test.support import import_helper
from test.support.tracemalloc_helper import (
    ADDRESS, DOMAIN, MB, TIMEOUT, TestBase)

tracemalloc = import_helper.import_module('_tracemalloc')
capi = import_helper.import_module('_testinternalcapi')

# No memory is allocated between the two calls.
CALL_AND_READ = "(tracemalloc.{}(), tracemalloc.get_traced_memory())[1]"


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
            CALL_AND_READ.format('clear_traces'))
        self.assertEqual(size, peak)
        self.assertGreater(size, 8 * MB)
        self.assertLess(size, 12 * MB)
        self.assert_sums(first, second)

        size, peak = second.ask(
            CALL_AND_READ.format('clear_traces'))
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
            CALL_AND_READ.format('reset_peak'))
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

    def test_peak_by_native_thread(self):
        # A thread that has nothing but the shared counters makes a new peak.
        tracemalloc.start()
        for size in MB, 2 * MB, 3 * MB:
            tracemalloc.reset_peak()
            addr = capi.tracemalloc_raw_malloc(size, 'stateless', TIMEOUT)
            current, peak = tracemalloc.get_traced_memory()
            self.assertGreaterEqual(current, size)
            self.assertGreaterEqual(peak, current)
            capi.tracemalloc_raw_free(addr, 'stateless', TIMEOUT)
            current, peak = tracemalloc.get_traced_memory()
            self.assertGreaterEqual(peak, size)
            self.assertLess(current, size)

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

    def test_peak_while_others_work(self):
        # Nobody asks for the pair meanwhile.
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        for _ in range(3):
            tracemalloc.reset_peak()
            block = bytearray(MB)
            del block
            interp.run("kept = [object() for _ in range(2000)]")
            kept = [object() for _ in range(2000)]
            block = bytearray(5 * MB)
            del block
            size, peak = tracemalloc.get_traced_memory()
            self.assertGreaterEqual(peak - size, 5 * MB)
            self.assertLess(peak - size, 5 * MB + 20_000)
            del kept

    def test_peak_in_turns(self):
        # While the sum only grows, all add beyond the peak without asking.
        interps = [self.create(self.config) for _ in range(2)]
        tracemalloc.start()
        for interp in interps:
            interp.run("tracemalloc.start()")
        ids = [interp.id for interp in interps]
        for seed in range(300):
            with self.subTest(seed=seed):
                found, wanted = capi.tracemalloc_take_turns(
                    seed, *ids[:1 + seed % 2])
                self.assertEqual(found, wanted)
        self.assert_sums(*interps)

    def test_frees_more_than_others_may_spare(self):
        # Each has room below the peak for itself, and one of them gets more.
        interp = self.create(self.config)
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        freed = [bytes(1000) for _ in range(5000)]
        del freed[::2]
        interp.run("kept = [object() for _ in range(3000)]")
        kept = [object() for _ in range(3000)]
        del freed
        self.assert_sums(interp)
        del kept

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


if __name__ == '__main__':
    unittest.main()
