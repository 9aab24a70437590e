"""greenlet: switches in the middle of deep stacks, ends and errors."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import greenlet


def descend(depth, kept):
    if depth:
        return descend(depth - 1, kept)
    while True:
        kept.append([greenlet.getcurrent().parent.switch(len(kept))])


def main(n):
    kept = []
    alive = [greenlet.greenlet(descend) for _ in range(20 * n)]
    for depth, one in enumerate(alive):
        one.switch(depth, kept)
    for turn in range(50):
        for one in alive:
            one.switch(str(turn) * 20)
    for one in alive[::2]:
        try:
            one.throw(ValueError('end'))
        except ValueError:
            pass
    # The copy of a C stack is as large as the frames of that compiler.
    for one in alive[1::2]:
        one.throw()
    return alive, kept
