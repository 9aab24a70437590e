"""The memory that tracemalloc takes for itself.

It is as much as get_tracemalloc_memory() says, it does not depend on what was
in the heap before, and all of it is given back.
"""

import textwrap
import unittest

from test import support
from test.support.tracemalloc_helper import ScriptBase
from test.test_tracemalloc_nomemory import NO_MEMORY


class MemoryTests(ScriptBase):
    """get_tracemalloc_memory() knows all memory that tracemalloc has."""

    # Of threads that wait, once they have called a function.
    MEMORY_OF_THREADS = """
        def memory_of_threads(count, func):
            finished = threading.Barrier(count + 1)
            end = threading.Event()
            def work():
                func()
                finished.wait()
                end.wait()
            threads = [threading.Thread(target=work) for _ in range(count)]
            before = tracemalloc.get_tracemalloc_memory()
            for thread in threads:
                thread.start()
            finished.wait()
            after = tracemalloc.get_tracemalloc_memory()
            end.set()
            for thread in threads:
                thread.join()
            return after - before
        """

    def check(self, source, least):
        """It grows, and is what stop() gives back."""
        self.run_script(f"""
            capi.tracemalloc_count_raw()
            code = compile(chr(10) * 5 + 'def line(f, *args): f(*args)',
                           'name', 'exec')
            namespace = {{}}
            exec(code, namespace)
            line = namespace['line']

            def at_new_lines(count, func):
                for i in range(count):
                    line.__code__ = line.__code__.replace(co_firstlineno=i + 9)
                    line(func, i)

            kept = [None] * 24_000
            def keep(i, size):
                kept[i] = size.to_bytes(1) if size == 1 else bytearray(size)

            tracemalloc.start(3)
            before = tracemalloc.get_tracemalloc_memory()
            {source}
            claimed = tracemalloc.get_tracemalloc_memory()
            assert claimed - before >= {least}, claimed - before
            counted = capi.tracemalloc_counted_raw()
            tracemalloc.stop()
            given_back = counted - capi.tracemalloc_counted_raw()
            assert claimed >= 0.97 * given_back, (claimed, given_back)
            assert claimed <= 1.1 * given_back + 1_000, (claimed, given_back)
            """)

    def test_nothing(self):
        self.check("pass", 0)

    def test_queries(self):
        # They give back what they needed, whether or not there is a trace.
        self.run_script("""
            old = bytearray(1)
            capi.tracemalloc_count_raw()
            tracemalloc.start(3)
            new = bytearray(1)
            for query in (tracemalloc._get_traces,
                          lambda: tracemalloc._get_object_traceback(old),
                          lambda: tracemalloc._get_object_traceback(new)):
                # Python keeps some memory the first time.
                for i in range(2000):
                    if i == 1000:
                        before = capi.tracemalloc_counted_raw()
                    query()
                grown = capi.tracemalloc_counted_raw() - before
                assert grown < 5000, (query, grown)
            """)

    def test_queries_are_not_traced(self):
        # What they need for a while raises no peak.
        self.run_script("""
            tracemalloc.start()
            kept = []
            code = compile('kept.append(bytearray())', 'name', 'exec')
            for i in range(1_000):
                exec(code.replace(co_firstlineno=i + 1))
            for query in (lambda: tracemalloc._get_object_traceback(kept[0]),
                          tracemalloc.get_tracemalloc_memory):
                query()
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                query()
                _, peak = tracemalloc.get_traced_memory()
                assert peak - before < 1_000, peak - before
            """)

    def test_queries_change_no_sum(self):
        # There are filenames that nobody else has any more, and more and more
        # interned strings.
        self.run_script("""
            kept = []
            interned = []
            tracemalloc.start()
            for i in range(1000):
                exec(compile('kept.append(bytearray(9))', f'{i}', 'exec'))
            for i in range(30):
                interned += [sys.intern(f'string {i} {j}') for j in range(500)]
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc._get_traces()
                after = tracemalloc.get_traced_memory()[0]
                # Without a GIL it lets go of memory that is freed late.
                assert abs(after - before) < 50_000, (i, before, after)
            """)

    def test_nothing_remains(self):
        # Not even of what all interpreters share: its allocator may be gone
        # when tracing starts again.
        self.run_script("""
            capi.tracemalloc_count_raw()
            before = capi.tracemalloc_counted_raw()
            tracemalloc.start()
            for addr in range(10_000):
                capi.tracemalloc_track(9, addr, 1)
            tracemalloc.stop()
            grown = capi.tracemalloc_counted_raw() - before
            assert grown < 1000, grown
            """)

    def test_list_of_traces(self):
        # Of the result only the list itself is there when traces are copied.
        self.run_script("""
            code = compile(chr(10) * 50 + 't = query()', 'query', 'exec')
            names = {'query': tracemalloc._get_traces}
            tracemalloc.start()
            # From here on no list comes from the free list.
            kept = [[] for _ in range(100)]
            exec(code, names)
            found = [trace[1] for trace in names['t']
                     if trace[2] == (('query', 51),)]
            assert found == [sys.getsizeof([])], found
            """)

    def test_nothing_is_lost(self):
        # stop() gives all memory back.
        self.run_script("""
            capi.tracemalloc_count_raw()
            code = compile('def line(): return bytearray(700)', 'x', 'exec')
            exec(code)

            def down(n, kept):
                kept.append(bytearray(n + 1))
                if n > 0:
                    down(n - 1, kept)

            def work(count, trace=True):
                if trace:
                    tracemalloc.start(3)
                kept = []
                for i in range(count):
                    line.__code__ = line.__code__.replace(co_firstlineno=i + 9)
                    kept.append(line())
                down(count // 10, kept)
                tracemalloc.stop()

            for count, repeat in (3000, 5), (1, 1000):
                # Python keeps some memory the first time.
                for _ in range(3):
                    work(count, False)
                bottom = capi.tracemalloc_counted_raw()
                work(count)
                before = capi.tracemalloc_counted_raw()
                for _ in range(repeat):
                    work(count)
                grown = capi.tracemalloc_counted_raw() - before
                assert grown < 5000, (count, grown)
                kept = before - bottom
                assert kept < 20_000, (count, kept)
            """)

    def test_small_objects(self):
        self.check("kept = [object() for _ in kept]", 24_000 * 4)

    def test_smallest_blocks(self):
        # Without a GIL there are blocks of 8 bytes.
        self.run_script("""
            import sysconfig
            tracemalloc.start()
            kept = [None] * 100_000
            before = tracemalloc.get_tracemalloc_memory()
            kept = [bytearray(5) for _ in kept]
            after = tracemalloc.get_tracemalloc_memory()
            # Each has two; without pages they are in the hash table.
            pages = sysconfig.get_config_var('WITH_PYMALLOC')
            limit = len(kept) * (40 if pages else 200)
            assert after - before < limit, after - before
            """)

    def test_small_objects_of_all_sizes(self):
        # There is room for one size after the other in the same memory.
        self.check('''
            for size in range(1, 400, 50):
                kept[:] = [bytes(size) for _ in kept]
                kept[:] = [None] * len(kept)
            kept[:] = [object() for _ in kept]
            ''', 24_000 * 4)

    def test_many_callers(self):
        # What traces do not need is not kept: each block has 40 callers, and
        # 25 frames of a traceback are.
        self.run_script("""
            def down(n):
                return down(n - 1) if n else [[]]
            def new_site(i):
                namespace = {}
                exec(chr(10) * i + 'def site(func): return func(40)', namespace)
                return namespace['site']
            sites = [new_site(i) for i in range(2000)]
            tracemalloc.start(25)
            before = tracemalloc.get_tracemalloc_memory()
            kept = [site(down) for site in sites]
            after = tracemalloc.get_tracemalloc_memory()
            assert after - before < 1_000_000, after - before
            """)

    def test_freed_but_for_a_few(self):
        # What is kept of a page goes when the page has no objects.
        self.run_script("""
            tracemalloc.start()
            few = [[None]]
            before = tracemalloc.get_tracemalloc_memory()
            kept = [bytes(40) for _ in range(1_000_000)]
            few = kept[::40_000]
            del kept
            # Without a GIL memory is used again when new memory is needed.
            other = [bytes(300) for _ in range(3000)]
            after = tracemalloc.get_tracemalloc_memory()
            assert after - before < 1_000_000, after - before
            """)

    def test_sizes_in_turns(self):
        # What is kept of a page goes when the page is used for another size.
        self.run_script("""
            tracemalloc.start()
            def cycle():
                for size in 20, 50, 100, 200:
                    kept = [bytes(size) for _ in range(5000)]
                    del kept
            for _ in range(3):
                cycle()
            before = tracemalloc.get_tracemalloc_memory()
            for _ in range(10):
                cycle()
            after = tracemalloc.get_tracemalloc_memory()
            assert after - before < 100_000, after - before
            """)

    def test_full_heap(self):
        # There is room for one object in each page.
        self.run_script("""
            kept = [bytes(100) for _ in range(100_000)]
            del kept[::100]
            tracemalloc.start()
            before = tracemalloc.get_tracemalloc_memory()
            new = [bytes(100) for _ in range(1000)]
            after = tracemalloc.get_tracemalloc_memory()
            # And what the tables have at first.
            limit = 100 * len(new) + 50_000
            assert after - before < limit, after - before
            """)

    def test_large_objects(self):
        self.check("kept = [bytes(700) for _ in kept]", 24_000 * 8)

    def test_raw_blocks(self):
        self.check("kept = [capi.tracemalloc_raw_malloc(50) for _ in kept]",
                   24_000 * 8)

    def test_freed_raw_blocks(self):
        # Their traces do not take the memory any more.
        self.run_script("""
            tracemalloc.start()
            addrs = [capi.tracemalloc_raw_malloc(50) for _ in range(24_000)]
            before = tracemalloc.get_tracemalloc_memory()
            while addrs:
                capi.tracemalloc_raw_free(addrs.pop())
            after = tracemalloc.get_tracemalloc_memory()
            assert after < before / 2, (before, after)
            """)

    def test_tracked_addresses(self):
        self.check("[capi.tracemalloc_track(7, i, i) for i in range(24_000)]",
                   24_000 * 8)

    def test_new_lines(self):
        self.check("at_new_lines(5000, bytearray)", 5000 * 4)

    def test_deep_recursion(self):
        self.check("""
            def down(n):
                bytearray(n + 1) if n == 0 else down(n - 1)
            sys.setrecursionlimit(50_000)
            down(20_000)
            """, 0)

    @unittest.skipIf(support.Py_GIL_DISABLED, 'a thread has pages of its own')
    def test_many_threads(self):
        # A thread that waits takes little.
        self.run_script(textwrap.dedent(self.MEMORY_OF_THREADS)
                        + textwrap.dedent("""
            tracemalloc.start()
            memory = memory_of_threads(100, lambda: bytearray(1))
            assert memory < 5000 * 100, memory
            """))

    def test_deep_recursion_in_many_threads(self):
        # While they live, what they remember of their stacks takes little more
        # than the traces do.
        self.run_script(textwrap.dedent(self.MEMORY_OF_THREADS)
                        + textwrap.dedent("""
            from itertools import repeat
            sys.setrecursionlimit(5000)
            def down(steps):
                # No object is made on the way.
                for _ in steps:
                    return down(steps)
                return bytearray(1)
            def measure(depth):
                tracemalloc.start(10)
                memory = memory_of_threads(
                    40, lambda: down(repeat(None, depth)))
                tracemalloc.stop()
                return memory
            shallow = measure(1)
            deep = measure(3000)
            assert deep < 2 * shallow + (3 << 20), (shallow, deep)
            """))


