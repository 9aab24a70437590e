"""Do two builds trace the same?  Compare what programs leave behind.

Each program runs in both builds with the same hash seed, the same paths, and
1, 10 and 100 frames kept.  Compared are the multisets of (domain, size,
traceback, total_nframe) of the traces that are alive at its end.  Traces in
which two runs of stock differ as well are left out.  The exit status is 1 if
there are differences.

With --scripts, the programs are the command lines of a file instead: each
line 'NAME: WORD...', the words being what would follow 'python' there, and #
beginning a comment.  {source} stands for a folder with the folders 'test',
'Tools', 'Grammar' and 'Parser' of a source tree (--source), {lib} for the
library, {tmp} for an empty folder, which is also the current one.  Both builds
run the same files.
"""

import argparse
import pathlib
import shlex
import shutil
import sys
from collections import Counter

import builds

PAIRS = 4           # of runs more, if there are differences
SHOWN = 5           # differences of one program
SHOWN_FRAMES = 4    # and the most recent frames of each


class Program:
    """A Python file with main(n), or without."""

    def __init__(self, path):
        self.name = path.stem
        self.path = path.resolve()

    def dump(self, build, frames, timeout):
        with builds.Session(build, 'dump_traces.py', frames,
                            self.path) as session:
            return session.turn(timeout)


class Command:
    """A command line of the list."""

    def __init__(self, name, words):
        self.name = name
        self.words = words

    def dump(self, build, frames, timeout):
        source = build.trees / 'source'
        tmp = build.trees / 'tmp'
        library = build.trees / 'now' / 'lib' / build.facts['folder']
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        words = [word.format(source=source, lib=library, tmp=tmp)
                 for word in self.words]
        with builds.Session(build, 'dump_traces.py', frames, '--command',
                            *words, cwd=tmp, path=source) as session:
            return session.turn(timeout)


def read_commands(path):
    commands = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.partition('#')[0].strip()
        if not line:
            continue
        name, colon, words = line.partition(':')
        if not colon or not words.strip():
            sys.exit(f"error: line {number} of {path} is not 'NAME: WORD...'.")
        commands.append(Command(name.strip(), shlex.split(words)))
    return commands


def prepare(source, stock, patched):
    """Give both builds all the same files, which programs may look at.

    They cannot have the same _testinternalcapi, so they have none.
    """
    for build in stock, patched:
        for path in extensions(build, '_testinternalcapi.*'):
            path.unlink()
    # It says how and where the build was made.
    for path in extensions(stock, '_sysconfigdata_*.py'):
        for other in extensions(patched, path.name):
            shutil.copyfile(path, other)
    target = stock.trees / 'source'
    if target.exists():
        shutil.rmtree(target)
    ignore = shutil.ignore_patterns('__pycache__')
    for folder in 'Lib/test', 'Tools', 'Grammar', 'Parser':
        shutil.copytree(source / folder, target / folder.split('/')[-1],
                        ignore=ignore)


def extensions(build, pattern):
    library = build.trees / build.name / 'lib' / build.facts['folder']
    return list((library / 'lib-dynload').glob(pattern))


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='compare_traces.py', description=__doc__.partition('\n\n')[0])
    builds.arguments(parser)
    parser.add_argument('--frames', default='1,10,100', metavar='N,N...',
                        help='numbers of frames (default: %(default)s)')
    parser.add_argument('--timeout', default=120, type=int, metavar='S',
                        help='seconds for one run (default: %(default)s)')
    parser.add_argument('--scripts', metavar='FILE', type=pathlib.Path,
                        help='run the command lines of this file')
    parser.add_argument('--source', metavar='DIR', type=pathlib.Path,
                        help='source tree for {source} (default: the one of '
                             'this tool)')
    parser.add_argument('--only', action='append', metavar='NAME',
                        help='of --scripts this one alone; can be repeated')
    parser.add_argument('programs', nargs='*', metavar='PROGRAM',
                        type=pathlib.Path,
                        help='Python files (default: all in programs/)')
    args = parser.parse_args()
    args.frames = args.frames.split(',')
    if args.scripts and args.programs:
        parser.error('programs and --scripts exclude each other')
    if args.only and not args.scripts:
        parser.error('--only needs --scripts')
    if args.scripts:
        args.programs = read_commands(args.scripts)
        if args.only:
            unknown = set(args.only) - {one.name for one in args.programs}
            if unknown:
                parser.error(f'not in {args.scripts}: {" ".join(unknown)}')
            args.programs = [one for one in args.programs
                             if one.name in args.only]
        if args.source is None:
            args.source = builds.HERE.parent.parent
    else:
        args.programs = [Program(path) for path in (
            args.programs or sorted((builds.HERE / 'programs').glob('*.py')))]
    return args


def traces(build, program, frames, timeout):
    """The traces of one run, counted."""
    dumped = program.dump(build, frames, timeout)
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

    One that another pair of runs has not is chance, too.
    """
    def run(build):
        return traces(build, program, frames, timeout)

    first = run(stock)
    found = difference(first, run(patched))
    again = run(stock)
    noise = set(difference(first, again))
    real = found.keys() - noise
    for _ in range(PAIRS):
        if not real:
            break
        real &= difference(again, run(patched)).keys()
        again = run(stock)
        noise |= difference(first, again).keys()
        real -= noise
    print(f'{program.name}, {frames} kept: {sum(first.values())} traces,'
          f' {len(real)} differences ({len(noise)} between runs of stock)',
          flush=True)
    for trace in sorted(real)[:SHOWN]:
        show(trace, found[trace])
    return len(real)


def main():
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    # Names of one length: sysconfig resolves the symbolic link.
    stock, patched = (builds.copy(name, path, args.out) for name, path in
                      (('stock', args.stock), ('patch', args.patched)))
    if args.scripts:
        try:
            prepare(args.source, stock, patched)
        except OSError as error:
            sys.exit(f'error: {args.source} is no source tree of CPython: '
                     f'{error}.')
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
            print(f'{program.name}: {failure}', flush=True)
            differences += 1
    print('differences:', differences)
    return 1 if differences else 0


if __name__ == '__main__':
    sys.exit(main())
