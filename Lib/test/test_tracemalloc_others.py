"""tracemalloc among others: wrong sizes, other hooks, filters, evaluators.

Whatever others do, tracing goes on, and so do they.
"""

import sys
import textwrap
import unittest

from test import support
from test.support import import_helper
from test.support.tracemalloc_helper import (
    ADDRESS, DOMAIN, FaultsBase, ScriptBase, TestBase, get_lineno)
from test.test_tracemalloc_tracebacks import TracebackTestCase

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
        for _ in range(2):
            self.assertEqual(tracemalloc.get_traced_memory(),
                             (sys.maxsize, sys.maxsize))
            tracemalloc.reset_peak()
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

    def test_little_beyond_64_bits(self):
        self.check(sys.maxsize, sys.maxsize, 100)


class TrackTests(ScriptBase):

    def test_one_address_in_many_domains(self):
        self.run_script(f"""
            def tracked():
                return {{trace[0]: trace[1]
                         for trace in tracemalloc._get_traces() if trace[0]}}

            tracemalloc.start()
            wanted = {{n: n for n in range(1, 5001)}}
            for n in wanted:
                capi.tracemalloc_track(n, {ADDRESS}, n)
            assert tracked() == wanted
            for n in range(1, 5001, 2):
                capi.tracemalloc_untrack(n, {ADDRESS})
                del wanted[n]
            assert tracked() == wanted
            check_sums()
            """)

    def test_equal_but_for_the_domain(self):
        self.run_script(f"""
            tracemalloc.start()
            for n in range(1, 11):
                capi.tracemalloc_track(n, {ADDRESS}, 123_457)
            domains = [trace[0] for trace in tracemalloc._get_traces()
                       if trace[1] == 123_457]
            assert sorted(domains) == list(range(1, 11)), domains
            """)

    def test_only_another_interpreter_traces(self):
        self.run_script(f"""
            interp = _interpreters.create('isolated')
            run(interp, 'import _tracemalloc as t; t.start()')
            assert capi.tracemalloc_track(1, {ADDRESS}, 123_457) == -2
            assert capi.tracemalloc_untrack(1, {ADDRESS}) == 0
            check_sums(interp)
            """)

    def test_object_in_another_domain(self):
        # In a page that has slots, and in no page.
        self.run_script("""
            tracemalloc.start()
            kept = [object() for _ in range(1000)]
            for obj in kept[-1], bytes(5000):
                assert capi._PyTraceMalloc_GetTraceback(0, id(obj))
                assert capi._PyTraceMalloc_GetTraceback(1, id(obj)) is None
            """)

    def test_first_tracked_block_is_freed(self):
        self.run_script("""
            tracemalloc.start()
            # The last of them are in pages that have slots.
            kept = [object() for _ in range(1000)]
            capi.tracemalloc_track(0, id(kept[-1]), 123_457)
            assert sizes().count(123_457) == 1
            kept.pop()
            assert sizes().count(123_457) == 0
            check_sums()
            """)


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

    def test_set_without_chaining_again(self):
        self.check("""
            for _ in range(3):
                set_on_top('raw', bottom)
                tracemalloc.stop()
                tracemalloc.start()
                check(1)
            """)

    def test_set_without_chaining_too_often(self):
        # There are more allocators than levels.
        self.run_script("""
            get = capi.tracemalloc_get_allocator
            # Equal, but each on top of another one is another allocator.
            bottoms = [(domain, get(domain))
                       for domain in ('raw', 'mem', 'obj') for _ in range(10)]
            for domain, bottom in bottoms:
                tracemalloc.start()
                kept = [bytearray(n) for n in range(1000)]
                assert tracemalloc._get_object_traceback(kept[-1]), domain
                kept = None
                addr = capi.tracemalloc_raw_malloc(54_321)
                assert sizes().count(54_321) == 1, domain
                capi.tracemalloc_raw_free(addr)
                check_sums()
                capi.tracemalloc_set_on_top(domain, bottom)
                tracemalloc.stop()
                assert tracemalloc.get_traced_memory() == (0, 0)
            for domain, bottom in bottoms:
                capi.tracemalloc_set_allocator(domain, bottom)
            tracemalloc.start()
            kept = bytearray(1000)
            assert tracemalloc._get_object_traceback(kept)
            check_sums()
            """)

    def test_taken_out_and_another_set(self):
        # What was below the hooks may be gone: it is not used any more.
        self.run_script("""
            bottom = capi.tracemalloc_get_allocator('raw')
            capi.tracemalloc_count_raw()
            tracemalloc.start()
            tracemalloc.stop()
            capi.tracemalloc_set_allocator('raw', bottom)
            capi.tracemalloc_set_on_top('raw', bottom)
            before = capi.tracemalloc_counted_raw()
            for _ in range(3):
                tracemalloc.start()
                kept = [bytearray(n) for n in range(1000)]
                addr = capi.tracemalloc_raw_malloc(54_321)
                assert sizes().count(54_321) == 1
                assert capi.tracemalloc_counted_raw() == before
                capi.tracemalloc_raw_free(addr)
                check_sums()
                tracemalloc.stop()
            """)

    def test_memory_from_below(self):
        # Also while somebody's allocator is on top of the hooks.
        self.run_script("""
            capi.tracemalloc_count_raw()
            for _ in range(3):
                before = capi.tracemalloc_counted_raw()
                tracemalloc.start()
                kept = [bytearray(n) for n in range(1000)]
                memory = tracemalloc.get_tracemalloc_memory()
                assert capi.tracemalloc_counted_raw() > before + memory / 2
                hooks = capi.tracemalloc_get_allocator('raw')
                capi.tracemalloc_set_on_top('raw', hooks)
                tracemalloc.stop()
            """)

    def test_set_without_chaining_and_set_back(self):
        # Whatever was there before, the hooks can go in again.
        self.check("""
            for _ in range(10):
                for _ in range(2):
                    set_on_top('raw', bottom)
                    tracemalloc.stop()
                    tracemalloc.start()
                    check(1)
                set('raw', bottom)
                tracemalloc.stop()
                tracemalloc.start()
                check(1)
            """)

    def test_set_again_on_top_of_another(self):
        # What was saved are the hooks, with another allocator below them.
        self.run_script("""
            domains = 'raw', 'mem', 'obj'
            tracemalloc.start()
            saved = [capi.tracemalloc_get_allocator(domain)
                     for domain in domains]
            tracemalloc.stop()
            capi.tracemalloc_below_install()
            for _ in range(3):
                tracemalloc.start()
                for domain, hooks in zip(domains, saved):
                    capi.tracemalloc_set_allocator(domain, hooks)
                kept = [bytearray(n) for n in range(1000)]
                assert tracemalloc._get_object_traceback(kept[-1])
                check_sums()
                tracemalloc.stop()
                kept = [bytearray(n) for n in range(1000)]
            """)

    def test_put_on_top_and_caching(self):
        # start() cannot see that there are hooks below.
        self.check("""
            capi.tracemalloc_set_caching()
            for _ in range(5):
                tracemalloc.stop()
                check(0)
                tracemalloc.start()
                check(1)
            """)

    def test_put_on_top_of_hooks_and_caching(self):
        # The hooks were taken out, and are in again below the cache.
        self.check("""
            hooks = get('raw')
            tracemalloc.stop()
            set('raw', hooks)
            capi.tracemalloc_set_caching()
            tracemalloc.start()
            """)

    def test_put_on_top_and_caching_seldom(self):
        # A call of start() reaches the hooks; what is cached does not.
        self.check("""
            capi.tracemalloc_set_caching()
            cached = capi.tracemalloc_raw_malloc(1)
            for _ in range(10):
                tracemalloc.stop()
                tracemalloc.start()
                capi.tracemalloc_raw_free(cached)
                assert capi.tracemalloc_raw_malloc(1) == cached
                assert capi._PyTraceMalloc_GetTraceback(0, cached)
            capi.tracemalloc_raw_free(cached)
            """)

    def test_put_on_top(self):
        self.check("""
            set_on_top('raw', get('raw'))
            check(1)
            tracemalloc.stop()
            check(0)
            tracemalloc.start()
            """)

    def test_put_on_top_too_often(self):
        # There are more allocators than levels.
        self.check("""
            for _ in range(10):
                set_on_top('raw', get('raw'))
                check(1)
                tracemalloc.stop()
                tracemalloc.start()
                check(1)
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
            before = capi.pymem_getallocatorsname()
            set('raw', saved)
            check(0)
            tracemalloc.start()
            tracemalloc.stop()
            # They were taken out.
            assert capi.pymem_getallocatorsname() == before
            tracemalloc.start()
            """)


