"""Programs that are the worst case of something that tracemalloc does.

Each is a generator, made with the one number that says how much of it there
is.  What it does before its first 'yield' is preparation, which is not
traced; at each later one, the memory of the process is looked at while the
clock stands still.  The fewer frames there are around such a program, the
more of the frames that are kept are its own.
"""

import os
import random
import sys
import threading
from itertools import repeat

import _tracemalloc as tracemalloc
from workloads import anonymous_memory, cpu, give_back_memory

LOOKS = 10              # how often the memory of most programs is looked at


def passes(n):
    """The numbers of n passes, in at most LOOKS ranges of the same length."""
    length = max(1, n // LOOKS)
    for start in range(0, n, length):
        yield range(start, min(start + length, n))


def define(source, filename='<string>'):
    """The namespace that executing the source makes."""
    namespace = {}
    exec(compile(source, filename, 'exec'), namespace)
    return namespace


# --- Many callers ----------------------------------------------------------

PATH = 90               # frames below each site
SITES = 100             # of a function: stock is slow with long functions


def descend(levels, kept):
    """One path of calls, with a block at its end."""
    if levels:
        descend(levels - 1, kept)
    else:
        kept.append(object())


def deep_path(n):
    """Two passes over n call sites, which all lead into one deep path."""
    source = '\n'.join(['def site(go, kept):']
                       + [f'    go({PATH}, kept)'] * SITES)
    functions = [define(source, f'<sites {number}>')['site']
                 for number in range(n // SITES)]
    yield
    for _ in range(2):
        kept = []
        for chunk in passes(len(functions)):
            for index in chunk:
                functions[index](descend, kept)
            yield


NODES = 60              # functions of the graph
EDGES = 4               # calls in each
WALK = 40               # calls of a walk

NODE = """
def node{number}(walk, kept):
    kept.append([])
    edge = next(walk)
    if edge == 0:
        node{0}(walk, kept)
    elif edge == 1:
        node{1}(walk, kept)
    elif edge == 2:
        node{2}(walk, kept)
    elif edge == 3:
        node{3}(walk, kept)
"""


def random_walks(n):
    """Walks over a graph of calls: nearly every traceback is a new one."""
    chance = random.Random(1)
    start = define('\n'.join(
        NODE.format(*chance.choices(range(NODES), k=EDGES), number=number)
        for number in range(NODES)))['node0']
    walks = [chance.choices(range(EDGES), k=WALK) + [None] for _ in range(n)]
    yield
    kept = []
    for chunk in passes(n):
        for index in chunk:
            start(iter(walks[index]), kept)
        yield


FUNCTIONS = 5000        # each in a file of its own
CALLS = 90              # of a path

LINK = """
def link(path):
    for function in path:
        return function(path)
    return [None]
"""


def known_paths(n):
    """Calls along n random paths, ten times: all tracebacks are known."""
    chance = random.Random(1)
    links = [define(LINK, f'/a/folder/of/a/library/module_{number}.py')['link']
             for number in range(FUNCTIONS)]
    paths = [chance.choices(links, k=CALLS) for _ in range(n)]
    yield
    for _ in range(LOOKS):
        for first, *others in paths:
            first(iter(others))
        yield


RECURSION = 5000        # frames


def recurse(levels, kept):
    kept.append([])
    if levels:
        recurse(levels - 1, kept)
    [None]              # on the way back, too


def recursion(n):
    """Down 5,000 frames and back, n times, with two blocks in each frame."""
    sys.setrecursionlimit(2 * RECURSION)
    yield
    for _ in range(n):
        kept = []
        recurse(RECURSION, kept)
        yield


NEW = 2000              # frames


def descend_silently(steps):
    """A call for each item of an iterator, with a block at the end only."""
    for _ in steps:
        return descend_silently(steps)
    return [None]


def new_stacks(n):
    """Blocks, n in all, each of them at the end of 2,000 new frames."""
    sys.setrecursionlimit(2 * NEW)
    yield
    for chunk in passes(n):
        for _ in chunk:
            descend_silently(repeat(None, NEW))
        yield


def branch(levels, kept):
    """A tree of calls, each with another line as its caller."""
    kept.append([])
    if levels:
        branch(levels - 1, kept)
        other_branch(levels - 1, kept)


def other_branch(levels, kept):
    kept.append({})
    if levels:
        other_branch(levels - 1, kept)
        branch(levels - 1, kept)


def tree_recursion(n):
    """Three trees of n levels, so that each node has callers of its own."""
    yield
    for _ in range(3):
        kept = []
        branch(n, kept)
        yield


# --- Frames that come and go in another order than calls -------------------

TOGETHER = 10           # threads that run at the same time


def short_threads(n):
    """Threads, n in all, that make some blocks and end."""
    kept = []

    def work():
        kept.append([bytearray(600), object()])

    yield
    for chunk in passes(n):
        for _ in range(0, len(chunk), TOGETHER):
            threads = [threading.Thread(target=work) for _ in range(TOGETHER)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            kept.clear()
        yield


def deep_threads(n):
    """Threads, n at the same time, each of which was 2,000 frames deep."""
    sys.setrecursionlimit(2 * NEW)
    been_there = threading.Barrier(n + 1)
    end = threading.Event()

    def work():
        descend_silently(repeat(None, NEW))
        been_there.wait()
        end.wait()

    yield
    threads = [threading.Thread(target=work) for _ in range(n)]
    for thread in threads:
        thread.start()
    been_there.wait()
    yield
    end.set()
    for thread in threads:
        thread.join()
    yield


DELEGATED = 300         # generators, one in the other


def delegate(levels, n):
    if levels:
        yield from delegate(levels - 1, n)
    else:
        for _ in repeat(None, n):
            yield [object()]


def yield_from(n):
    """Items of a generator deep in 'yield from': the whole stack is new."""
    sys.setrecursionlimit(10 * DELEGATED)
    yield
    kept = []
    items = delegate(DELEGATED, n)
    for chunk in passes(n):
        kept.extend([next(items), object()] for _ in chunk)
        yield


AWAITED = 10            # coroutines of a task, one in the other


def asyncio_tasks(n):
    """Tasks, n at the same time, each of which is resumed three times."""
    import asyncio

    async def wait(levels):
        if levels:
            return [await wait(levels - 1)]
        kept = []
        for _ in range(3):
            kept.append(object())
            await asyncio.sleep(0)
        return kept

    async def main():
        return await asyncio.gather(*(wait(AWAITED) for _ in range(n)))

    asyncio.run(asyncio.sleep(0))       # imports what is needed
    yield
    kept = asyncio.run(main())
    yield
    del kept


# --- Code that comes and goes ----------------------------------------------

SOURCE = 'def made():\n    return [object()]\nkept = made()\n'


def executed(n, filename):
    for chunk in passes(n):
        for number in chunk:
            code = compile(SOURCE, filename.format(number), 'exec')
            exec(code, {})
        yield


def exec_one_name(n):
    """Code objects, all with the filename <string>, made and dropped."""
    yield
    yield from executed(n, '<string>')


def exec_own_names(n):
    """The same where each has a filename of its own."""
    yield
    yield from executed(n, '<string {}>')


# --- The heap --------------------------------------------------------------

HOLE = 50               # one block of so many is freed


def full_heap(n):
    """Blocks come and go in the holes of a heap that was full before."""
    chance = random.Random(1)
    sizes = (15, 31, 63, 127, 255)
    heap = [bytes(sizes[number % 5]) for number in range(n)]
    holes = chance.sample(range(n), n // HOLE)
    for index in holes:
        heap[index] = None
    yield
    for _ in range(3):
        for chunk in passes(len(holes)):
            for index in chunk:
                heap[holes[index]] = bytes(sizes[holes[index] % 5])
            yield
        chance.shuffle(holes)
        for index in holes:
            heap[index] = None


TIDE = 3000             # blocks


def tides(n):
    """Blocks that all come and all go: the allocator's pools empty and fill."""
    kept = [None] * TIDE
    none = [None] * TIDE
    yield
    for chunk in passes(n):
        for _ in chunk:
            kept[:] = map(bytes, repeat(440, TIDE))
            kept[:] = none
        yield


def sawtooth(n):
    """Sizes that rise and fall around 512 bytes, where the allocator changes.

    A bytearray's own block is resized, a bytes object is a new block.
    """
    sizes = [*range(440, 560, 7), *range(559, 440, -7)]
    kept = [None] * 64
    buffer = bytearray()
    yield
    for chunk in passes(n // len(sizes)):
        for number in chunk:
            for size in sizes:
                kept[(number + size) % 64] = bytes(size)
                buffer[:] = kept[(number + size) % 64]
                if number % 4 == 0:
                    buffer.clear()
        yield


HUGE = 50_000           # items


def huge_list(n):
    """One list, n times made larger and smaller by half a million bytes."""
    items = [None] * HUGE
    yield
    for chunk in passes(n // 2):
        for _ in chunk:
            items *= 3
            del items[HUGE:]
        yield


# --- Tests of CPython ------------------------------------------------------

def import_all(name):
    """Import a module of the package test, or all modules in a folder."""
    import unittest
    return unittest.defaultTestLoader.loadTestsFromName(f'test.{name}')


def write_caches(name):
    """Let a child process import it all, so that the .pyc files exist."""
    child = os.fork()
    if child == 0:
        try:
            import_all(name)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def suite(name):
    """Import and run a module of CPython's tests."""
    import unittest
    from contextlib import redirect_stderr, redirect_stdout
    write_caches(name)
    yield
    with (open(os.devnull, 'w') as null, redirect_stdout(null),
          redirect_stderr(null)):
        tests = import_all(name)
        yield
        result = unittest.TextTestRunner(null).run(tests)
    if not result.testsRun or len(result.errors) > result.testsRun // 2:
        raise RuntimeError(f'{name}: {result}')
    yield


PROGRAMS = {function.__name__: function for function in (
    deep_path, random_walks, known_paths, recursion, new_stacks,
    tree_recursion, short_threads, deep_threads, yield_from, asyncio_tasks,
    exec_one_name, exec_own_names, full_heap, tides, sawtooth, huge_list)}


def shape(name, frames, n):
    """Run a program once: its time, and the most memory that was seen.

    The time is that of all threads, start() and stop() included.  'rss' is
    what the process has grown by, its own blocks included; 'claimed' is what
    get_tracemalloc_memory() says.
    """
    program = PROGRAMS[name](n) if name in PROGRAMS else suite(name)
    next(program)
    give_back_memory()
    rss = claimed = 0
    before = anonymous_memory()
    begin = cpu()
    tracemalloc.start(frames)
    seconds = 0
    for _ in program:
        seconds += cpu() - begin
        claimed = max(claimed, tracemalloc.get_tracemalloc_memory())
        rss = max(rss, anonymous_memory() - before)
        begin = cpu()
    tracemalloc.stop()
    seconds += cpu() - begin
    yield {'seconds': seconds, 'claimed': claimed, 'rss': rss}


KINDS = {'shape': shape}
