"""gevent: greenlets that hand on what they make, timeouts, sockets."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import gevent
from gevent import queue, socket


def make(count, target):
    for i in range(count):
        target.put([str(i)] * 3)
        gevent.sleep(0)
    target.put(None)


def take(source):
    return [one for one in iter(source.get, None)]


def main(n):
    pipes = [queue.Queue() for _ in range(5 * n)]
    takers = [gevent.spawn(take, pipe) for pipe in pipes]
    makers = [gevent.spawn(make, 40, pipe) for pipe in pipes]
    gevent.joinall(takers + makers, raise_error=True)
    kept = [one.value for one in takers]
    with gevent.Timeout(0.01, False):
        gevent.sleep(10)
    near, far = socket.socketpair()
    reader = gevent.spawn(far.recv, 5000)
    near.sendall(bytes(3000))
    kept.append(reader.get())
    near.close()
    far.close()
    # It has a copy of its C stack, as large as the frames of that compiler.
    hub = gevent.get_hub()
    hub.destroy()
    hub.throw()
    return kept
