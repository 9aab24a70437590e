"""check-debian.py: do isolated interpreters trace here, each by itself?

Run by debian.sh with the Python that it has built.  Several interpreters with a
GIL of their own trace at the same time, in threads, with different numbers of
frames; then each looks for its own blocks in its own traces, while the main
interpreter does not trace.
"""

import _interpreters
import json
import os
import sys
import threading
import tracemalloc

COUNT = 4           # of interpreters
SIZE = 1000         # of a block
TRACE = '''
import json, os, tracemalloc
tracemalloc.start(frames)
kept = [bytearray(size) for _ in range(blocks)]
os.write(ready, b'.')
os.read(go, 1)          # until all of them have got so far
found = [trace for trace in tracemalloc.take_snapshot().traces
         if trace.size == size + 1 and trace.traceback[-1].lineno == 4]
answer = [tracemalloc.is_tracing(), tracemalloc.get_traceback_limit(),
          len(found), tracemalloc.get_traced_memory()[0] > size * blocks]
tracemalloc.stop()
os.write(out, json.dumps([*answer, tracemalloc.is_tracing()]).encode())
'''


class Traced:
    def __init__(self, number, ready, go):
        self.frames = number + 1
        self.blocks = 100 * self.frames
        self.answer, out = os.pipe()
        self.shared = {'frames': self.frames, 'blocks': self.blocks,
                       'size': SIZE, 'ready': ready, 'go': go, 'out': out}
        self.error = None
        self.id = _interpreters.create('isolated')
        self.thread = threading.Thread(target=self.run)

    def run(self):
        error = _interpreters.run_string(self.id, TRACE, self.shared)
        if error is not None:
            self.error = error.formatted
            os.write(self.shared['ready'], b'.')
        _interpreters.destroy(self.id)

    def faults(self):
        if self.error is not None:
            return [self.error]
        answer = json.loads(os.read(self.answer, 1000))
        expected = [True, self.frames, self.blocks, True, False]
        print(f'{self.frames} frames, {self.blocks} blocks: {answer}')
        return [] if answer == expected else [f'{answer}, not {expected}']


def main():
    print(sys.version)
    ready, was_ready = os.pipe()
    wait, go = os.pipe()
    traced = [Traced(i, was_ready, wait) for i in range(COUNT)]
    for one in traced:
        one.thread.start()
    for one in traced:
        os.read(ready, 1)
    faults = []
    if tracemalloc.is_tracing():
        faults.append('the main interpreter traces')
    # This is about all interpreters.
    if tracemalloc.get_traced_memory()[0] < SIZE * sum(
            one.blocks for one in traced if one.error is None):
        faults.append('the main interpreter does not see their size')
    os.write(go, b'.' * COUNT)
    for one in traced:
        one.thread.join()
        faults += one.faults()
    for fault in faults:
        print('fault:', fault)
    print(len(faults), 'faults')
    sys.exit(bool(faults))


if __name__ == '__main__':
    main()
