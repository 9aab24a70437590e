"""What is measured, run inside of the measured interpreter.

Each kind of measurement is a generator: what comes before its loop is
preparation, and each item is what was measured in one turn.  Times are in
seconds.  Work of one thread is timed by the processor time of the process, so
that other programs on the machine disturb it less; work of several threads by
the clock on the wall.
"""

import gc
import os
import sys
import threading
import time
from itertools import repeat

import _tracemalloc as tracemalloc
from loading import load

cpu = time.process_time
wall = time.perf_counter
FIRST_INT = 10**6       # no small int, so each one is a new block


# --- Operations: each makes n blocks -------------------------------------

class Empty:
    __slots__ = ()


def objects(n):
    for _ in repeat(None, n):
        Empty()


def lists(n):
    for _ in repeat(None, n):
        [1, 2, 3, 4]


def dicts(n):
    for _ in repeat(None, n):
        {'key': None}


def strings(n):
    number = 12345
    for _ in repeat(None, n):
        'a%d' % number


def floats(n):
    number = 1.5
    for _ in repeat(None, n):
        number * number


def buffers(n):
    for _ in repeat(None, n):
        bytearray(2000)


def kept_ints(n):
    return list(range(FIRST_INT, FIRST_INT + n))


PIECES = [bytes(size) for size in (16, 48, 128, 300)]


