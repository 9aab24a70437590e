"""Recursion hundreds of frames deep that allocates on every level."""


def paths(depth, trail):
    """A list of all levels below this one."""
    trail = trail + (depth,) if depth % 50 else (depth,)
    if depth == 0:
        return [trail]
    below = paths(depth - 1, trail)
    below.append({'depth': depth, 'trail': trail})
    return below


def nested(depth):
    return [str(depth), nested(depth - 1)] if depth else []


def flatten(value, out):
    """Depth first, one frame for each list inside another."""
    for item in value:
        if isinstance(item, list):
            flatten(item, out)
        else:
            out.append(int(item) * 1000)
    return out


def main(n):
    kept = []
    for _ in range(max(1, 3 * n // 4)):
        below = paths(800, ())
        value = nested(800)
        kept = [below, value, flatten(value, [])]
    return kept
