"""tracemalloc's tracebacks compared with the frames that there are.

tracemalloc walks the stack but once for each activation of a function, and
remembers what it found.  Here is what could make that wrong: the same code
with other callers, the same place in memory for another frame, generators
resumed by somebody else, lines that change while they are executed.
"""

import _imp
import asyncio
import functools
import itertools
import random
import sys
import textwrap
import threading
import unittest

import _tracemalloc as tracemalloc
from test import support
from test.support import import_helper

# Frames kept: one is a special case.
LIMITS = 1, 2, 25


def tearDownModule():
    asyncio.set_event_loop_policy(None)


def frames_of(frame):
    """What a traceback has to say of a frame and its callers."""
    frames = []
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return frames


def call_with_trace(func, trace):
    """Call a function while there is this trace function."""
    old = sys.gettrace()
    sys.settrace(trace)
    try:
        func()
    finally:
        sys.settrace(old)


def recurse_without_allocating(steps, flags, blocks):
    for _ in steps:
        recurse_without_allocating(steps, flags, blocks)
        if next(flags):
            blocks.append(bytearray())
        return
    blocks.append(bytearray())


class Recorder:
    """Allocates, and keeps what differs from the frames that there are."""

    def __init__(self):
        self.count = 0
        self.wrong = []

    def __call__(self):
        # Both on one line, as both look at the line of this frame.  The block
        # is empty: the optimized build is trained with this file, and the
        # compiler would prepare bytearray() for buffers of its size.
        block, frames = bytearray(), frames_of(sys._getframe())
        self.compare(tracemalloc._get_object_traceback(block), frames)

    def compare(self, traceback, frames):
        self.count += 1
        limit = tracemalloc.get_traceback_limit()
        expected = tuple(frames[:limit])
        if traceback != expected:
            self.wrong.append((traceback, expected))

    def total_nframe(self):
        """Compare the length of the whole traceback with the stack's."""
        block, frames = bytearray(61_234), frames_of(sys._getframe())
        found = [trace[3] for trace in tracemalloc._get_traces()
                 if 61_234 <= trace[1] < 61_300]
        self.count += 1
        if found != [len(frames)]:
            self.wrong.append((found, len(frames)))
        del block


class TracebackTestCase(unittest.TestCase):

    def setUp(self):
        if tracemalloc.is_tracing():
            self.skipTest('tracemalloc is tracing already')
        self.addCleanup(tracemalloc.stop)
        self.record = Recorder()

    def each_limit(self):
        for limit in LIMITS:
            with self.subTest(limit=limit):
                tracemalloc.start(limit)
                self.record = Recorder()
                yield self.record
                tracemalloc.stop()
                self.assertGreater(self.record.count, 0)
                self.assertEqual(self.record.wrong[:3], [])


