"""tracemalloc when there is no memory.

Each test is a script in a process of its own, since what is wrong here
crashes, aborts or hangs.
"""

import textwrap
import unittest

from test.support import import_helper
from test.support.tracemalloc_helper import (
    CONFIGS, MARK, FaultsBase, ScriptBase)


# The allocator that fails is below tracemalloc's hooks and there before them:
# tracemalloc gets its own memory from it, too.
NO_MEMORY = f"""\
import _testinternalcapi as capi
import _tracemalloc as tracemalloc
import sys
from itertools import count

MARK = {MARK}

def check_sums():
    total, traced = capi.tracemalloc_sums()
    assert total == traced, (total, traced)

def sizes():
    return [trace[1] for trace in tracemalloc._get_traces()]

def walk(prepare, check=check_sums):
    '''Call what prepare() returns with every request failing in its turn.

    First this one alone, then with all that follow, until none is left.
    Afterwards the exception, or None, is given to check().
    '''
    total = 0
    for rest in False, True:
        for n in count():
            exc, failed = capi.tracemalloc_call_failing(
                prepare(), n, sys.maxsize if rest else n + 1)
            assert isinstance(exc, MemoryError | None), repr(exc)
            assert failed or exc is None, repr(exc)
            check()
            total += failed
            if not failed:
                break
    return total

def lines(source):
    '''A prepare() for source at a line that was never traced before.'''
    number = count(1)
    def prepare():
        namespace = dict(globals())
        exec(chr(10) * next(number) + 'def func(*args): ' + source,
             namespace)
        return namespace['func']
    return prepare

"""