@unittest.skipUnless(support.with_pymalloc(),
                     'memory is not used for others at once')
class FreedWithoutHooksTests(ScriptBase):

    def test_small_objects(self):
        # The hooks do not see that they are freed.  Their traces go when the
        # memory is used for objects of another size, if not before.
        self.run_twice("""
            bottom = capi.tracemalloc_get_allocator('obj')
            tracemalloc.start()
            hooks = capi.tracemalloc_get_allocator('obj')
            kept = [bytes(50) for _ in range(24_000)]
            capi.tracemalloc_set_allocator('obj', bottom)
            # Some remain, so that the allocator does not free all memory.
            kept[:] = [obj if i % 4000 == 0 else None
                       for i, obj in enumerate(kept)]
            capi.tracemalloc_set_allocator('obj', hooks)
            check_sums()
            def count():
                sizes = [trace[1] for trace in tracemalloc._get_traces()]
                return sizes.count(sys.getsizeof(bytes(50)))
            assert count() > 1000, count()
            kept[:] = [bytes(300) for _ in kept]
            assert count() < 1000, count()
            check_sums()
            """)

    def test_small_objects_of_another_interpreter(self):
        # Their traces go when the main interpreter uses the memory.
        self.run_script("""
            bottom = capi.tracemalloc_get_allocator('obj')
            interp = _interpreters.create('legacy')
            run(interp, '''if 1:
                import sys
                import _tracemalloc as tracemalloc
                def count():
                    sizes = [trace[1] for trace in tracemalloc._get_traces()]
                    return sizes.count(sys.getsizeof(bytes(50)))
                ''')
            tracemalloc.start()
            hooks = capi.tracemalloc_get_allocator('obj')
            kept = [bytes(50) for _ in range(24_000)]
            del kept[::2]
            run(interp, '''if 1:
                tracemalloc.start()
                kept = [bytes(50) for _ in range(10_000)]
                assert count() > 9000, count()
                ''')
            capi.tracemalloc_set_allocator('obj', bottom)
            run(interp, 'kept.clear()')
            capi.tracemalloc_set_allocator('obj', hooks)
            run(interp, 'assert count() > 9000, count()')
            kept += [bytes(50) for _ in range(12_000)]
            run(interp, 'assert count() < 1000, count()')
            check_sums(interp)
            """)