class CallTests(TracebackTestCase):

    def test_other_lines_of_the_caller(self):
        for record in self.each_limit():
            for _ in range(3):
                record()
                record()
                (record(),
                 record())

    def test_other_callers(self):
        for record in self.each_limit():
            def inner():
                record()
                record()
            def first():
                inner()
                inner()
            def second():
                inner()
            for _ in range(3):
                first()
                second()
                inner()

    def test_recursion(self):
        for record in self.each_limit():
            def down(n):
                if n % 7 == 0:
                    record()
                if n:
                    down(n - 1)
                    # The caller is where it was, but not on the line.
                    if n % 5 == 0:
                        record()
            down(150)
            down(90)
            down(150)

    def test_deep_recursion(self):
        # More frames than are remembered.
        for record in self.each_limit():
            def down(n):
                if n:
                    down(n - 1)
                if n % 1000 == 0:
                    record()
                    record.total_nframe()
            with support.infinite_recursion(6000):
                down(5000)
                down(5000)

    def test_long_tracebacks(self):
        # Only some frames allocate.  Tracebacks of all would take 36 MB.
        depth = 3000
        blocks = []
        first = recurse_without_allocating.__code__.co_firstlineno
        with support.infinite_recursion(depth + 100):
            for limit in 300, depth + 100:
                blocks.clear()
                flags = [i % 500 == 0 for i in reversed(range(depth))]
                tracemalloc.start(limit)
                before = tracemalloc.get_tracemalloc_memory()
                recurse_without_allocating(itertools.repeat(None, depth),
                                           iter(flags), blocks)
                after = tracemalloc.get_tracemalloc_memory()
                tracebacks = list(map(tracemalloc._get_object_traceback,
                                      blocks))
                tracemalloc.stop()
                self.assertLess(after - before, 10 << 20)
                # (level of recursion, line)
                allocated = [(depth, 6)]
                allocated += [(i, 4) for i in reversed(range(0, depth, 500))]
                self.assertEqual(len(tracebacks), len(allocated))
                for traceback, (level, line) in zip(tracebacks, allocated):
                    n = min(level, limit - 1)
                    self.assertEqual(traceback[0], (__file__, first + line))
                    self.assertEqual(traceback[1:n + 1],
                                     ((__file__, first + 2),) * n)
                    # The callers of the outermost one.
                    self.assertEqual(traceback[n + 1:],
                                     tracebacks[-1][1:limit - level])

    def test_length(self):
        for record in self.each_limit():
            def down(n):
                record.total_nframe()
                if n:
                    down(n - 1)
                record.total_nframe()
            down(10)
            down(3)

    def test_through_c_code(self):
        class Key:
            def __init__(self, n):
                self.n = n
            def __lt__(self, other):
                record()
                return self.n < other.n
        for record in self.each_limit():
            sorted(map(Key, range(9, 0, -1)))
            list(map(lambda _: record(), range(3)))
            max([1, 2], key=lambda n: record() or n)

    def test_exceptions(self):
        for record in self.each_limit():
            def fail(n):
                record()
                if n == 0:
                    raise ValueError
                try:
                    fail(n - 1)
                finally:
                    record()
            for n in 5, 2, 5:
                try:
                    fail(n)
                except ValueError:
                    record()
                record()

    def test_destructors(self):
        class Late:
            def __del__(self):
                record()
        for record in self.each_limit():
            def leave():
                late = Late()
                record()
            for _ in range(3):
                leave()
                late = Late()
                late = None

    def test_class_bodies_and_comprehensions(self):
        for record in self.each_limit():
            for _ in range(2):
                class Body:
                    record()
                    [record() for _ in range(2)]
                    list(record() for _ in range(2))

    def test_random_calls(self):
        # A tree of calls, with the same few functions on many lines.
        source = ['def call(functions, choose, record, depth):']
        for i in range(10):
            source += ['    for _ in range(choose(0, 1)):',
                       '        if depth:',
                       '            functions[choose(0, 2)]('
                       'functions, choose, record, depth - 1)',
                       '        record()']
        for record in self.each_limit():
            functions = []
            for i in range(3):
                namespace = {}
                exec(compile('\n' * i + '\n'.join(source), f'<{i}>', 'exec'),
                     namespace)
                functions.append(namespace['call'])
            for seed in range(3):
                choose = random.Random(seed).randint
                functions[0](functions, choose, record, 3)