class NoMemoryTests(ScriptBase):
    """Without memory what was made already is given back."""

    def test_failed_start_loses_nothing(self):
        self.run_script(NO_MEMORY + textwrap.dedent("""
            capi.tracemalloc_count_raw()
            capi.tracemalloc_below_install()
            def try_all():
                for n in count():
                    exc, failed = capi.tracemalloc_call_failing(
                        tracemalloc.start, n, sys.maxsize)
                    if not failed:
                        break
                    assert not tracemalloc.is_tracing()
                tracemalloc.stop()
                return n
            assert try_all() > 3
            before = capi.tracemalloc_counted_raw()
            for _ in range(20):
                try_all()
            grown = capi.tracemalloc_counted_raw() - before
            assert grown < 2000, grown
            """))

    def test_failed_queries_lose_nothing(self):
        # Neither memory nor objects.
        self.run_script(NO_MEMORY + textwrap.dedent("""
            import gc
            gc.disable()
            capi.tracemalloc_count_raw()
            capi.tracemalloc_below_install()
            # Its line number is no small int.
            code = compile(chr(10) * 900 + 'kept.append(object())', 'x',
                           'exec')
            kept = []

            def take():
                tracemalloc.start(5)
                kept[:] = [bytearray(800)]
                exec(code)
                failures = 0
                for query in (
                    tracemalloc._get_traces,
                    lambda: tracemalloc._get_object_traceback(kept[1]),
                ):
                    for n in count():
                        exc, failed = capi.tracemalloc_call_failing(
                            query, n, n + 1)
                        failures += failed
                        if not failed:
                            break
                tracemalloc.stop()
                return failures

            for _ in range(3):
                assert take() > 9
            size = capi.tracemalloc_counted_raw()
            blocks = sys.getallocatedblocks()
            for _ in range(100):
                take()
            blocks = sys.getallocatedblocks() - blocks
            size = capi.tracemalloc_counted_raw() - size
            assert blocks < 50, blocks
            assert size < 10_000, size
            """))

    def test_freed_in_a_full_heap(self):
        # A page that gets a single trace has no slots.
        self.run_script(NO_MEMORY + textwrap.dedent("""
            capi.tracemalloc_below_install()
            def allocate():
                return capi.tracemalloc_realloc_failing(
                    'obj', 0, 397, sys.maxsize, 0, False)[0]
            full = [allocate() for _ in range(20_000)]
            for addr in full[::50]:
                capi.tracemalloc_domain_free('obj', addr)
            tracemalloc.start()
            addrs = [allocate() for _ in range(300)]
            assert sizes().count(397) == 300
            for addr in addrs:
                capi.tracemalloc_domain_free('obj', addr)
            assert sizes().count(397) == 0
            check_sums()
            """))


if __name__ == '__main__':
    unittest.main()
