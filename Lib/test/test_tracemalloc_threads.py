"""Threads of all kinds: whose block it is, and with what traceback.

A thread may have its thread state attached, detached, or have none.
"""

import sys
import unittest

from test import support
from test.support import import_helper
from test.support.tracemalloc_helper import (
    ADDRESS, CONFIGS, DOMAIN, MARK, TIMEOUT, UNKNOWN,
    FaultsBase, ScriptBase, TestBase, full_address_space, get_lineno)

tracemalloc = import_helper.import_module('_tracemalloc')
capi = import_helper.import_module('_testinternalcapi')


# --- The raw domain and native threads ----------------------------------

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
        # A hook in a thread without a thread state leaves it without one, as
        # the function for the tests checks: nothing is allocated but the block.
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

    def test_tracked_null(self):
        # Somebody has tracked the address 0.  To allocate a block, or to free
        # none, is nothing that happens to it.
        tracemalloc.start()
        self.addCleanup(capi.tracemalloc_untrack, 0, 0)
        for how in 'attached', 'detached', 'stateless':
            for func in (capi.tracemalloc_raw_malloc,
                         capi.tracemalloc_raw_calloc,
                         lambda *args: capi.tracemalloc_raw_realloc(0, *args)):
                with self.subTest(how, func=func):
                    self.assertEqual(capi.tracemalloc_track(0, 0, MARK), 0)
                    addr = func(100, how, TIMEOUT)
                    self.assertEqual(self.count(), 1)
                    capi.tracemalloc_raw_free(addr, how, TIMEOUT)
                    capi.tracemalloc_raw_free(0, how, TIMEOUT)
                    self.assertEqual(self.count(), 1)
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
        addrs = capi.tracemalloc_handoff(20_000, TIMEOUT)
        self.assertNotIn(None, [self.get_traceback(addr) for addr in addrs])
        for addr in addrs:
            capi.tracemalloc_raw_free(addr)
        self.assert_sums()


class LentTests(ScriptBase):

    @unittest.skipIf(support.Py_DEBUG, 'CPython asserts that nobody does it')
    def test_lent_thread_state(self):
        # While another thread uses its thread state, a thread has no frames.
        self.run_script("""
            def use():
                return capi.tracemalloc_raw_malloc_in_lender()
            tracemalloc.start(5)
            addr = capi.tracemalloc_call_in_lent_state(use)
            traceback = capi._PyTraceMalloc_GetTraceback(0, addr)
            assert traceback == (('<unknown>', 0),), traceback
            check_sums()
            """)


# --- Threads that are held up -------------------------------------------

class HeldUpTests(FaultsBase):
    """Something happens while a thread reallocates a block."""

    def test_reallocate(self):
        self.run_faults("""
            # No other block has this size.
            SMALL = 391

            def track():
                assert capi.tracemalloc_track(0, addr, OTHER) == 0

            def restart():
                tracemalloc.stop()
                tracemalloc.start()

            def check(domain, size, meanwhile, new):
                global addr
                addr = malloc(domain, size)
                moved = []
                hold_up(new, lambda: moved.append(realloc(domain, addr, new)),
                        meanwhile, True)
                addr2, = moved
                assert (addr2 is None) == (new == TOO_MUCH)
                if addr2 is not None and addr2 != addr:
                    # There is no block any more: nobody will free it.
                    capi.tracemalloc_untrack(0, addr)
                check_sums()
                found = sizes()
                old, other = found.count(size), found.count(OTHER)
                what = domain, size, meanwhile, new, old, other
                if addr2 is not None:
                    # The new block has the new trace alone.
                    assert found.count(NEW) == 1, what
                    assert old == other == 0, what
                elif meanwhile is track:
                    # The block is where it was.  It has the trace that it
                    # was given last.
                    assert (old, other) == (0, 1), what
                else:
                    assert old == other == 0, what
                free(domain, addr if addr2 is None else addr2)
                found = sizes()
                assert size not in found, what
                assert NEW not in found, what
                assert OTHER not in found, what
                check_sums()

            tracemalloc.start()
            for domain, size, meanwhile, new in product(
                    ('raw', 'mem', 'obj'),
                    (SMALL, OLD),
                    (track, tracemalloc.clear_traces, restart),
                    (NEW, TOO_MUCH)):
                for _ in range(20):
                    check(domain, size, meanwhile, new)
            kept = [malloc('raw', 100) for _ in range(3000)]
            check_sums()
            for addr in kept:
                free('raw', addr)
            check_sums()
            """)

    def test_tracked_by_another_interpreter(self):
        # It has tracked the block last, so its trace is the only one.
        self.run_faults("""
            interp = create('isolated')

            def track():
                run(interp, f'assert capi.tracemalloc_track('
                            f'0, {addr}, {OTHER}) == 0')

            tracemalloc.start()
            for domain, size in product(('raw', 'mem', 'obj'), (391, OLD)):
                what = domain, size
                addr = malloc(domain, size)
                hold_up(TOO_MUCH, lambda: realloc(domain, addr, TOO_MUCH),
                        track, True)
                assert size not in sizes(), what
                check_sums(interp)
                run(interp, f'assert sizes().count({OTHER}) == 1')
                free(domain, addr)
                run(interp, f'assert {OTHER} not in sizes()')
                check_sums(interp)
            """)


