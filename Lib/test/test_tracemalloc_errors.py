"""tracemalloc and fatal errors, or where something cannot be had."""

import textwrap
import unittest

from test import support
from test.support import import_helper
from test.support import script_helper
from test.support.tracemalloc_helper import (
    CONFIGS, MARK, PRELUDE, SETUP, ScriptBase)


class FatalErrorTests(ScriptBase):
    """What the debug allocators say of a block that is damaged."""

    FOUND = 'Memory block allocated at (most recent call first):\n'
    ENABLE = 'Enable tracemalloc to get the memory block allocation traceback'

    def run_fatal(self, script):
        script = (PRELUDE + textwrap.dedent("""
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

    def test_block_of_the_main_interpreter(self):
        # The other one traces, too, and is asked first or last.
        for config in CONFIGS:
            for first in True, False:
                with self.subTest(config=config, first=first):
                    err = self.run_fatal(f"""
                        interp = _interpreters.create({config!r})
                        if {first}:
                            tracemalloc.start()
                        run(interp, '''if 1:
                            import _testinternalcapi as capi
                            import _tracemalloc as tracemalloc
                            tracemalloc.start()
                            # It has tracebacks with the same ids.
                            exec('kept = []' + '\\\\nkept += [[]]' * 500)
                            ''')
                        tracemalloc.start()
                        work.__code__ = work.__code__.replace(
                            co_firstlineno=700)
                        work()
                        run(interp, f'capi.tracemalloc_raw_free({{addr}})')
                        """)
                    self.assertIn(
                        self.FOUND + '  File "<string>", line 702\n', err)

    def run_report(self, script):
        with support.SuppressCrashReport():
            _, _, err = script_helper.assert_python_failure(
                '-c', PRELUDE + textwrap.dedent(script))
        err = err.decode('ascii', 'backslashreplace').replace('\r', '')
        self.assertIn('reported for a test', err)
        return err

    def test_live_object(self):
        # Of this interpreter, or reported by one that has the same GIL.
        for size in 10, 1000:
            for report in ('capi.tracemalloc_report(id(obj))',
                           "run(interp, f'import _testinternalcapi as capi; "
                           "capi.tracemalloc_report({id(obj)})')"):
                with self.subTest(size=size, report=report):
                    err = self.run_report(f"""
                        interp = _interpreters.create('legacy')
                        tracemalloc.start()
                        obj = bytes({size})
                        {report}
                        """)
                    self.assertIn(self.FOUND + '  File "<string>", line ', err)

    def test_live_object_without_trace(self):
        # Others that had one were freed since.
        for size in 10, 1000:
            with self.subTest(size=size):
                err = self.run_report(f"""
                    obj = bytes({size})
                    tracemalloc.start()
                    bytearray(2000)
                    capi.tracemalloc_report(id(obj))
                    """)
                self.assertNotIn(self.FOUND, err)
                self.assertNotIn(self.ENABLE, err)

    def test_block_of_native_thread(self):
        err = self.run_fatal("""
            tracemalloc.start()
            addr = capi.tracemalloc_raw_malloc(100, 'stateless')
            capi.tracemalloc_damage(addr, 100)
            capi.tracemalloc_raw_free(addr)
            """)
        self.assertIn(self.FOUND + '  File "<unknown>", line 0\n', err)

    def test_allocator_frees_another_block(self):
        # Meanwhile, and before it looks at the damaged one.
        err = self.run_fatal("""
            capi.tracemalloc_below_install()
            work.__code__ = work.__code__.replace(co_firstlineno=700)
            tracemalloc.start()
            work()
            other = capi.tracemalloc_raw_malloc(100)
            capi.tracemalloc_free_with(addr, other)
            capi.tracemalloc_raw_free(addr)
            """)
        self.assertIn(self.FOUND + '  File "<string>", line 702\n', err)

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

    def test_traces_cleared_meanwhile(self):
        # While a detached thread frees the block, the number of its traceback
        # becomes that of something else.
        err = self.run_fatal(SETUP + textwrap.dedent("""
            kept = []
            def clear():
                tracemalloc.clear_traces()
                for i in range(200):
                    exec(compile('kept.append(bytearray(1))', f'{i}.py',
                                 'exec'))
            tracemalloc.start()
            work()
            hold_up(addr, lambda: capi.tracemalloc_raw_free(addr, 'detached'),
                    clear)
            """))
        self.assertNotIn(self.FOUND, err)

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

    def test_long_filename(self):
        # It is cut as in a traceback by faulthandler.
        for length in 500, 501:
            with self.subTest(length=length):
                err = self.run_fatal(f"""
                    tracemalloc.start()
                    code = work.__code__.replace(co_filename='x' * {length})
                    work.__code__ = code
                    work()
                    capi.tracemalloc_raw_free(addr)
                    """)
                dots = '...' if length > 500 else ''
                self.assertIn(f'  File "{"x" * 500}{dots}", line ', err)

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

    def test_failed_start_gives_key_back(self):
        # It has the last key, and then no memory.
        self.run_script("""
            capi.tracemalloc_below_install()
            interp = _interpreters.create('isolated')
            keys = capi.tracemalloc_take_keys(1)
            if keys is None:
                sys.exit()
            failures = 0
            for n in range(100):
                exc, failed = capi.tracemalloc_call_failing(
                    tracemalloc.start, n, sys.maxsize)
                tracemalloc.stop()
                if not failed:
                    break
                failures += exc is not None
                run(interp, '''if 1:
                    import _tracemalloc as tracemalloc
                    tracemalloc.start()
                    tracemalloc.stop()
                    ''')
            assert failures > 3, failures
            """)

    def test_no_key_for_new_interpreter(self):
        # It inherits -X tracemalloc all the same.  Only what a thread
        # allocates without the GIL needs a key: that is not traced then.
        for config in CONFIGS:
            with self.subTest(config):
                self.run_script(f"""
                    keys = capi.tracemalloc_take_keys(0)
                    if keys is None:
                        sys.exit()
                    interp = _interpreters.create({config!r})
                    run(interp, '''if 1:
                        import _testinternalcapi as capi
                        import _tracemalloc as tracemalloc
                        assert tracemalloc.is_tracing()
                        def check(how, expected):
                            addr = capi.tracemalloc_raw_malloc({MARK}, how)
                            assert count() == expected, (how, count())
                            capi.tracemalloc_raw_free(addr, how)
                            assert count() == 0, how
                        def count():
                            return [trace[1] for trace
                                    in tracemalloc._get_traces()].count({MARK})
                        check('attached', 1)
                        check('detached', 0)
                        addr = capi.tracemalloc_raw_malloc({MARK})
                        capi.tracemalloc_raw_free(addr, 'detached')
                        assert count() == 0
                        ''')
                    check_sums(interp)
                    del keys
                    run(interp, '''if 1:
                        check('attached', 1)
                        check('detached', 1)
                        ''')
                    check_sums(interp)
                    _interpreters.destroy(interp)
                    check_sums()
                    """, '-X', 'tracemalloc')


if __name__ == '__main__':
    unittest.main()
