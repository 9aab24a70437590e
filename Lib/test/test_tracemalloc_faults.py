"""Faults of tracemalloc that its other tests would not notice.

Each test here was seen to fail with a fault put into the C code.  The tests
know what tracemalloc has to do, and nothing of how it does it.
"""

import functools
import itertools
import operator
import os
import queue
import sys
import threading
import unittest

from test import support
from test.support import import_helper, threading_helper
from test.support.tracemalloc_helper import (
    ADDRESS, CONFIGS, DOMAIN, MARK, MB, FaultsBase, ScriptBase, TestBase,
    get_lineno)
from test.test_tracemalloc_tracebacks import (
    TracebackTestCase, call_with_trace, frames_of)

tracemalloc = import_helper.import_module('_tracemalloc')
capi = import_helper.import_module('_testinternalcapi')

GB = 1 << 30


# --- Blocks ----------------------------------------------------------------

class TrackedTests(TestBase):
    """Small objects that somebody has tracked by hand."""

    def check_tracked(self, interp, track):
        # Among others, in a page that has room for their traces.
        objects = [object() for _ in range(30_000)]
        for i in range(29_000, 30_000, 300):
            addr = id(objects[i])
            track(addr)
            self.assertEqual(self.count(interp=interp), 1)
            objects[i] = None
            self.assertEqual(self.count(interp=interp), 0)
            self.assertIsNone(self.get_traceback(addr))
        self.assert_sums(*filter(None, [interp]))

    def test_freed(self):
        tracemalloc.start()
        self.check_tracked(
            None, lambda addr: capi.tracemalloc_track(0, addr, MARK))

    @unittest.skipIf(support.Py_GIL_DISABLED
                     or support.check_sanitizer(address=True),
                     'a block is not given out again at once')
    def test_reused(self):
        # Tracked where no block is; then there is one.
        tracemalloc.start()
        objects = [object() for _ in range(30_000)]
        # There is room below the peak.
        bytearray(10 * MARK)
        addrs = [id(obj) for obj in objects]
        for i in range(29_000, 30_000, 300):
            objects[i] = None
            capi.tracemalloc_track(0, addrs[i], MARK)
            objects[i] = object()
        self.assertEqual([id(obj) for obj in objects], addrs)
        self.assertEqual(self.count(), 0)
        self.assertIsNotNone(self.get_traceback(addrs[i]))
        self.assert_sums()

    def test_freed_in_another_interpreter(self):
        for config in CONFIGS:
            with self.subTest(config):
                interp = self.create(config)
                tracemalloc.start()
                interp.run("tracemalloc.start()")
                self.check_tracked(interp, lambda addr: interp.run(
                    f"capi.tracemalloc_track(0, {addr}, {MARK})"))
                interp.destroy()