def reallocs(n):
    """The buffer of a bytearray, four times larger and once smaller."""
    grown = bytearray()
    for _ in repeat(None, n // 5):
        for piece in PIECES:
            grown += piece
        grown.clear()


OPERATIONS = {function.__name__: function for function in
              (objects, lists, dicts, floats, strings, buffers, kept_ints,
               reallocs)}


# --- One thread ------------------------------------------------------------

def descend(levels, function):
    """Call the function that many frames further down."""
    if levels:
        return descend(levels - 1, function)
    return function()


# The frames around an operation when descend() adds none: the module,
# micro(), descend(), turn(), the operation.
FRAMES_AROUND = 5


def micro(operation, depth, frames, n):
    """Seconds for an operation in frame number 'depth'."""
    run = OPERATIONS[operation]

    def turn():
        run(n // 10)            # the other build had the caches
        begin = cpu()
        kept = run(n)
        untraced = cpu() - begin
        kept = None             # not to be freed in the time of the next
        tracemalloc.start(frames)
        run(n // 10)
        begin = cpu()
        kept = run(n)
        traced = cpu() - begin
        kept = None
        tracemalloc.stop()
        return {'traced': traced / n, 'untraced': untraced / n}

    gc.disable()
    while True:
        yield descend(depth - FRAMES_AROUND, turn)


def anonymous_memory():
    """The kernel's figure for the memory of this process, in bytes."""
    with open('/proc/self/status') as file:
        for line in file:
            if line.startswith('RssAnon:'):
                return int(line.split()[1]) * 1024
    raise RuntimeError('this system has no RssAnon')


def give_back_memory():
    """Let malloc() return free pages, so that new memory can be seen."""
    gc.collect()
    try:
        import ctypes
        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, AttributeError):
        pass                    # no _ctypes, or not glibc


CHUNK = 100


def memory(n, frames):
    """Keep n ints and look at the memory that this takes; for one turn.

    With 0 frames nothing traces: what the ints take themselves.
    """
    gc.disable()
    chunks = [None] * (n // CHUNK)
    clock = time.thread_time
    longest = 0.0
    before = anonymous_memory()
    if frames:
        tracemalloc.start(frames)
    begin = last = clock()
    for index in range(n // CHUNK):
        chunks[index] = kept_ints(CHUNK)
        now = clock()
        if now - last > longest:
            longest = now - last
        last = now
    seconds = last - begin
    claimed = tracemalloc.get_tracemalloc_memory()
    # Each chunk is a list and its array, besides the ints.
    yield {'seconds': seconds, 'longest': longest, 'claimed': claimed,
           'rss': anonymous_memory() - before, 'traces': n + 2 * len(chunks)}


PAGE_BYTES = 16384      # of the allocator's page of small blocks, about


def full_heap(size, n):
    """Bytes of memory for each trace, where each falls into another page.

    n blocks fill the heap, and one in each page is freed.  Then tracing
    starts, and as many blocks as there are holes are made.
    """
    import random
    length = size - sys.getsizeof(b'')
    make = object if length < 0 else lambda: bytes(length)
    gc.disable()
    holes = list(range(0, n, PAGE_BYTES // size))
    random.Random(1).shuffle(holes)
    heap = [None] * n
    for index in range(n):
        heap[index] = make()
    for index in holes:
        heap[index] = None
    give_back_memory()
    before = anonymous_memory()
    tracemalloc.start(1)
    for index in holes:
        heap[index] = make()
    claimed = tracemalloc.get_tracemalloc_memory()
    yield {'rss': anonymous_memory() - before, 'claimed': claimed,
           'traces': len(holes)}


def timed(function, *arguments):
    """Seconds of processor time; the result is freed afterwards."""
    begin = cpu()
    result = function(*arguments)
    seconds = cpu() - begin
    del result
    return seconds


def queries(n):
    """Snapshot, clear and stop with n traces."""
    import tracemalloc as module
    gc.disable()
    while True:
        tracemalloc.start(1)
        kept = [kept_ints(n)]
        seconds = {function.__name__: timed(function) for function in
                   (tracemalloc._get_traces, module.take_snapshot,
                    tracemalloc.clear_traces)}
        kept.append(kept_ints(n))
        seconds['stop'] = timed(tracemalloc.stop)
        del kept
        yield seconds


def load_program(name):
    here = os.path.dirname(os.path.abspath(__file__))
    return load(f'{here}/programs/{name}.py').main


def nothing(name, n):
    """A program where tracemalloc was never started."""
    main = load_program(name)
    main(n)
    while True:
        gc.collect()
        yield {'seconds': timed(main, n)}


def program(name, n):
    """A program without and with tracing."""
    main = load_program(name)
    main(n)
    while True:
        gc.collect()
        untraced = timed(main, n)
        gc.collect()
        tracemalloc.start(1)
        traced = timed(main, n)
        tracemalloc.stop()
        yield {'untraced': untraced, 'traced': traced}


# --- Several interpreters and threads ----------------------------------------

def together(functions):
    """Seconds until all of them have ended, a thread for each."""
    errors = []

    def call(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(function,))
               for function in functions]
    begin = wall()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = wall() - begin
    if errors:
        raise errors[0]
    return seconds


def execute(interpreter, source):
    import _interpreters
    error = _interpreters.exec(interpreter, source)
    if error is not None:
        raise RuntimeError(error.formatted)


START = 'import _tracemalloc; _tracemalloc.start(1)'
STOP = '_tracemalloc.stop()'


def another(name, n):
    """A program here, while an idle interpreter traces or does not."""
    import _interpreters
    main = load_program(name)
    interpreter = _interpreters.create('isolated')
    main(n)
    while True:
        gc.collect()
        alone = timed(main, n)
        gc.collect()
        execute(interpreter, START)
        traced = timed(main, n)
        execute(interpreter, STOP)
        yield {'alone': alone, 'traced': traced}


MIXED = """if 1:
    from itertools import repeat

    class Empty:
        __slots__ = ()

    def mixed(n):
        for number in repeat(12345, n):
            Empty()
            [number, {'key': number}]
            'a%d' % number
"""


def by_count(work, passes):
    """Seconds for each pass, by how many functions of the list run."""
    return {str(count): together(work[:count]) / (count * passes)
            for count in (1, 2, 4)}


def interpreters(traced, n):
    """Isolated interpreters that run the same work at the same time."""
    import _interpreters
    ids = [_interpreters.create('isolated') for _ in range(4)]
    for interpreter in ids:
        execute(interpreter, MIXED + '    mixed(1000)')
        if traced:
            execute(interpreter, START)
    work = [lambda i=i: execute(i, f'mixed({n})') for i in ids]
    while True:
        yield by_count(work, n)


def threads(traced, n):
    """Threads of the main interpreter."""
    namespace = {}
    exec(MIXED, namespace)
    if traced:
        tracemalloc.start(1)
    work = [lambda: namespace['mixed'](n)] * 4
    while True:
        yield by_count(work, n)


TRACK_DOMAIN = 4711


def track_python(n):
    """PyTraceMalloc_Track() with the GIL released, by Python threads."""
    from _testcapi import tracemalloc_track
    tracemalloc.start(1)

    def track(address):
        for _ in repeat(None, n):
            tracemalloc_track(TRACK_DOMAIN, address, 8, True)

    work = [lambda a=a: track(a * 4096) for a in range(1, 5)]
    while True:
        yield by_count(work, n)


def track_native(n):
    """The same by threads that Python does not know, and without a GIL.

    A pass is two calls of PyTraceMalloc_Track() for one address and one of
    PyTraceMalloc_Untrack().
    """
    from _testinternalcapi import tracemalloc_run_pool
    tracemalloc.start(1)
    while True:
        seconds = {}
        for count in 1, 2, 4:
            begin = wall()
            tracemalloc_run_pool('track', count, n, False)
            seconds[str(count)] = (wall() - begin) / (count * n)
        yield seconds


KINDS = {function.__name__: function for function in
         (micro, memory, full_heap, queries, nothing, program, another,
          interpreters, threads, track_python, track_native)}