class GeneratorTests(TracebackTestCase):

    def test_other_callers(self):
        for record in self.each_limit():
            def generate():
                while True:
                    record()
                    yield
                    record()
            def resume(gen):
                next(gen)
                for _ in gen:
                    break
                gen.send(None)
            gen = generate()
            for _ in range(3):
                next(gen)
                resume(gen)
                for _ in gen:
                    break
                gen.send(None)
                resume(gen)

    def test_random_generators(self):
        # They allocate themselves, on any of their lines, each with any caller.
        def generate():
            block = None
            while True:
                match (yield block):
                    case 0: block = bytearray()
                    case 1: block = bytearray()
                    case 2: block = bytearray()
        line = generate.__code__.co_firstlineno + 4
        resume = [
            lambda gen, n: gen.send(n),
            lambda gen, n: gen.send(n),
            lambda gen, n: gen.send(n),
        ]
        for record in self.each_limit():
            generators = [generate() for _ in range(200)]
            for gen in generators:
                next(gen)
            choose = random.Random(1).choice
            for _ in range(3000):
                n, gen = choose(range(3)), choose(generators)
                func = choose(resume)
                block, frames = func(gen, n), frames_of(sys._getframe())
                traceback = tracemalloc._get_object_traceback(block)
                record.compare(traceback, (
                    (__file__, line + n),
                    (__file__, func.__code__.co_firstlineno), *frames))

    def test_collisions(self):
        # Of the generators some are remembered in the same place.
        def generate():
            block = None
            while True:
                if (yield block):
                    block = bytearray()
                else:
                    block = bytearray()
        generators = [generate() for _ in range(2000)]
        for gen in generators:
            next(gen)
        gen = generators.pop()
        steps = [((other.send, False), (gen.send, True))
                 for other in generators]
        blocks = []
        tracemalloc.start(2)
        for step in steps:
            gen.send(True)
            for resume, flag in step:
                block = resume(flag)
            blocks.append(block)
        line = sys._getframe().f_lineno - 2
        for block in blocks:
            traceback = tracemalloc._get_object_traceback(block)
            self.record.compare(traceback[1:], [(__file__, line)])
        self.assertEqual(self.record.wrong, [])

    def test_throw_and_close(self):
        for record in self.each_limit():
            def generate():
                while True:
                    try:
                        record()
                        yield
                    except ValueError:
                        record()
                    finally:
                        record()
            def throw(gen):
                gen.throw(ValueError)
            for _ in range(2):
                gen = generate()
                next(gen)
                throw(gen)
                gen.throw(ValueError)
                throw(gen)
                gen.close()

    def test_throw_into_delegate(self):
        # It allocates at the same place whether it is resumed from one line
        # or gets an exception from another.
        for record in self.each_limit():
            def inner():
                while True:
                    try:
                        yield
                    except ValueError:
                        pass
                    record()
                    record.total_nframe()
            def outer():
                yield from inner()
            def throw(gen):
                gen.throw(ValueError)
            gen = outer()
            for _ in range(3):
                next(gen)
                gen.throw(ValueError)
                throw(gen)
            gen.close()

    def test_yield_from(self):
        for record in self.each_limit():
            def inner():
                while True:
                    record()
                    try:
                        yield
                    except ValueError:
                        record()
            def middle(gen):
                record()
                yield from gen
            def outer(gen):
                yield from middle(gen)
            gen = inner()
            next(gen)
            first, second = outer(gen), outer(gen)
            next(first)
            gen.send(None)
            first.send(None)
            first.throw(ValueError)
            gen.throw(ValueError)
            first.close()
            gen = inner()
            second = middle(gen)
            next(second)
            next(gen)
            second.throw(ValueError)

    def test_created_and_dropped(self):
        # One after the other at the same place in memory.
        for record in self.each_limit():
            def generate(n):
                record()
                yield n
                record()
            def consume(n):
                return [*generate(n)]
            for n in range(20):
                consume(n)
                [*generate(n)]
                for _ in generate(n):
                    record()

    def test_coroutines(self):
        for record in self.each_limit():
            async def leaf():
                record()
                await asyncio.sleep(0)
                record()
            async def branch():
                await leaf()
                record()
                await leaf()
            async def agen():
                for _ in range(2):
                    record()
                    yield
                    await leaf()
            async def main():
                await asyncio.gather(branch(), branch(), leaf())
                async for _ in agen():
                    record()
                await branch()
            with asyncio.Runner() as runner:
                for _ in range(3):
                    runner.run(main())

    def test_threads(self):
        # A generator that goes from thread to thread.
        for record in self.each_limit():
            def generate():
                while True:
                    record()
                    yield
            gen = generate()
            def one():
                next(gen)
            def two():
                next(gen)
                next(gen)
            for target in one, two, one, two:
                next(gen)
                thread = threading.Thread(target=target)
                thread.start()
                thread.join()