class FreeListTests(TestBase):
    """Objects that free lists hand out again."""

    @unittest.skipIf(support.Py_GIL_DISABLED,
                     'an object belongs to a thread')
    def test_reused_in_another_interpreter(self):
        interp = self.create('legacy')
        tracemalloc.start()
        interp.run("tracemalloc.start()")
        # The free list is empty: the object is a new block.
        kept = [float(i) for i in range(200)]
        obj = float(len(kept))
        addr = capi.tracemalloc_leak(obj)
        del obj
        self.assertIsNotNone(self.get_traceback(addr))
        interp.run(f"""
            kept = [float(i) for i in range(200)]
            capi.tracemalloc_unleak({addr})
            obj = float(len(kept))
            assert id(obj) == {addr}
            """)
        self.assertIsNone(self.get_traceback(addr))
        self.assertEqual(self.ask_traceback(interp, addr),
                         (('<string>', 4),))
        self.assert_sums(interp)

    def test_dropped(self):
        # It is in the free list, and its trace says where it was made.
        tracemalloc.start()
        kept = [float(i) for i in range(300)]
        obj = float(len(kept))
        traceback = tracemalloc._get_object_traceback(obj)
        addr = id(obj)
        del obj
        self.assertEqual(self.get_traceback(addr), traceback)
        del kept

    def test_reused_in_one_instruction(self):
        # map() multiplies: the first product is a new block.  filter() drops
        # it, the generator makes a float at the same address and drops it,
        # and then the second product is there.  It is the caller's.
        tracemalloc.start()
        kept = [float(i) for i in range(300)]
        one, two, three = 1.0, 2.0, 3.0
        def generate():
            yield one
            # No other block is allocated meanwhile.
            obj = two * three
            del obj
            yield two
        products = map(two.__mul__, generate())
        large = filter(three.__lt__, products)
        del products
        found = next(large)
        lineno = get_lineno() - 1
        self.assertEqual(found, 4.0)
        self.assertEqual(tracemalloc._get_object_traceback(found),
                         ((__file__, lineno),))
        del kept

    def test_reused_by_two_instructions(self):
        # The first product is a new block.  The others are made there: by
        # another instruction, and then by the first one again.  From the
        # second round on, tracemalloc knows both places.
        tracemalloc.start()
        kept = [float(i) for i in range(300)]
        made = []
        two, three = 2.0, 3.0
        for _ in range(3):
            for last in False, True:
                obj = two * three
                if not last:
                    del obj
                    obj = two * three
                    del obj
            made.append(obj)
        # Nothing else may be allocated between the products.
        lineno = get_lineno() - 7
        for obj in made:
            self.assertEqual(tracemalloc._get_object_traceback(obj),
                             ((__file__, lineno),))
        del kept

    def check_another_thread(self, first_calls):
        # After these calls another thread makes a float in the block that
        # they have freed, and drops it; then the caller gets it.
        two, three = 2.0, 3.0
        numbers = queue.SimpleQueue()
        go_on = threading.Lock()
        go_on.acquire()
        def make_floats():
            for _ in range(5):
                go_on.acquire()
                obj = two * three
                del obj
                numbers.put(two)
        calls = itertools.cycle([*first_calls, go_on.release, numbers.get])
        others = filter(None, map(operator.call, calls))
        # operator.mul() allocates nothing else.
        products = map(operator.mul, itertools.repeat(two), others)
        large = filter(three.__lt__, products)
        del others, products
        tracemalloc.start()
        kept = [float(i) for i in range(300)]
        tracebacks = []
        with threading_helper.start_threads(
                [threading.Thread(target=make_floats)]):
            for _ in range(5):
                found = next(large)
                lineno = get_lineno() - 1
                # There is a new block the next time.
                kept.append(found)
                tracebacks.append(tracemalloc._get_object_traceback(found))
        self.assertEqual(tracebacks, [((__file__, lineno),)] * 5)
        del kept

    @unittest.skipIf(support.Py_GIL_DISABLED,
                     'a thread has a free list of its own')
    def test_reused_in_another_thread(self):
        # As in one instruction, but tracemalloc knows all places already.
        self.check_another_thread([(1.0).conjugate])

    @unittest.skipIf(support.Py_GIL_DISABLED,
                     'a thread has a free list of its own')
    def test_freed_and_reused_in_another_thread(self):
        # The block is the array of a list, which is as large as a float.
        items = []
        self.check_another_thread(
            [functools.partial(items.append, None), items.clear])

    def test_freed_by_another_thread(self):
        # It frees the array of a list, gets the block as a list, and drops
        # that.  The caller gets it from the free list, and makes it by the
        # instruction that had asked for the array.
        made = [None] * 20
        go_on, resume = threading.Lock(), threading.Lock()
        go_on.acquire()
        resume.acquire()
        def reuse():
            for i in range(0, len(made), 2):
                go_on.acquire()
                made[i] = None
                one = []
                two = []
                del one, two
                resume.release()
        tracemalloc.start()
        # Lists that are older have no trace.
        older = [[] for _ in range(200)]
        with threading_helper.start_threads([threading.Thread(target=reuse)]):
            for i in range(0, len(made), 2):
                for k in i, i + 1:
                    made[k] = [i, i, i, i, i, i, i]
                    lineno = get_lineno() - 1
                    if k == i:
                        go_on.release()
                        resume.acquire()
        self.assertEqual([tracemalloc._get_object_traceback(obj)
                          for obj in made[1::2]],
                         [((__file__, lineno),)] * 10)
        del older


