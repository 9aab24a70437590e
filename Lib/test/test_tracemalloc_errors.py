"""tracemalloc when memory is damaged or lacking, or a thread is held up.

Each test here was seen to fail with a fault put into the C code.
"""

import textwrap
import unittest

from test import support
from test.support import script_helper
from test import test_tracemalloc_interpreters as base
from test.test_tracemalloc_faults import FaultsBase
from test.test_tracemalloc_interpreters import (
    CONFIGS, ScriptBase)


# --- Fatal errors ----------------------------------------------------------

class FatalErrorTests(ScriptBase):
    """What the debug allocators say of a block that is damaged."""

    FOUND = 'Memory block allocated at (most recent call first):\n'
    ENABLE = 'Enable tracemalloc to get the memory block allocation traceback'

    def run_fatal(self, script):
        script = (base.PRELUDE + textwrap.dedent("""
            def work():
                global addr
                addr = capi.tracemalloc_raw_malloc(100)
                capi.tracemalloc_damage(addr, 100)
            """) + textwrap.dedent(script))
        with support.SuppressCrashReport():
            _, _, err = script_helper.assert_python_failure(
                '-c', script, PYTHONMALLOC='debug')
        err = err.decode('ascii', 'backslashreplace').replace('\r', '')
        self.assertIn('bad trailing pad byte', err)
        return err

    def test_block_of_another_interpreter(self):
        for config in CONFIGS:
            for func in 'free(addr)', 'realloc(addr, 9000)':
                with self.subTest(config=config, func=func):
                    err = self.run_fatal(f"""
                        reader, writer = os.pipe()
                        interp = _interpreters.create({config!r})
                        run(interp, f'''if 1:
                            import os
                            import _testinternalcapi as capi
                            import _tracemalloc as tracemalloc
                            tracemalloc.start()
                            addr = capi.tracemalloc_raw_malloc(100)
                            capi.tracemalloc_damage(addr, 100)
                            os.write({{writer}}, addr.to_bytes(8))
                            ''')
                        tracemalloc.start()
                        addr = int.from_bytes(os.read(reader, 8))
                        capi.tracemalloc_raw_{func}
                        """)
                    self.assertIn(self.FOUND + '  File "<string>", line 6\n',
                                  err)
                    self.assertNotIn(self.ENABLE, err)

    def test_reallocated_block(self):
        for how in 'attached', 'detached', 'stateless':
            with self.subTest(how):
                err = self.run_fatal(f"""
                    work.__code__ = work.__code__.replace(co_firstlineno=700)
                    tracemalloc.start(2)
                    work()
                    capi.tracemalloc_raw_realloc(addr, 9000, {how!r})
                    """)
                self.assertIn(self.FOUND + '  File "<string>", line 702\n',
                              err)
                self.assertNotIn(self.ENABLE, err)

    def test_block_without_trace(self):
        # It was allocated before.
        for func in 'free(addr)', 'realloc(addr, 9000)':
            with self.subTest(func=func):
                err = self.run_fatal(f"""
                    work()
                    tracemalloc.start()
                    capi.tracemalloc_raw_{func}
                    """)
                self.assertNotIn(self.FOUND, err)
                self.assertNotIn(self.ENABLE, err)

    def test_nothing_traces(self):
        err = self.run_fatal("""
            work()
            capi.tracemalloc_raw_free(addr)
            """)
        self.assertNotIn(self.FOUND, err)
        self.assertIn(self.ENABLE, err)

    def test_filenames(self):
        # Of each kind of str.
        chars = {
            'a': 'a', '\xe9': r'\xe9', '\u20ac': r'\u20ac',
            '\U0001f40d': r'\U0001f40d', '\x7f': r'\x7f', '\t': r'\x09',
            '\udcff': r'\udcff', 'b': 'b',
        }
        for n in 2, 3, 4, len(chars):
            name = ''.join(list(chars)[:n])
            escaped = ''.join(list(chars.values())[:n])
            with self.subTest(name=ascii(name)):
                err = self.run_fatal(f"""
                    work.__code__ = work.__code__.replace(
                        co_filename={ascii(name)}, co_firstlineno=700)
                    tracemalloc.start()
                    work()
                    capi.tracemalloc_raw_free(addr)
                    """)
                self.assertIn(f'{self.FOUND}  File "{escaped}", line 702\n',
                              err)


# --- Threads that are held up ----------------------------------------------

class HeldUpTests(FaultsBase):
    """Something happens while a thread reallocates a block."""

    def test_reallocate(self):
        self.run_faults("""
            def track():
                assert capi.tracemalloc_track(0, addr, OTHER) == 0

            def check(domain, meanwhile, new):
                global addr
                addr = malloc(domain, OLD)
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
                old, other = found.count(OLD), found.count(OTHER)
                what = domain, meanwhile, new, old, other
                if addr2 is not None:
                    # The new block has the new trace alone.
                    assert found.count(NEW) == 1, what
                    assert old == other == 0, what
                elif meanwhile is track:
                    # The block is where it was.  It has the trace that it
                    # was given last.
                    assert (old, other) == (0, 1), what
                elif meanwhile is tracemalloc.clear_traces:
                    assert old == 0, what
                free(domain, addr if addr2 is None else addr2)
                found = sizes()
                assert OLD not in found, what
                assert NEW not in found, what
                assert OTHER not in found, what
                check_sums()

            tracemalloc.start()
            for domain, meanwhile, new in product(
                    ('raw', 'mem', 'obj'),
                    (track, tracemalloc.clear_traces),
                    (NEW, TOO_MUCH)):
                for _ in range(20):
                    check(domain, meanwhile, new)
            kept = [malloc('raw', 100) for _ in range(3000)]
            check_sums()
            for addr in kept:
                free('raw', addr)
            check_sums()
            """)


# --- No memory -------------------------------------------------------------

class NoMemoryTests(FaultsBase):

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
            for domain, old, new, traced in product(
                    ('raw', 'mem', 'obj'), (333, OLD), (444, NEW),
                    (True, False)):
                failures = 0
                for _ in range(200):
                    n += 1
                    addr = malloc(domain, old)
                    if not traced:
                        tracemalloc.clear_traces()
                    addr, failed, _ = at_new_line(
                        n, domain, addr, new, 0, sys.maxsize, True)
                    what = domain, old, new, traced
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


if __name__ == '__main__':
    unittest.main()
