"""Two threads against one: what tracing adds to the work of each."""

import gc
import time
from itertools import repeat
from queue import SimpleQueue

import _tracemalloc as tracemalloc
from workloads import kept_ints, together


# Threads that make instances of a class written in Python also wait for each
# other to change its reference count.
make = object


def private_work(n, count):
    """A function for each thread, which makes and drops its own objects."""
    def work():
        for _ in repeat(None, n):
            make()

    return [work] * count


def growing_work(n, count):
    """The same, which keeps all: the sum grows for ever."""
    kept = []
    return [lambda: kept.append(kept_ints(n))] * count


PIECE = 200             # objects that are handed over together
WAITING = 50            # pieces between the two threads


def queue_work(n, count):
    """One thread allocates and the other one frees, or one does both.

    The objects change hands in lists, so that the queue itself costs little.
    """
    queue = SimpleQueue()

    def allocate():
        for _ in repeat(None, n // PIECE):
            while queue.qsize() > WAITING:
                time.sleep(0)
            queue.put([make() for _ in repeat(None, PIECE)])

    def free():
        for _ in repeat(None, n // PIECE):
            queue.get()

    def do_both():
        for _ in repeat(None, n // PIECE):
            queue.put([make() for _ in repeat(None, PIECE)])
            queue.get()

    return [do_both] if count == 1 else [allocate, free]


WORK = {'private': private_work, 'growing': growing_work,
        'queue': queue_work}


def pair(name, n):
    """Seconds for a pass of one thread and of each of two, by the clock."""
    def measure(traced):
        seconds = {}
        for count in 1, 2:
            work = WORK[name](n, count)
            if traced:
                tracemalloc.start(1)
            seconds[count] = together(work) / n
            if traced:
                tracemalloc.stop()
        return seconds

    gc.disable()
    measure(False)
    while True:
        untraced = measure(False)
        traced = measure(True)
        yield {f'{word}_{count}': values[count]
               for word, values in (('untraced', untraced),
                                    ('traced', traced))
               for count in (1, 2)}


KINDS = {'pair': pair}