class SharedObjectTests(ScriptBase):
    """Interpreters with one allocator share objects."""

    @unittest.skipIf(support.Py_GIL_DISABLED,
                     'a thread has a free list of its own')
    def test_freed_by_another_interpreter(self):
        # As by another thread, but the block comes back as an object that the
        # two interpreters share.
        import_helper.import_module('_testsinglephase')
        self.run_script("""
            import _testsinglephase
            shared = _testsinglephase.error
            shared.other_turn = True
            interp = _interpreters.create('legacy')
            def reuse():
                run(interp, '''if 1:
                    import _testsinglephase
                    import _tracemalloc as tracemalloc
                    shared = _testsinglephase.error
                    for i in range(4):
                        shared.other_turn = False
                        while not shared.other_turn:
                            pass
                        if i == 0:
                            tracemalloc.start()
                            older = [[] for _ in range(200)]
                        shared.box = None
                        one = []
                        two = []
                        shared.box = two
                        del one, two
                    shared.other_turn = False
                    ''')
            def make():
                while shared.other_turn:
                    pass
                for i in range(8):
                    obj = [i, i, i, i, i, i, i]
                    if i % 2 == 0:
                        shared.box = obj
                        del obj
                        shared.other_turn = True
                        while shared.other_turn:
                            pass
                        shared.box = None
                    else:
                        made.append(obj)
                        del obj
            made = []
            tracemalloc.start()
            older = [[] for _ in range(200)]
            run_threads([make, reuse])
            expected = (('<string>', make.__code__.co_firstlineno + 4),)
            found = [tracemalloc._get_object_traceback(obj) for obj in made]
            assert found == [expected] * 4, found
            _interpreters.destroy(interp)
            """)


# --- Sizes -----------------------------------------------------------------

