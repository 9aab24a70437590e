"""Generators: pipelines, delegation, send() and throw()."""

from itertools import chain, islice


def numbers(stop):
    for number in range(stop):
        yield number + 1000


def pairs(items):
    for item in items:
        yield item, str(item)


def walk(tree):
    """All leaves, through one 'yield from' for each level."""
    if isinstance(tree, tuple):
        for child in tree:
            yield from walk(child)
    else:
        yield [tree]


def tree(depth):
    return (tree(depth - 1), tree(depth - 1)) if depth else depth


def averages():
    """Coroutine: the mean of what was sent; ValueError forgets it."""
    total, count = 0, 0
    while True:
        try:
            total += yield {'mean': total / (count or 1)}
            count += 1
        except ValueError:
            total, count = 0, 0


def main(n):
    kept = []
    for _ in range(4 * n):
        kept = list(pairs(n for n in numbers(900) if n % 3))
        kept.extend(chain.from_iterable(walk(tree(9))))
        mean = averages()
        next(mean)
        for number in islice(numbers(1000), 400):
            kept.append(mean.send(number))
            if number % 100 == 0:
                kept.append(mean.throw(ValueError()))
    return kept