class CompiledModuleTests(TracebackTestCase):
    """Frames are handled by a module that was compiled for 3.13.5."""

    def setUp(self):
        super().setUp()
        self.capi = import_helper.import_module('_testinternalcapi')

    def call_in_all_orders(self, *calls):
        for permutation in itertools.permutations(calls):
            for call in permutation:
                call()

    def test_new_frame(self):
        # The module has pushed it.
        call_in_new_frame = self.capi.tracemalloc_call_in_new_frame
        for record in self.each_limit():
            def inner():
                record()
                record.total_nframe()
            def first():
                call_in_new_frame(inner)
            def second():
                call_in_new_frame(inner)
            for call in first, second, first, second:
                call()

    def test_resumed_generator(self):
        # The module has resumed it.
        resume = self.capi.tracemalloc_resume
        for record in self.each_limit():
            def generate():
                while True:
                    record()
                    yield
            gen = generate()
            next(gen)
            self.call_in_all_orders(lambda: resume(gen),
                                    lambda: resume(gen),
                                    lambda: next(gen))

    def test_throw(self):
        # The module has linked the generators that wait for the last one.
        resume = self.capi.tracemalloc_resume
        for record in self.each_limit():
            def innermost():
                while True:
                    try:
                        record()
                        yield
                    except KeyError:
                        record()
            def outer(inner):
                record()
                yield from inner
            gens = [innermost()]
            for _ in range(3):
                gens.append(outer(gens[-1]))
            gens.reverse()
            next(gens[0])
            self.call_in_all_orders(lambda: resume(*gens),
                                    lambda: resume(*gens),
                                    lambda: next(gens[0]),
                                    lambda: gens[0].throw(KeyError))

    def test_throw_into_compiled_iterator(self):
        # Its frame is pushed right on top of the generator that waits for it.
        code = compile('def f(): pass', 'compiled', 'exec').co_consts[0]
        for record in self.each_limit():
            def inner():
                record()
            class Iterator:
                throw = staticmethod(functools.partial(
                    self.capi.tracemalloc_call_in_frame, code, inner))
                def __iter__(self):
                    return self
                def __next__(self):
                    record()
            def outer(iterable):
                yield from iterable
            def outermost():
                for item in gen:
                    record()
                    yield item
            gen = outer(outer(Iterator()))
            top = outermost()
            self.call_in_all_orders(lambda: next(top),
                                    lambda: gen.throw(KeyError),
                                    lambda: next(gen))

    def test_compiled_module(self):
        # It pushes the same frame for each call.
        call_in_frame = self.capi.tracemalloc_call_in_frame
        code = compile('def f(): pass', 'compiled', 'exec').co_consts[0]
        def call(func):
            return call_in_frame(code, func), sys._getframe().f_lineno
        def call_elsewhere(func):
            return call_in_frame(code, func), sys._getframe().f_lineno
        def in_python():
            return object()
        top = __file__, in_python.__code__.co_firstlineno + 1
        for limit in LIMITS:
            tracemalloc.stop()
            tracemalloc.start(limit)
            for caller in call, call_elsewhere, call, call_elsewhere:
                for func, frames in ((object, ()), (in_python, (top,))):
                    obj, lineno = caller(func)
                    frames += (('compiled', 1), (__file__, lineno))
                    traceback = tracemalloc._get_object_traceback(obj)
                    self.assertEqual(traceback[:len(frames)], frames[:limit])