class SizeTests(TestBase):

    def test_peak_of_grown_bytearray(self):
        tracemalloc.start()
        for count in 0, 1000, 3000:
            with self.subTest(count=count):
                tracemalloc.reset_peak()
                for _ in range(count):
                    object()
                block = bytearray(1000)
                block *= 1000
                block.clear()
                size, peak = tracemalloc.get_traced_memory()
                self.assertAlmostEqual(peak - size, 1_000_000, delta=1000)

    def test_peak_of_grown_raw_block(self):
        tracemalloc.start()
        for count in 0, 1000, 3000:
            with self.subTest(count=count):
                addr = capi.tracemalloc_raw_malloc(100)
                tracemalloc.reset_peak()
                for _ in range(count):
                    object()
                addr = capi.tracemalloc_raw_realloc(addr, 1_000_000)
                addr = capi.tracemalloc_raw_realloc(addr, 100)
                size, peak = tracemalloc.get_traced_memory()
                capi.tracemalloc_raw_free(addr)
                self.assertAlmostEqual(peak - size, 999_900, delta=1000)

    @unittest.skipUnless(sys.maxsize > 1 << 32, 'needs a size of 64 bits')
    def test_track_above_4_gb(self):
        tracemalloc.start()
        for i, size in enumerate((4 * GB - 1, 4 * GB, 4 * GB + 77,
                                  1000 * GB)):
            for domain in DOMAIN, 0:
                with self.subTest(size=size, domain=domain):
                    addr = ADDRESS + 16 * i
                    before = tracemalloc.get_traced_memory()[0]
                    capi.tracemalloc_track(domain, addr, size)
                    after = tracemalloc.get_traced_memory()[0]
                    self.assertEqual(self.count(size), 1)
                    self.assertAlmostEqual(after - before, size, delta=1000)
                    self.assert_sums()
                    capi.tracemalloc_untrack(domain, addr)
                    self.assertEqual(self.count(size), 0)
                    self.assert_sums()

    @unittest.skipUnless(sys.maxsize > 1 << 32, 'needs a size of 64 bits')
    def test_peak_above_4_gb(self):
        tracemalloc.start()
        for size in 8 * GB, 5 * GB + 1:
            with self.subTest(size=size):
                # Room below the peak, and some of it is given out.
                block = bytearray(10_000_000)
                del block
                kept = [object() for _ in range(100)]
                capi.tracemalloc_track(DOMAIN, ADDRESS, size)
                current, peak = tracemalloc.get_traced_memory()
                self.assertGreaterEqual(current, size)
                self.assertAlmostEqual(peak, current, delta=1000)
                capi.tracemalloc_untrack(DOMAIN, ADDRESS)
                current, peak = tracemalloc.get_traced_memory()
                self.assertLess(current, GB)
                self.assertGreaterEqual(peak, size)
                tracemalloc.reset_peak()
                current, peak = tracemalloc.get_traced_memory()
                self.assertAlmostEqual(peak, current, delta=1000)
                del kept

    # Debug allocators write to the whole of a block.
    @unittest.skipIf(support.Py_DEBUG or sys.flags.dev_mode
                     or 'debug' in os.environ.get('PYTHONMALLOC', ''),
                     'needs 4 GB of real memory')
    @unittest.skipIf(support.check_sanitizer(address=True, memory=True,
                                             thread=True),
                     'needs 4 GB of real memory')
    @unittest.skipUnless(sys.maxsize > 1 << 32, 'needs a size of 64 bits')
    def test_blocks_above_4_gb(self):
        # Nobody writes to these blocks: they take no real memory.
        tracemalloc.start()
        size = 4 * GB + 77
        addr = capi.tracemalloc_raw_calloc(size)
        self.assertEqual(self.count(size), 1)
        self.assert_sums()
        capi.tracemalloc_raw_free(addr)
        self.assertEqual(self.count(size), 0)
        self.assert_sums()

        addr = capi.tracemalloc_raw_malloc(100)
        addr = capi.tracemalloc_raw_realloc(addr, size)
        self.assertEqual(self.count(size), 1)
        self.assert_sums()
        addr = capi.tracemalloc_raw_realloc(addr, MARK)
        self.assertEqual((self.count(size), self.count()), (0, 1))
        capi.tracemalloc_raw_free(addr)
        self.assert_sums()

        before = tracemalloc.get_traced_memory()[0]
        obj = bytes(size)
        after = tracemalloc.get_traced_memory()[0]
        size = sys.getsizeof(obj)
        self.assertAlmostEqual(after - before, size, delta=1000)
        self.assertEqual(self.count(size), 1)
        self.assert_sums()
        del obj
        self.assertEqual(self.count(size), 0)
        self.assert_sums()

    @unittest.skipUnless(sys.maxsize > 1 << 32, 'needs a size of 64 bits')
    def test_many_large_sizes(self):
        # Their sum needs more bits than each of them.
        tracemalloc.start()
        obj = bytearray(MARK)
        size = (1 << 38) - 1
        addrs = range(ADDRESS, ADDRESS + 16 * 3000, 16)
        before = tracemalloc.get_traced_memory()[0]
        for addr in addrs:
            capi.tracemalloc_track(DOMAIN, addr, size)
        current, peak = tracemalloc.get_traced_memory()
        for n in current, peak:
            self.assertAlmostEqual(n - before, 3000 * size, delta=MB)
        for addr in addrs:
            capi.tracemalloc_untrack(DOMAIN, addr)
        del obj
        current, peak = tracemalloc.get_traced_memory()
        self.assertAlmostEqual(current, before, delta=2 * MB)
        self.assertAlmostEqual(peak - before, 3000 * size, delta=MB)
        self.assert_sums()

    def test_sum_passes_largest_size(self):
        # Neither it nor the peak wraps, and other traces stay as they are.
        tracemalloc.start()
        obj = bytearray(MARK)
        traceback = tracemalloc._get_object_traceback(obj)
        addrs = range(ADDRESS, ADDRESS + 48, 16)
        for addr in addrs:
            capi.tracemalloc_track(DOMAIN, addr, sys.maxsize)
            tracemalloc.reset_peak()
            self.assertEqual(tracemalloc.get_traced_memory(),
                             (sys.maxsize, sys.maxsize))
        for addr in addrs:
            self.assertEqual(capi.tracemalloc_untrack(DOMAIN, addr), 0)
            size, peak = tracemalloc.get_traced_memory()
            self.assertGreaterEqual(size, 0)
            self.assertLessEqual(size, peak)
            self.assertLessEqual(peak, sys.maxsize)
        self.assertEqual(tracemalloc._get_object_traceback(obj), traceback)
        self.assertEqual(self.count(sys.getsizeof(obj) - sys.getsizeof(
            bytearray())), 1)
        tracemalloc.clear_traces()
        self.assert_sums()


# --- Tracebacks ------------------------------------------------------------