class FullHeapTests(ScriptBase):
    """Small objects of a full heap are freed without the hooks."""

    def test_reused(self):
        # Their traces go when others get the same blocks.
        self.run_script("""
            bottom = capi.tracemalloc_get_allocator('obj')
            kept = [bytes(50) for _ in range(24_000)]
            # There is room for a few in each page.
            kept[::40] = [None] * 600
            tracemalloc.start()
            hooks = capi.tracemalloc_get_allocator('obj')
            new = [bytes(50) for _ in range(600)]
            stale = {id(obj) for obj in new}
            capi.tracemalloc_set_allocator('obj', bottom)
            new.clear()
            for i in range(24_000):
                if i % 2000 != 1:
                    kept[i] = None
            capi.tracemalloc_set_allocator('obj', hooks)
            check_sums()
            for _ in range(3):
                again = [bytes(50) for _ in range(24_000)]
                lines = {tracemalloc._get_object_traceback(obj)[0][1]
                         for obj in again}
                assert len(lines) == 1, lines
                check_sums()
                # Not all are used again where free() delays that (ASan).
                stale -= {id(obj) for obj in again}
                del again
            count = sizes().count(sys.getsizeof(b'') + 50)
            assert count <= len(stale), (count, len(stale))
            """)


class AllocatorsBelowTests(ScriptBase):
    """Somebody's allocators are below the hooks."""

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
            for stop, func, ids in ((True, mine, ()),
                                    (True, others, (interp,)),
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


class RefTracerTests(TestBase):
    """tracemalloc leaves a user's PyRefTracer alone."""

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

    def test_reused_by_query(self):
        # The tuples of the result, too: they are alive, the others are not.
        support.gc_collect()
        with support.disable_gc():
            tracemalloc.start()
            # No two are equal.
            kept = [bytes(n) for n in range(1500)]
            tuples = [(n, kept, kept, kept) for n in range(1500)]
            lineno = get_lineno() - 1
            tuples.clear()
            result = tracemalloc._get_traces()
            again = tracemalloc._get_traces()
            tracemalloc.stop()
        self.assertGreater(len(result), 1500)
        found = [trace for trace in again
                 if trace[2] == ((__file__, lineno),)]
        # The list itself may be one of them, and its items.
        self.assertLess(len(found), 10)


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
                    ('raw', 'mem', 'obj'), (100, 5000),
                    (0, 1, 2, 3, TOO_MUCH)):
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
                    if not capi.tracemalloc_forbid_membarrier(False):
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

    def test_single_thread(self):
        # It has no other processor to tell, and makes no such call.
        stdout, _ = self.run_script("""
            tracemalloc.start()
            kept = [bytearray(600) for _ in range(5000)]
            if not capi.tracemalloc_forbid_membarrier(True):
                print('not possible')
                sys.exit()
            kept += [bytearray(60) for _ in range(5000)]
            del kept[::2]
            check_sums()
            tracemalloc.reset_peak()
            tracemalloc.clear_traces()
            tracemalloc.get_tracemalloc_memory()
            tracemalloc._get_object_traceback(kept)
            kept += [bytearray(600) for _ in range(5000)]
            check_sums()
            tracemalloc.stop()
            tracemalloc.start()
            kept += [bytearray(600) for _ in range(5000)]
            check_sums()
            """)
        if stdout:
            self.skipTest('no filter for system calls')