class NoMemoryTests(ScriptBase):
    """Whatever there is no memory for: an error, and traces that are right."""

    def run_walk(self, source):
        """Run source in interpreters of all kinds, one tracing at a time."""
        self.run_script(f"""
            NO_MEMORY = {NO_MEMORY!r}
            source = NO_MEMORY + {textwrap.dedent(source)!r}
            capi.tracemalloc_below_install()
            exec(source, {{}})
            tracemalloc.stop()
            for config in {CONFIGS}:
                interp = _interpreters.create(config)
                run(interp, source)
                _interpreters.destroy(interp)
                assert tracemalloc.get_traced_memory() == (0, 0)
            capi.tracemalloc_below_remove()
            """)

    def test_start(self):
        self.run_walk("""
            def prepare():
                tracemalloc.stop()
                return tracemalloc.start
            def check():
                check_sums()
                if not tracemalloc.is_tracing():
                    assert tracemalloc.get_traced_memory() == (0, 0)
            walk(prepare, check)
            assert tracemalloc.is_tracing()
            """)

    def test_objects(self):
        # Python code, at lines that need memory for a new traceback.  No list
        # that grows: without memory, a free-threaded build crashes then.
        self.run_walk("""
            tracemalloc.start(3)
            for source in (
                'return {i: (i, {i}) for i in range(20)}',
                'return [bytearray(700 + i) for i in range(9)]',
                'return {str(i): object() for i in range(20)}',
                'a = bytearray(9); a += bytes(999); a += bytes(9999); del a',
            ):
                assert walk(lines(source)) > 5
            """)

    def test_blocks(self):
        # A block that has no trace is not lost.
        self.run_walk("""
            tracemalloc.start()
            for domain in 'raw', 'mem', 'obj':
                for spare in False, True:
                    for n in count():
                        # No trace is left: the next one needs memory at once.
                        tracemalloc.clear_traces()
                        addr, failed, lost = capi.tracemalloc_realloc_failing(
                            domain, 0, MARK, n, n + 1, spare)
                        assert not lost
                        found = sizes().count(MARK)
                        assert found == (addr is not None), (n, found, addr)
                        check_sums()
                        if addr is not None:
                            capi.tracemalloc_domain_free(domain, addr)
                        assert MARK not in sizes()
                        if not failed:
                            break
                    # The table of traces and the traceback, at least.
                    assert n > 2, n
            """)

    def test_reallocations(self):
        # With memory for the block itself they never fail.  If it has a
        # trace already then it has one afterwards.
        self.run_walk("""
            reallocate = lines(
                'return capi.tracemalloc_realloc_failing(*args)')

            def check(domain, old, new, spare, n, clear):
                func = reallocate()
                # What that has made may have the size of a small block.
                tracemalloc.clear_traces()
                addr, *_ = capi.tracemalloc_realloc_failing(
                    domain, 0, old, sys.maxsize, 0, False)
                if clear:
                    tracemalloc.clear_traces()
                # All that follow, too: what is tried instead fails as well.
                addr2, failed, _ = func(
                    domain, addr, new, n, sys.maxsize, spare)
                if spare:
                    assert addr2 is not None, (domain, old, new, n)
                found = sizes()
                if not clear:
                    assert found.count(old) == (addr2 is None)
                    assert found.count(new) == (addr2 is not None)
                check_sums()
                capi.tracemalloc_domain_free(domain, addr2 or addr)
                found = sizes()
                assert old not in found and new not in found
                return failed

            tracemalloc.start()
            # Two blocks on the heap; into, within and out of a pool; down.
            for old, new in ((MARK, 3 * MARK), (3 * MARK, MARK), (51, 397),
                             (397, 51), (397, MARK), (MARK, 397)):
                for domain in 'raw', 'mem', 'obj':
                    for spare in False, True:
                        for clear in False, True:
                            n = 0
                            while check(domain, old, new, spare, n, clear):
                                n += 1
            """)

    def test_reallocations_when_full(self):
        # Whatever the number of blocks is at which a table has to grow, and
        # even if one block in a pool has just moved out of it.
        self.run_walk("""
            def func(growing, *args):
                growing.append(None)
                return capi.tracemalloc_realloc_failing(*args)

            def check(n, length, domain, old, new, spare, track):
                kept = [None] * n
                tracemalloc.clear_traces()
                growing = []
                for i in range(length):
                    growing.append(None)
                addr, *_ = capi.tracemalloc_realloc_failing(
                    domain, 0, old, sys.maxsize, 0, False)
                if track:
                    capi.tracemalloc_track(0, addr, old)
                for i in range(n):
                    kept[i] = bytearray(600)
                addr2, failed, _ = func(
                    growing, domain, addr, new, 0, sys.maxsize, spare)
                found = sizes()
                assert found.count(old) == (addr2 is None), (n, length)
                assert found.count(new) == (addr2 is not None), (n, length)
                check_sums()
                capi.tracemalloc_domain_free(domain, addr2 or addr)
                return failed

            tracemalloc.start()
            failed = 0
            for n in range(30, 60):
                # The 52nd or 64th item moves a list out of the pools.
                for length in 52, 64:
                    for old, new, spare in ((397, 411, True),
                                            (397, 3001, False),
                                            (5003, 7001, True)):
                        for domain in 'mem', 'obj':
                            for track in False, True:
                                failed += check(n, length, domain, old, new,
                                                spare, track)
            assert failed > 0
            """)

    def test_reallocations_of_untraced_blocks(self):
        # The tables have room for some of them; for all, where they grow with
        # small objects in between.
        self.run_walk("""
            allocate = capi.tracemalloc_realloc_failing
            addrs = [allocate('raw', 0, 5003, sys.maxsize, 0, False)[0]
                     for _ in range(500)]
            tracemalloc.start()
            addrs = [allocate('raw', addr, 7001, 0, sys.maxsize, True)[0]
                     for addr in addrs]
            assert None not in addrs
            assert sizes().count(7001) > 0
            check_sums()
            for addr in addrs:
                capi.tracemalloc_domain_free('raw', addr)
            """)

    def test_reallocations_without_traceback(self):
        # Whatever the number of tracebacks is at which a table has to grow.
        self.run_walk("""
            track = lines('capi.tracemalloc_track(7, 1, 1)')
            tracks = [track() for _ in range(100)]
            reallocate = lines(
                'return capi.tracemalloc_realloc_failing(*args)')
            unknown = 0
            tracemalloc.start()
            for i in range(len(tracks)):
                func = reallocate()
                tracemalloc.clear_traces()
                for track in tracks[:i]:
                    track()
                addr, *_ = capi.tracemalloc_realloc_failing(
                    'raw', 0, MARK, sys.maxsize, 0, False)
                addr, failed, _ = func(
                    'raw', addr, 2 * MARK, 0, sys.maxsize, True)
                traces = [trace[2] for trace in tracemalloc._get_traces()
                          if trace[1] == 2 * MARK]
                assert len(traces) == 1, (i, traces)
                unknown += traces[0] == (('<unknown>', 0),)
                check_sums()
                capi.tracemalloc_domain_free('raw', addr)
            assert unknown > 0
            """)

    def test_track(self):
        self.run_walk("""
            def track(size):
                res = capi.tracemalloc_track(7, 0x1230, size)
                assert res in (0, -1), res
                if res < 0:
                    raise MemoryError

            # The first trace.
            def check():
                assert sizes().count(MARK) <= 1
                check_sums()
                capi.tracemalloc_untrack(7, 0x1230)
                assert MARK not in sizes()
                check_sums()
            tracemalloc.start(3)
            source = 'tracemalloc.clear_traces(); track(MARK)'
            assert walk(lines(source), check) > 5

            # A block that has a trace keeps it, or gets the new one.
            again = lines('track(2 * MARK)')
            def prepare():
                track(MARK)
                return again()
            def check():
                found = sizes()
                assert found.count(MARK) + found.count(2 * MARK) == 1
                check_sums()
            walk(prepare, check)
            """)

    def test_track_of_another_interpreter(self):
        # It has a trace there, or here, but never both nor none.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_script(NO_MEMORY + textwrap.dedent(f"""
                    capi.tracemalloc_below_install()
                    interp = _interpreters.create({config!r})
                    run(interp, '''if 1:
                        import _testinternalcapi as capi
                        import _tracemalloc as tracemalloc
                        tracemalloc.start()
                        ''')
                    tracemalloc.start()
                    def prepare():
                        run(interp, 'capi.tracemalloc_track(7, 1, {MARK})')
                        tracemalloc.clear_traces()
                        return track
                    def track():
                        if capi.tracemalloc_track(7, 1, {MARK}) < 0:
                            raise MemoryError
                    def check():
                        here = {MARK} in sizes()
                        run(interp, f'''if 1:
                            traces = tracemalloc._get_traces()
                            there = {MARK} in [t[1] for t in traces]
                            assert there != {{here}}, (there, {{here}})
                            ''')
                        total, traced = capi.tracemalloc_sums(interp)
                        assert total == traced, (total, traced)
                    assert walk(prepare, check) > 1
                    """))

    def test_track_many_of_another_interpreter(self):
        # The same, but what there is no memory for is a larger table.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_script(NO_MEMORY + textwrap.dedent(f"""
                    capi.tracemalloc_below_install()
                    interp = _interpreters.create({config!r})
                    run(interp, '''if 1:
                        import _testinternalcapi as capi
                        import _tracemalloc as tracemalloc
                        tracemalloc.start()
                        for n in range(1, 2000):
                            capi.tracemalloc_track(7, 16 * n, {MARK} + n)
                        ''')
                    tracemalloc.start()
                    wanted = range({MARK} + 1, {MARK} + 2000)
                    def track():
                        capi.tracemalloc_track(7, addr, size)
                    for size in wanted:
                        addr = 16 * (size - {MARK})
                        capi.tracemalloc_call_failing(
                            track, 0, sys.maxsize if size % 100 else 0)
                    here = {{*sizes()}} & {{*wanted}}
                    there = {{*wanted}} - here
                    assert here and there
                    run(interp, f'''if 1:
                        sizes = [t[1] for t in tracemalloc._get_traces()]
                        there = {{{{*sizes}}}} & {{{{*{{wanted}}}}}}
                        assert there == {{there}}
                        ''')
                    total, traced = capi.tracemalloc_sums(interp)
                    assert total == traced, (total, traced)
                    """))

    def test_track_in_interpreter_that_ends(self):
        # What it could not track is not taken for its own afterwards.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_script(NO_MEMORY + textwrap.dedent(f"""
                    capi.tracemalloc_below_install()
                    interp = _interpreters.create({config!r})
                    run(interp, '''if 1:
                        import _testinternalcapi as capi
                        import _tracemalloc as tracemalloc
                        import sys
                        def track():
                            capi.tracemalloc_track(7, addr, 1)
                        tracemalloc.start()
                        for n in range(1, 2000):
                            addr = 16 * n
                            capi.tracemalloc_call_failing(
                                track, 0, sys.maxsize if n % 100 else 0)
                        assert len(tracemalloc._get_traces()) < 2000
                        ''')
                    _interpreters.destroy(interp)
                    tracemalloc.start()
                    for n in range(1, 2000):
                        assert capi.tracemalloc_track(7, 16 * n, MARK) == 0
                    assert sizes().count(MARK) == 1999
                    check_sums()
                    """))

    def test_queries(self):
        self.run_walk("""
            import tracemalloc as module
            tracemalloc.start(5)
            kept = []
            def prepare(query):
                def func():
                    tracemalloc.clear_traces()
                    kept[:] = [bytearray(800), object()]
                    return query
                return func
            for query, least in (
                (tracemalloc._get_traces, 9),
                (lambda: tracemalloc._get_object_traceback(kept[1]), 5),
                (module.take_snapshot, 9),
                (lambda: module.get_object_traceback(kept[1]), 5),
                (tracemalloc.get_traced_memory, 1),
                (tracemalloc.get_tracemalloc_memory, 0),
                (tracemalloc.reset_peak, 0),
            ):
                total = walk(prepare(query))
                assert total >= least, (query, total)
                # Whatever query has failed, this thread is traced on.
                assert tracemalloc._get_object_traceback(bytearray(800))
            """)

    def test_clear_and_stop(self):
        # Neither needs memory.
        self.run_walk("""
            for func in tracemalloc.clear_traces, tracemalloc.stop:
                tracemalloc.start()
                kept = [[i] for i in range(1000)]
                exc, failed = capi.tracemalloc_call_failing(
                    func, 0, sys.maxsize)
                # A table may fail to shrink.
                assert exc is None, exc
                assert len(tracemalloc._get_traces()) < 500
                check_sums()
            assert tracemalloc.get_traced_memory() == (0, 0)
            """)

    def test_shrinking_tables(self):
        # The tables give memory back as blocks are freed, if they can.
        self.run_walk("""
            tracemalloc.start()
            def prepare():
                blocks = [capi.tracemalloc_raw_malloc(400)
                          for _ in range(1000)]
                def free():
                    while blocks:
                        capi.tracemalloc_raw_free(blocks.pop())
                return free
            assert walk(prepare) > 1
            """)

    def test_end_of_interpreter(self):
        # It ends while it traces, and gets no memory in between.  There are
        # some hundred requests: not each of them has its turn.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_script(NO_MEMORY + textwrap.dedent(f"""
                    capi.tracemalloc_below_install()
                    tracemalloc.start()

                    def create():
                        interp = _interpreters.create({config!r})
                        run(interp, '''if 1:
                            import _tracemalloc as tracemalloc
                            tracemalloc.start()
                            kept = [[str(i)] for i in range(1000)]
                            ''')
                        return interp

                    def destroy(start, stop):
                        interp = create()
                        exc, failed = capi.tracemalloc_call_failing(
                            lambda: _interpreters.destroy(interp),
                            start, stop)
                        if exc is not None:
                            # Not even begun.
                            assert type(exc) is MemoryError, exc
                            _interpreters.destroy(interp)
                        check_sums()
                        return failed

                    n = 0
                    while destroy(n, sys.maxsize):
                        destroy(n, n + 1)
                        n += 1 + n // 2
                    assert n > 1
                    assert len(_interpreters.list_all()) == 1
                    """))

    def test_hooks_on_top(self):
        # The allocator that fails has tracemalloc's hooks below it; start()
        # and stop() leave both where they are.
        self.run_walk("""
            capi.tracemalloc_below_remove()
            tracemalloc.start()
            capi.tracemalloc_below_install()
            assert walk(lines('return {i: (i, {i}) for i in range(20)}')) > 5
            tracemalloc.stop()
            assert walk(lines('return {i: (i, {i}) for i in range(20)}')) > 5
            tracemalloc.start()
            assert walk(lines('return {i: (i, {i}) for i in range(20)}')) > 5
            walk(lambda: tracemalloc._get_traces)
            capi.tracemalloc_below_remove()
            tracemalloc.stop()
            capi.tracemalloc_below_install()
            """)


class NoMemoryForTraceTests(FaultsBase):
    """There is memory for the block itself, or for nothing."""

    # Lines that were not traced before, and all requests fail there but the
    # one for the block itself.
    LINES = """
        code = compile('def func(*args): return call(*args)', 'x', 'exec')
        call = capi.tracemalloc_realloc_failing
        exec(code)

        def at_new_line(n, *args):
            func.__code__ = func.__code__.replace(co_firstlineno=n + 1)
            return func(*args)
        """

    # What the raw allocator has given, and tracemalloc does not claim.
    UNKNOWN = """
        def unknown():
            while True:
                memory = tracemalloc.get_tracemalloc_memory()
                counted = capi.tracemalloc_counted_raw()
                # Both are of the same moment.
                if tracemalloc.get_tracemalloc_memory() == memory:
                    return counted - memory
        """

    def run_faults(self, script, *args, **kwargs):
        super().run_faults(textwrap.dedent(self.UNKNOWN)
                           + textwrap.dedent(script), *args, **kwargs)

    def run_lines(self, script):
        self.run_faults(textwrap.dedent(self.LINES) + textwrap.dedent(script))

    def test_new_block(self):
        # If its trace cannot be stored then there is no block.
        self.run_lines("""
            for domain, size in product(('raw', 'mem', 'obj'), (333, OLD)):
                tracemalloc.start()
                refused = 0
                for n in range(50_000):
                    addr, failed, lost = at_new_line(
                        n, domain, 0, size, 0, sys.maxsize, True)
                    assert not lost
                    if addr is None:
                        refused += 1
                        assert failed
                        if size == OLD:
                            assert OLD not in sizes()
                        check_sums()
                        if refused == 5:
                            break
                    else:
                        assert get_traceback(addr) == (('x', n + 1),), n
                        free(domain, addr)
                assert refused == 5, (domain, size)
                tracemalloc.stop()
            """)

    def test_nothing_is_lost(self):
        # What was made already is given back when the rest fails.
        self.run_lines("""
            capi.tracemalloc_count_raw()
            tracemalloc.start()
            class Name(str):
                "Of a file that was not there before; never interned."

            n = 0
            for start in range(3):
                refused = 0
                for _ in range(60_000):
                    addr, failed, lost = func(
                        'raw', 0, OLD, start, sys.maxsize, True)
                    assert not lost
                    if addr is not None:
                        free('raw', addr)
                        # What is refused is tried again.
                        n += 1
                        func.__code__ = func.__code__.replace(
                            co_filename=Name(f'file {n}'))
                        continue
                    assert failed
                    refused += 1
                    if refused == 100:
                        before = unknown()
                    elif refused == 300:
                        grown = unknown() - before
                        assert grown < 2000, (start, grown)
                        break
                assert refused == 300, (start, refused)
            """)

    def test_nothing_is_lost_after_clear_traces(self):
        # There was nothing to begin with.
        self.run_faults("""
            capi.tracemalloc_count_raw()
            clear = tracemalloc.clear_traces
            allocate = capi.tracemalloc_realloc_failing
            tracemalloc.start()
            for start in range(4):
                before = None
                for i in range(300):
                    clear()
                    addr, failed, lost = allocate(
                        'raw', 0, OLD, start, sys.maxsize, True)
                    if addr is not None:
                        free('raw', addr)
                    tracemalloc.stop()
                    if i == 50:
                        before = capi.tracemalloc_counted_raw()
                    elif i == 299:
                        grown = capi.tracemalloc_counted_raw() - before
                    tracemalloc.start()
                assert failed or start > 2, start
                assert grown < 10_000, (start, grown)
            """)

    def test_new_block_at_known_line(self):
        # Its traceback is known: the trace needs memory all the same, once in
        # a while.
        self.run_faults("""
            def allocate(domain, detached, stop):
                return capi.tracemalloc_realloc_failing(
                    domain, 0, OLD, 0, stop, True, detached)
            capi.tracemalloc_count_raw()
            for domain, detached in (('raw', False), ('raw', True),
                                     ('mem', False), ('obj', False)):
                tracemalloc.start()
                addrs = []
                refused = 0
                for n in range(3000):
                    addr, failed, lost = allocate(
                        domain, detached, sys.maxsize if n > 10 else 0)
                    assert not lost, (domain, detached)
                    if addr is None:
                        assert failed
                        refused += 1
                    else:
                        addrs.append(addr)
                assert refused > 5, (domain, detached, refused)
                assert sizes().count(OLD) == len(addrs), (domain, detached)
                check_sums()
                while addrs:
                    free(domain, addrs.pop())
                assert OLD not in sizes(), (domain, detached)
                check_sums()
                # A block that remained listed would have a share of the
                # directory's memory.
                assert unknown() < 2000, (domain, detached, unknown())
                tracemalloc.stop()
            """)

    def test_failed_allocation(self):
        # There is no block, and so no trace.
        self.run_faults("""
            tracemalloc.start()
            for how in 'attached', 'detached', 'stateless':
                for func in (capi.tracemalloc_raw_malloc,
                             capi.tracemalloc_raw_calloc,
                             lambda *args: capi.tracemalloc_raw_realloc(
                                 0, *args)):
                    before = tracemalloc.get_traced_memory()[0]
                    assert func(TOO_MUCH, how) is None
                    after = tracemalloc.get_traced_memory()[0]
                    assert abs(after - before) < 10_000, (how, func)
                    assert TOO_MUCH not in sizes(), (how, func)
                    assert get_traceback(0) is None
                    check_sums()
            for domain in 'raw', 'mem', 'obj':
                for size in 333, OLD, TOO_MUCH:
                    tracemalloc.clear_traces()
                    addr, failed, _ = capi.tracemalloc_realloc_failing(
                        domain, 0, size, 0, sys.maxsize, False)
                    assert addr is None
                    assert failed
                    assert get_traceback(0) is None
                    assert size == 333 or size not in sizes()
                    check_sums()
            """)

    def test_reallocation(self):
        # Only the allocator itself can fail.
        self.run_lines("""
            tracemalloc.start()
            n = 0
            domains = (('raw', False), ('raw', True), ('mem', False),
                       ('obj', False))
            for (domain, detached), old, new, traced in product(
                    domains, (333, OLD), (444, NEW), (True, False)):
                failures = 0
                for _ in range(200):
                    n += 1
                    addr = malloc(domain, old)
                    if not traced:
                        tracemalloc.clear_traces()
                    addr, failed, _ = at_new_line(
                        n, domain, addr, new, 0, sys.maxsize, True, detached)
                    what = domain, detached, old, new, traced
                    assert addr is not None, what
                    if traced:
                        # At this line, or nobody knows where.
                        assert get_traceback(addr) in (
                            (('x', n + 1),), (('<unknown>', 0),)), what
                    failures += failed
                    free(domain, addr)
                check_sums()
            """)

    def test_reused_object(self):
        # A float comes from the free list, where no traceback can be made:
        # it has the old one still.
        self.run_lines("""
            call = capi.tracemalloc_call_failing
            namespace = {'box': [None], 'float': float}
            exec('def reuse(): box[0] = float(2)', namespace)
            box, reuse = namespace['box'], namespace['reuse']
            reuse.__code__ = reuse.__code__.replace(co_filename='x')
            tracemalloc.start()
            kept = [float(i) for i in range(300)]
            box[0] = float(1)
            address = id(box[0])
            refused = 0
            for n in range(50_000):
                lineno = 2 * n + 1
                reuse.__code__ = reuse.__code__.replace(
                    co_firstlineno=lineno)
                old = get_traceback(address)
                assert old
                box[0] = None
                exc, failed = call(reuse, 0, sys.maxsize)
                assert exc is None, exc
                assert id(box[0]) == address
                found = get_traceback(address)
                if found != (('x', lineno),):
                    assert failed, n
                    assert found == old, (found, old, n)
                    refused += 1
                    if refused == 5:
                        break
                    # A new place, the next time.
                    tracemalloc.clear_traces()
                    kept.append(box[0])
                    box[0] = float(len(kept))
                    address = id(box[0])
            assert refused == 5, refused
            check_sums()
            """)


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


if __name__ == '__main__':
    unittest.main()