class FrameTests(TracebackTestCase):

    def test_line_set_between_allocations(self):
        # The trace function goes on, and its caller is on another line.
        for record in self.each_limit():
            def func():
                a = 1
                a = 2
                a = 3
                a = 4
                return a
            first = func.__code__.co_firstlineno
            def trace(frame, event, arg):
                if frame.f_code is not func.__code__:
                    return None
                if event == 'line' and frame.f_lineno == first + 2:
                    block, frames = bytearray(50), frames_of(sys._getframe())
                    record.compare(
                        tracemalloc._get_object_traceback(block), frames)
                    frame.f_lineno = first + 4
                    block, frames = bytearray(50), frames_of(sys._getframe())
                    record.compare(
                        tracemalloc._get_object_traceback(block), frames)
                return trace
            call_with_trace(func, trace)
            self.assertEqual(record.count, 2)

    def test_line_set_before_the_same_allocation(self):
        # The trace function allocates at one place, twice.
        for record in self.each_limit():
            def func():
                a = 1
                a = 2
                a = 3
                return a
            first = func.__code__.co_firstlineno
            def trace(frame, event, arg):
                if frame.f_code is not func.__code__:
                    return None
                if event == 'line' and frame.f_lineno == first + 2:
                    for lineno in first + 3, first + 4:
                        record()
                        frame.f_lineno = lineno
                return trace
            call_with_trace(func, trace)
            self.assertEqual(record.count, 2)

    def test_cleared_before_the_same_allocation(self):
        # Nothing else is allocated in between.
        for record in self.each_limit():
            clear = tracemalloc.clear_traces
            frames = frames_of(sys._getframe())
            for _ in itertools.repeat(None, 5):
                clear()
                block = bytearray(50)
            frames[0] = __file__, get_lineno() - 1
            record.compare(tracemalloc._get_object_traceback(block), frames)

    def test_generator_gets_caller(self):
        # It was resumed from here before.  The code of middle() is new each
        # time: it was not specialized yet.
        for record in self.each_limit():
            for source in ('def middle(gen): yield from gen',
                           'async def middle(gen): await gen'):
                namespace = {}
                exec(source, namespace)
                class Awaitable:
                    def __await__(self):
                        return gen
                def inner():
                    while True:
                        record()
                        record.total_nframe()
                        yield
                gen = inner()
                next(gen)
                if 'async' in source:
                    outer = namespace['middle'](Awaitable())
                else:
                    outer = namespace['middle'](gen)
                outer.send(None)
                next(gen)
                outer.send(None)
                outer.close()


class TotalTests(FaultsBase):

    def test_more_frames_than_can_be_counted(self):
        self.run_faults(f"""
            def down(n):
                if n:
                    return down(n - 1)
                return capi.tracemalloc_raw_malloc({MARK})

            sys.setrecursionlimit(100_000)
            for limit in 1, 2, 25:
                # 65,536 frames, and a few more than these.
                for depth in 65_534, 65_535, 65_536, 70_000:
                    tracemalloc.start(limit)
                    addr = down(depth)
                    found = [trace for trace in tracemalloc._get_traces()
                             if trace[1] == {MARK}]
                    tracemalloc.stop()
                    capi.tracemalloc_raw_free(addr)
                    assert len(found) == 1
                    assert found[0][3] == 65_535, (limit, depth, found[0][3])
                    assert len(found[0][2]) == limit
            """)


# --- Queries ---------------------------------------------------------------