class EvaluatorTests(TracebackTestCase):
    """The evaluator is not the interpreter's own."""

    def test_other_evaluator(self):
        for record in self.each_limit():
            def inner():
                record()
                record.total_nframe()
            def first():
                inner()
            def other():
                # Its frame is as large.
                inner()
            def second(n):
                if n:
                    second(n - 1)
                else:
                    inner()
            def call():
                first()
                other()
                second(0)
                inner()
                second(3)
            call()
            capi.tracemalloc_set_evaluator(True)
            try:
                for _ in range(3):
                    call()
            finally:
                capi.tracemalloc_set_evaluator(False)
            call()

    def test_own_loop(self):
        # The evaluator executes a function itself, in a frame where another
        # activation has been.
        for record in self.each_limit():
            def inner():
                pass
            def first():
                inner()
            def second():
                inner()
            capi.tracemalloc_set_evaluator(True, inner.__code__, record)
            try:
                for call in first, second, first, second:
                    call()
            finally:
                capi.tracemalloc_set_evaluator(False)

    def test_removed_in_its_own_loop(self):
        # What was remembered before it was set is of other activations.
        for record in self.each_limit():
            def remove():
                capi.tracemalloc_set_evaluator(False)
                record()
            def inner():
                record()
            def first():
                inner()
            def second():
                inner()
            def third():
                inner()
            for call in second, third:
                first()
                capi.tracemalloc_set_evaluator(True, inner.__code__, remove)
                try:
                    call()
                finally:
                    capi.tracemalloc_set_evaluator(False)


if __name__ == '__main__':
    unittest.main()
