"""Do two builds trace the same?  Compare what programs leave behind.

Each program runs in both builds with the same hash seed, the same paths, and
1, 10 and 100 frames kept.  Compared are the multisets of (domain, size,
traceback, total_nframe) of the traces that are alive at its end.  Traces in
which two runs of stock differ as well are left out.  The exit status is 1 if
there are differences.
"""

import argparse
import pathlib
import sys
from collections import Counter

import builds

SHOWN = 5           # differences of one program
SHOWN_FRAMES = 4    # and the most recent frames of each


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='compare_traces.py', description=__doc__)
    builds.arguments(parser)
    parser.add_argument('--frames', default='1,10,100', metavar='N,N...',
                        help='numbers of frames (default: %(default)s)')
    parser.add_argument('--timeout', default=120, type=int, metavar='S',
                        help='seconds for one run (default: %(default)s)')
    parser.add_argument('programs', nargs='*', metavar='PROGRAM',
                        type=pathlib.Path,
                        help='Python files (default: all in programs/)')
    args = parser.parse_args()
    args.frames = args.frames.split(',')
    if not args.programs:
        args.programs = sorted((builds.HERE / 'programs').glob('*.py'))
    return args


def traces(build, program, frames, timeout):
    """The traces of one run, counted."""
    with builds.Session(build, 'dump_traces.py', frames,
                        program.resolve()) as session:
        dumped = session.turn(timeout)
    tracebacks = [tuple(map(tuple, traceback))
                  for traceback in dumped['tracebacks']]
    return Counter({(domain, size, tracebacks[index], total): count
                    for domain, size, index, total, count
                    in dumped['traces']})


def difference(first, second):
    """Traces that one has more often than the other, with how much more."""
    return {trace: second[trace] - first[trace]
            for trace in first.keys() | second.keys()
            if first[trace] != second[trace]}


def show(trace, surplus):
    domain, size, traceback, total = trace
    sign = 'more' if surplus > 0 else 'less'
    print(f'    patched has {abs(surplus)} {sign}: domain {domain},'
          f' {size} bytes, {total} frames:')
    # The most recent frame comes first in a trace.
    for filename, line in traceback[:SHOWN_FRAMES]:
        print(f'        {filename}:{line}')


def compare(stock, patched, program, frames, timeout):
    """Say how they differ, and return the number of differences.

    One that a second pair of runs has not is chance, too.
    """
    def run(build):
        return traces(build, program, frames, timeout)

    first = run(stock)
    found = difference(first, run(patched))
    again = run(stock)
    noise = difference(first, again).keys()
    real = found.keys() - noise
    if real:
        real &= difference(again, run(patched)).keys()
        noise |= difference(first, run(stock)).keys()
        real -= noise
    print(f'{program.stem}, {frames} kept: {sum(first.values())} traces,'
          f' {len(real)} differences ({len(noise)} between runs of stock)',
          flush=True)
    for trace in sorted(real)[:SHOWN]:
        show(trace, found[trace])
    return len(real)


def main():
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    stock, patched = (builds.copy(name, path, args.out) for name, path in
                      (('stock', args.stock), ('patched', args.patched)))
    differences = 0
    for program in args.programs:
        try:
            for build in stock, patched:
                # The first run writes the .pyc files.
                traces(build, program, '1', args.timeout)
            for frames in args.frames:
                differences += compare(stock, patched, program, frames,
                                       args.timeout)
        except builds.Failure as failure:
            print(f'{program.stem}: {failure}')
            differences += 1
    print('differences:', differences)
    return 1 if differences else 0


if __name__ == '__main__':
    sys.exit(main())