class QueryTests(TestBase):
    """Queries find all traces, whatever their number."""

    def test_domain(self):
        # The block at an address is of one domain.
        tracemalloc.start()
        small, large = object(), bytearray(1000)
        addr = capi.tracemalloc_raw_malloc(1000)
        self.addCleanup(capi.tracemalloc_raw_free, addr)
        for addr in id(small), id(large), addr:
            self.assertIsNotNone(self.get_traceback(addr))
            self.assertIsNone(self.get_traceback(addr, DOMAIN))
            # Nor is it one inside the block.
            self.assertIsNone(self.get_traceback(addr + 8))

    def check(self, n, add, remove, find):
        for i in range(n):
            add(i)
            self.assertEqual(sorted(find()), list(range(i + 1)))
        for i in range(n):
            remove(i)
            self.assertEqual(sorted(find()), list(range(i + 1, n)))
        self.assert_sums()

    def find_sizes(self, n, domain=0):
        return [trace[1] - MARK for trace in tracemalloc._get_traces()
                if trace[0] == domain and 0 <= trace[1] - MARK < n]

    def test_raw_blocks(self):
        n = 500
        addrs = [0] * n
        def add(i):
            addrs[i] = capi.tracemalloc_raw_malloc(MARK + i)
        tracemalloc.start()
        self.check(n, add, lambda i: capi.tracemalloc_raw_free(addrs[i]),
                   lambda: self.find_sizes(n))

    def test_tracked_addresses(self):
        n = 500
        def add(i):
            capi.tracemalloc_track(DOMAIN, 16 * i, MARK + i)
        tracemalloc.start()
        self.check(n, add,
                   lambda i: capi.tracemalloc_untrack(DOMAIN, 16 * i),
                   lambda: self.find_sizes(n, DOMAIN))

    def test_large_objects(self):
        n = 700
        objs = [None] * n
        tracemalloc.start()
        first = sys.getsizeof(b'')
        def add(i):
            objs[i] = bytes(MARK // 100 + i)
        def remove(i):
            objs[i] = None
        lineno = add.__code__.co_firstlineno + 1
        def find():
            return [trace[1] - MARK // 100 - first
                    for trace in tracemalloc._get_traces()
                    if trace[2] == ((__file__, lineno),)
                    and trace[1] > MARK // 100]
        self.check(n, add, remove, find)

    def test_small_objects(self):
        # They are known by their lines.
        n = 500
        objs = [None] * n
        def make(i):
            objs[i] = object()
        def add(i):
            make.__code__ = make.__code__.replace(co_filename='small',
                                                  co_firstlineno=3 * i + 1)
            make(i)
        def remove(i):
            objs[i] = None
        def find():
            # make() may allocate memory when it is entered, too.
            lines = [trace[2][0][1] - 2 for trace in tracemalloc._get_traces()
                     if trace[2][0][0] == 'small']
            return [line // 3 for line in lines if line % 3 == 0]
        tracemalloc.start()
        self.check(n, add, remove, find)


class HeldUpQueryTests(FaultsBase):
    """Traces are dropped while a query makes objects of them."""

    def test_dropped(self):
        # Debug allocators overwrite what is freed.
        for malloc in None, 'debug':
            with self.subTest(malloc=malloc):
                self.run_faults("""
                    def allocate(name):
                        code = compile('addr = malloc("raw", OLD)', '', 'exec')
                        exec(code.replace(co_filename=name), globals())

                    def get_all():
                        return [trace for trace in tracemalloc._get_traces()
                                if trace[1] == OLD]

                    def get_one():
                        return get_traceback(addr)

                    def stop_and_start():
                        tracemalloc.stop()
                        tracemalloc.start(3)

                    name = 'x' * 3001
                    for query, drop, reuse in product(
                            (get_all, get_one),
                            (tracemalloc.clear_traces, tracemalloc.stop,
                             stop_and_start),
                            (True, False)):
                        def meanwhile():
                            drop()
                            # Other filenames may get the memory.
                            for i in range(9 if reuse else 0):
                                allocate(str(i) * 3001)

                        stop_and_start()
                        allocate(name)
                        expected, found = query(), []
                        assert name in repr(expected)
                        # The query is about to make the filename.
                        hold_up(sys.getsizeof(name),
                                lambda: found.append(query()),
                                meanwhile, True)
                        assert found == [expected], (query, drop, reuse)
                    check_sums()
                    """, malloc=malloc)

    def test_others_are_added(self):
        # More filenames and tracebacks than there is room for at first.
        self.run_faults("""
            def allocate(name, lineno=1):
                code = compile(
                    'addrs.append(capi.tracemalloc_raw_malloc(OLD))', '',
                    'exec')
                exec(code.replace(co_filename=name, co_firstlineno=lineno),
                     globals())

            def get_all():
                # In no order: the hash table may be resized between two.
                return sorted(trace for trace in tracemalloc._get_traces()
                              if trace[1] == OLD)

            def meanwhile():
                for i in range(20_000):
                    allocate(str(i), i + 1)

            tracemalloc.start()
            addrs = []
            for i in range(50):
                allocate('x' * (3001 + i), i + 1)
            expected, found = get_all(), []
            assert len(expected) == 50
            hold_up(sys.getsizeof('x' * 3026),
                    lambda: found.append(get_all()), meanwhile, True)
            assert found == [expected]
            assert len(get_all()) == 20_050
            for addr, lineno in zip(addrs[50:], range(1, 20_001)):
                assert get_traceback(addr) == ((str(lineno - 1), lineno),)
            """)


class EqualTracesTests(FaultsBase):
    """Equal traces may be one object, but each of them is found."""

    def test_count(self):
        self.run_faults("""
            from collections import Counter
            expected = Counter()
            tracemalloc.start()
            for i in range(30_000):
                # More different ones than are looked for.
                domain, size = 5 + i % 3, 1 + i * i % 5003
                if i % 2:
                    capi.tracemalloc_track(domain, 16 * i, size)
                else:
                    capi.tracemalloc_track(domain, 16 * i, size)
                expected[domain, size, i % 2] += 1
            traces = [trace for trace in tracemalloc._get_traces()
                      if trace[0] >= 5]
            assert len(traces) == 30_000
            lines = sorted({trace[2][0][1] for trace in traces})
            assert len(lines) == 2, lines
            found = Counter((domain, size, lines[0] == traceback[0][1])
                            for domain, size, traceback, total in traces)
            assert found == expected
            """)


if __name__ == '__main__':
    unittest.main()