class ClearedTests(ScriptBase):
    """Traces are cleared while a thread reallocates a block that has one.

    The new block has a trace all the same, if tracing goes on.
    """

    def test_reallocate_while_cleared(self):
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
                what = domain, tracked, meanwhile
                assert tracemalloc.get_traced_memory() == (0, 0), what
                assert tracemalloc.get_tracemalloc_memory() == 0, what
            capi.tracemalloc_below_remove()
            """)


class FreeTests(FaultsBase):
    """When a block is given back, its trace is gone already.

    The allocator is still in free(), and another thread has the block.
    """

    def test_raw(self):
        # The thread that frees is of another interpreter.
        for config in CONFIGS:
            hows = ['detached']
            if config == 'isolated':
                # It has a GIL of its own: it may keep that at the gate.
                hows += ['attached', 'stateless']
            with self.subTest(config):
                self.run_faults(f"""
                    interp = create({config!r})
                    tracemalloc.start()

                    def again():
                        addr = capi.tracemalloc_raw_malloc(OLD)
                        return addr, get_traceback(addr)

                    for how, own in product({hows}, (False, True)):
                        addr = capi.tracemalloc_raw_malloc(OLD)
                        if not own:
                            # Now the trace is of that interpreter.
                            run(interp, f'''if 1:
                                capi.tracemalloc_track(0, {{addr}}, {MARK})
                                ''')
                        capi.tracemalloc_keep(addr, OLD)
                        source = (f'capi.tracemalloc_raw_free('
                                  f'{{addr}}, {{how!r}}, {{TIMEOUT}})')
                        addr2, traceback = hold_up(
                            addr, lambda: run(interp, source), again)
                        assert addr2 == addr
                        assert traceback is not None
                        assert get_traceback(addr) == traceback
                        assert sizes().count(OLD) == 1
                        run(interp, 'assert {MARK} not in sizes()')
                        check_sums(interp)
                        capi.tracemalloc_raw_free(addr)
                        assert OLD not in sizes()
                    """)

    def test_same_interpreter(self):
        # The allocator detaches the thread while it frees.
        self.run_faults("""
            tracemalloc.start()
            for domain, size in product(('raw', 'mem', 'obj'), (333, OLD)):
                tracemalloc.clear_traces()
                def again():
                    addr = malloc(domain, size)
                    return addr, get_traceback(addr)
                addr = malloc(domain, size)
                capi.tracemalloc_keep(addr, size)
                addr2, traceback = hold_up(
                    addr, lambda: free(domain, addr), again, True)
                assert addr2 == addr, (domain, size)
                assert traceback is not None, (domain, size)
                assert get_traceback(addr) == traceback, (domain, size)
                check_sums()
                free(domain, addr)
                if size == OLD:
                    assert OLD not in sizes(), domain
                check_sums()
            """)

    def test_moved_by_realloc(self):
        # Somebody gets the old block before realloc() has returned.
        self.run_faults("""
            interp = create('isolated')
            tracemalloc.start()
            for how in 'detached', 'stateless', 'attached':
                def again():
                    addr = capi.tracemalloc_raw_malloc(OLD)
                    return addr, get_traceback(addr)
                addr = capi.tracemalloc_raw_malloc(OLD)
                capi.tracemalloc_keep(addr, OLD)
                # The isolated interpreter keeps its own GIL at the gate.
                source = (f'moved = capi.tracemalloc_raw_realloc('
                          f'{addr}, {NEW}, {how!r}, {TIMEOUT})')
                addr2, traceback = hold_up(
                    NEW, lambda: run(interp, source), again)
                assert addr2 == addr, how
                assert traceback is not None, how
                assert get_traceback(addr) == traceback, how
                assert sizes().count(OLD) == 1, how
                check_sums(interp)
                run(interp, 'capi.tracemalloc_raw_free(moved)')
                capi.tracemalloc_raw_free(addr)
                assert OLD not in sizes(), how
                check_sums(interp)
            """)

    def test_realloc_is_counted_at_once(self):
        # While a thread makes the traceback for a block that it has
        # reallocated, the block is in the sum.
        self.run_faults("""
            interp = create('isolated')
            tracemalloc.start()
            size = 10_000_000
            for new_size in size - 1000, size + 1000:
                addr = capi.tracemalloc_raw_malloc(size)
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                def meanwhile():
                    current = tracemalloc.get_traced_memory()[0]
                    capi.tracemalloc_raw_free(
                        capi.tracemalloc_raw_malloc(size))
                    return current
                source = (f'addr = capi.tracemalloc_raw_realloc('
                          f'{addr}, {new_size})')
                current = hold_up(addr, lambda: run(interp, source),
                                  meanwhile, after=True)
                least = before - 100_000
                assert current >= least, (current, least)
                peak = tracemalloc.get_traced_memory()[1]
                assert peak >= least + size, (peak, least)
                run(interp, 'capi.tracemalloc_raw_free(addr)')
                check_sums(interp)
            """)

    def test_tracked_before(self):
        # An interpreter tracks an address, and then another one gets a block
        # there.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_faults(f"""
                    interp = create({config!r})
                    tracemalloc.start()
                    for domain in 'raw', 'mem', 'obj':
                        addr = malloc(domain, OLD)
                        capi.tracemalloc_keep(addr, OLD)
                        free(domain, addr)
                        run(interp, f'''if 1:
                            res = capi.tracemalloc_track(0, {{addr}}, {MARK})
                            assert res == 0
                            assert sizes().count({MARK}) == 1
                            ''')
                        assert get_traceback(addr) is None
                        assert malloc(domain, OLD) == addr
                        assert get_traceback(addr) is not None
                        assert sizes().count(OLD) == 1, domain
                        run(interp, 'assert {MARK} not in sizes()')
                        check_sums(interp)
                        free(domain, addr)
                        assert OLD not in sizes()
                        check_sums(interp)

                    # The other way round.
                    addr = capi.tracemalloc_raw_malloc(OLD)
                    capi.tracemalloc_keep(addr, OLD)
                    capi.tracemalloc_raw_free(addr)
                    assert capi.tracemalloc_track(0, addr, {MARK}) == 0
                    run(interp, f'''if 1:
                        addr = capi.tracemalloc_raw_malloc({{OLD}})
                        assert addr == {{addr}}
                        assert sizes().count({{OLD}}) == 1
                        ''')
                    assert get_traceback(addr) is None
                    assert {MARK} not in sizes()
                    check_sums(interp)
                    """)


class QueryTests(ScriptBase):
    """A query while other threads begin and end."""

    def test_memory(self):
        # Each of them takes memory for what it remembers.
        self.run_script("""
            ended = []
            def ask():
                while not ended:
                    tracemalloc.get_tracemalloc_memory()
            def begin():
                for _ in range(100):
                    run_threads([lambda: [[]]])
                ended.append(True)
            tracemalloc.start()
            run_threads([ask, begin])
            # They have given it back.
            memory = tracemalloc.get_tracemalloc_memory()
            for _ in range(200):
                run_threads([lambda: [[]]])
            grown = tracemalloc.get_tracemalloc_memory() - memory
            assert grown < 200 * 1000, grown
            """)


if __name__ == '__main__':
    unittest.main()
