"""The filenames in tracebacks."""

import unittest

from test.support.tracemalloc_helper import ScriptBase


class ReferenceTests(ScriptBase):
    """tracemalloc keeps no object alive and runs no Python code."""

    def test_filename_is_not_kept(self):
        self.run_twice("""
            name = ''.join(['some', 'where', '.py'])
            code = compile('kept = [object() for _ in range(50)]', 'x', 'exec')
            code = code.replace(co_filename=name)
            before = sys.getrefcount(name)
            tracemalloc.start(5)
            exec(code)
            assert tracemalloc._get_object_traceback(kept[9])[0][0] == name
            assert sys.getrefcount(name) == before
            tracemalloc.clear_traces()
            assert sys.getrefcount(name) == before
            exec(code)
            tracemalloc.stop()
            assert sys.getrefcount(name) == before
            """)

    def test_filename_dies(self):
        # The text of the filename outlives the object.
        self.run_twice("""
            import gc
            import weakref
            class Name(str):
                pass
            name = Name('nowhere.py')
            dead = weakref.ref(name)
            code = compile('kept = bytearray(5000)', 'x', 'exec')
            code = code.replace(co_filename=name)
            tracemalloc.start()
            exec(code)
            del code, name
            gc.collect()
            assert dead() is None
            (filename, lineno), = tracemalloc._get_object_traceback(kept)
            assert type(filename) is str
            assert filename == 'nowhere.py', filename
            tracemalloc.clear_traces()
            """)

    def test_clear_drops_last_reference(self):
        # The last reference to a filename must not be dropped under a lock
        # that its deallocation needs.
        self.run_twice("""
            for i in range(20):
                tracemalloc.start()
                name = 'name %d of a file that is soon gone' % i
                exec(compile('obj = object()', name, 'exec'))
                del name
                tracemalloc.clear_traces()
                tracemalloc.stop()
            """)

    def test_hooks_run_no_code(self):
        self.run_twice("""
            calls = []
            class Name(str):
                def __hash__(self):
                    calls.append('__hash__')
                    return 7
                def __eq__(self, other):
                    calls.append('__eq__')
                    return True
                def __del__(self):
                    calls.append('__del__')
            names = [Name('one.py'), Name('two.py')]
            code = compile('kept.append(bytearray(5000))', 'x', 'exec')
            codes = [code.replace(co_filename=name) for name in names]
            kept = []
            del calls[:]
            tracemalloc.start()
            for code in codes:
                exec(code)
            found = [tracemalloc._get_object_traceback(obj) for obj in kept]
            tracemalloc.clear_traces()
            tracemalloc.stop()
            assert calls == [], calls
            assert [traceback[0][0] for traceback in found] \\
                == ['one.py', 'two.py'], found
            """)

    def test_filenames(self):
        # Every kind of str comes back as it was.
        self.run_twice(r"""
            names = ['a.py', '\xe9.py', '\u20ac.py', '\U0001f40d.py',
                     'a\0b.py', '\udcff.py', '', 'x' * 5000]
            kept = []
            code = compile('kept.append(bytearray(5000))', 'x', 'exec')
            tracemalloc.start()
            for name in names:
                exec(code.replace(co_filename=name))
            found = [tracemalloc._get_object_traceback(obj)[0][0]
                     for obj in kept]
            assert found == names, found
            """)

    def test_many_filenames(self):
        # However many there are, each frame has its own.
        self.run_script("""
            code = compile('kept.append(bytearray(5000))', 'x', 'exec')
            call = compile('exec(code)', 'x', 'exec')
            kept = []
            tracemalloc.start(3)
            for i in range(2000):
                exec(code.replace(co_filename=f'{i}.py'))
            for i in range(3):
                code = code.replace(co_filename=f'callee {i}')
                exec(call.replace(co_filename=f'caller {i}'))
                found = tracemalloc._get_object_traceback(kept[-1])[:2]
                assert found == ((f'callee {i}', 1), (f'caller {i}', 1)), found
            """)

    def test_results_share_filenames(self):
        # However many tracebacks were known when a file came.
        self.run_script("""
            source = 'kept = [bytearray(1),' + '\\n bytearray(1),' * 3000 + ']'
            tracemalloc.start(10)
            exec(compile(source, 'early', 'exec'))
            source = '''if 1:
                def down(n, func):
                    return func(n - 1, down) if n else bytearray(1)
                '''
            codes = [compile(source, f'late {i}', 'exec') for i in range(2)]
            namespaces = {}, {}
            for code, namespace in zip(codes, namespaces):
                exec(code, namespace)
            one, two = (namespace['down'] for namespace in namespaces)
            kept = [one(6, two) for _ in range(50)]
            found = [tracemalloc._get_object_traceback(obj) for obj in kept]
            names = [name for traceback in found for name, _ in traceback
                     if name.startswith('late')]
            assert len(names) == 350, names
            assert set(map(id, names)) == {id(code.co_filename)
                                           for code in codes}
            """)


if __name__ == '__main__':
    unittest.main()
