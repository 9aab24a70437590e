"""Interpreters that are created and ended while others are at work.

This file alone of tracemalloc's is not in libregrtest's list for TSan: CPython
itself has data races then.  Each new interpreter makes the static types ready
once more, and the eval breaker of one that is ended is written without care.
"""

import unittest

from test import support
from test.support.tracemalloc_helper import CONFIGS, FIRST, ScriptBase


class CreationTests(ScriptBase):

    def test_inheritance(self):
        for config in CONFIGS:
            with self.subTest(config=config):
                self.run_script(f"""
                    def target():
                        interp = _interpreters.create({config!r})
                        run(interp, {FIRST!r})
                        _interpreters.destroy(interp)
                    run_threads([target] * 4)
                    check_sums()
                    """, '-X', 'tracemalloc=3')

    def test_gh_146089_interpreters_in_threads(self):
        """gh-146089: start(), then interpreters that run in threads."""
        for config in CONFIGS:
            with self.subTest(config=config):
                self.run_twice(f"""
                    tracemalloc.start()
                    source = '''if 1:
                        import _tracemalloc as tracemalloc
                        tracemalloc.start(3)
                        kept = [object() for i in range(1000)]
                        assert tracemalloc._get_object_traceback(kept[9])
                        '''
                    def target():
                        for _ in range(2):
                            interp = _interpreters.create({config!r})
                            run(interp, 'x = [object() for _ in range(500)]')
                            run(interp, source)
                            _interpreters.destroy(interp)
                    run_threads([target] * 4)
                    check_sums()
                    tracemalloc.stop()
                    assert tracemalloc.get_traced_memory() == (0, 0)
                    """)


class EndTests(ScriptBase):

    def test_ended_while_its_blocks_are_freed(self):
        for config in CONFIGS:
            with self.subTest(config):
                self.run_twice(f"""
                    other = _interpreters.create({config!r})
                    run(other, 'import _testinternalcapi as capi')
                    tracemalloc.start()
                    def free(addrs, how):
                        for addr in addrs:
                            capi.tracemalloc_raw_free(addr, how, TIMEOUT)
                    for _ in range(5):
                        interp = _interpreters.create({config!r})
                        reader, writer = os.pipe()
                        run(interp, f'''if 1:
                            import os
                            import _testinternalcapi as capi
                            import _tracemalloc as tracemalloc
                            tracemalloc.start()
                            addrs = [capi.tracemalloc_raw_malloc(64)
                                     for _ in range(2000)]
                            with open({{writer}}, 'wb') as file:
                                for addr in addrs:
                                    file.write(addr.to_bytes(8))
                            ''')
                        addrs = []
                        with open(reader, 'rb') as file:
                            while data := file.read(8):
                                addrs.append(int.from_bytes(data))
                        assert len(addrs) == 2000
                        barrier = threading.Barrier(4)
                        def at_once(func, *args):
                            return lambda: (barrier.wait(), func(*args))
                        run_threads([
                            at_once(_interpreters.destroy, interp),
                            at_once(free, addrs[::4], 'detached'),
                            at_once(free, addrs[1:400:4], 'stateless'),
                            at_once(run, other, f'''if 1:
                                for addr in {{addrs[2::4]}}:
                                    capi.tracemalloc_raw_free(addr)
                                '''),
                        ])
                        check_sums(other)
                        free(addrs[3::4], 'attached')
                        free(addrs[401::4], 'attached')
                        check_sums(other)
                    """)


class AllocatorOfOthersTests(ScriptBase):

    def test_own_gil_without_own_allocator(self):
        # Nobody forbids it, and where the C library allocates, or mimalloc
        # does without a GIL, it works.
        malloc = None if support.Py_GIL_DISABLED else 'malloc'
        for traced in False, True:
            with self.subTest(traced=traced):
                self.run_script(f"""
                    config = _interpreters.new_config(
                        'isolated', use_main_obmalloc=True)
                    interp = _interpreters.create(config)
                    source = '''if 1:
                        import _tracemalloc as tracemalloc
                        if {traced}:
                            tracemalloc.start()
                        for _ in range(5):
                            kept = [bytes(600) for _ in range(1000)]
                            del kept
                        '''
                    tracemalloc.start()
                    run_threads([lambda: exec(source, globals()),
                                 lambda: run(interp, source)])
                    check_sums(interp)
                    _interpreters.destroy(interp)
                    """, malloc=malloc)


if __name__ == "__main__":
    unittest.main()