class ChangeTests(TracebackTestCase):

    def test_code_at_the_same_place(self):
        # Code objects come and go; most are where one was before.
        for record in self.each_limit():
            for i in range(100):
                namespace = {'record': record}
                source = '\n' * (i % 7) + 'def f(): record()\nf()\n'
                exec(compile(source, f'file{i}', 'exec'), namespace)

    def test_copies_at_the_same_place(self):
        # With pymalloc, each copy is where the one before was.
        for record in self.each_limit():
            def func():
                record()
            code = func.__code__
            for i in range(50):
                func.__code__ = code.replace(co_filename=f'file{i}')
                func()
                func.__code__ = code

    def test_copies_that_allocate(self):
        # Called from one line, they have the same callers, too.
        for record in self.each_limit():
            def func():
                return bytearray()
            code = func.__code__
            for i in range(50):
                func.__code__ = code.replace(co_filename=f'file{i}')
                block, frames = func(), frames_of(sys._getframe())
                traceback = tracemalloc._get_object_traceback(block)
                record.compare(traceback, (
                    (f'file{i}', code.co_firstlineno + 1), *frames))
                func.__code__ = code

    def test_copies_called_by_one_instruction(self):
        # And nothing else is called meanwhile.
        for record in self.each_limit():
            def func():
                return bytearray()
            code = func.__code__
            blocks = []
            for i in range(50):
                func.__code__ = code.replace(co_filename=f'file{i}')
                blocks.append(func())
                func.__code__ = code
            for i, block in enumerate(blocks):
                traceback = tracemalloc._get_object_traceback(block)
                record.compare(
                    traceback[:1], ((f'file{i}', code.co_firstlineno + 1),))

    def test_code_without_version(self):
        # The interpreter has given out all versions.
        capi = import_helper.import_module('_testinternalcapi')
        version = capi.tracemalloc_next_code_version(0)
        self.addCleanup(capi.tracemalloc_next_code_version, version)
        self.test_code_at_the_same_place()
        self.test_copies_at_the_same_place()
        self.test_copies_that_allocate()
        self.test_copies_called_by_one_instruction()

    def test_replaced_code(self):
        for record in self.each_limit():
            def func():
                record()
            for i in range(50):
                func()
                func.__code__ = func.__code__.replace(
                    co_filename=f'file{i}', co_firstlineno=i + 1)

    def test_changed_filename(self):
        for record in self.each_limit():
            namespace = {'record': record}
            code = compile('def f():\n  record()\n  return\nf()\n',
                           'before', 'exec')
            for name in 'before', 'after', 'at last':
                _imp._fix_co_filename(code, name)
                self.assertEqual(code.co_filename, name)
                exec(code, namespace)
                exec(code, namespace)

    def test_filename_changed_while_running(self):
        for record in self.each_limit():
            code = compile(textwrap.dedent("""
                for name in 'one', 'two', 'three':
                    record()
                    fix(name)
                    record()
                """), 'zero', 'exec')
            fix = lambda name: _imp._fix_co_filename(code, name)
            exec(code, {'record': record, 'fix': fix})

    def test_line_set(self):
        for record in self.each_limit():
            def func():
                record()
                record()
                record()
                record()
            first = func.__code__.co_firstlineno
            jumps = [(first + 2, first + 4)]
            def trace(frame, event, arg):
                if frame.f_code is not func.__code__:
                    return None
                if event == 'line' and jumps and frame.f_lineno == jumps[0][0]:
                    frame.f_lineno = jumps.pop(0)[1]
                return trace
            call_with_trace(func, trace)
            self.assertEqual(jumps, [])

    def test_started_again(self):
        # With another limit, while the same frames go on.
        record = self.record
        def inner():
            for limit in 1, 25, 2, 1:
                tracemalloc.start(limit)
                record()
                record()
                leaf()
                tracemalloc.stop()
        def leaf():
            record()
            tracemalloc.clear_traces()
            record()
        inner()
        inner()
        self.assertEqual(record.wrong[:3], [])

    def test_reused_block(self):
        # From a free list, or allocated by the same line of another call.
        for record in self.each_limit():
            def make():
                obj, frames = [0.5], frames_of(sys._getframe())
                return obj, frames
            def first():
                return make()
            def second():
                return make()
            # What is on the free list already has no trace.
            kept = [[0.5] for _ in range(200)]
            for _ in range(3):
                for func in first, second, make:
                    obj, frames = func()
                    record.compare(
                        tracemalloc._get_object_traceback(obj), frames)
                    del obj
            del kept

    def test_reused_block_tracked_in_another_domain(self):
        # Its address is recorded for that domain, and by the same call the
        # object gets it from the free list.
        capi = import_helper.import_module('_testinternalcapi')
        for record in self.each_limit():
            kept = [float(i) for i in range(300)]
            old = float(1)
            address = id(old)
            del old
            pairs = zip(map(capi.tracemalloc_track, [5], [address], [1]),
                        map(float, [2]))
            (_, new), frames = next(pairs), frames_of(sys._getframe())
            self.assertEqual(id(new), address)
            record.compare(tracemalloc._get_object_traceback(new), frames)
            capi.tracemalloc_untrack(5, address)
            del kept


if __name__ == '__main__':
    unittest.main()
