"""pickle: a graph of objects with cycles, shared parts and __reduce__."""

import pickle


class Point:
    __slots__ = ('x', 'y')

    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __reduce__(self):
        return Point, (self.x, self.y)


class Node:
    def __init__(self, number, parent):
        self.number = number
        self.parent = parent
        self.place = Point(number, -number)
        self.names = {f'name{number}': number, 'shared': parent}


def tree(count):
    nodes = [Node(0, None)]
    for number in range(1, count):
        nodes.append(Node(number, nodes[number // 2]))
    return nodes


def main(n):
    nodes = tree(70 * n)
    for protocol in 0, 2, 5:
        data = pickle.dumps(nodes, protocol)
        nodes = pickle.loads(data)
    # The picklers written in Python, for a part of it.
    data = pickle._dumps(tree(5 * n), 4)
    return nodes, pickle._loads(data)
