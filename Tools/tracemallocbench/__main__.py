"""Compare tracemalloc of two builds of CPython: see README.md."""

import argparse
import json
import os
import pathlib
import platform
import sys
import time
from contextlib import ExitStack

import builds
import plan
import plots
import report


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='tracemallocbench', description=__doc__)
    builds.arguments(parser)
    parser.add_argument('--freethreaded-stock', metavar='PYTHON',
                        help='--disable-gil builds, for the threads')
    parser.add_argument('--freethreaded-patched', metavar='PYTHON')
    parser.add_argument('--quick', action='store_true',
                        help='less of everything, below a minute')
    parser.add_argument('--only', metavar='GROUP', action='append',
                        choices=list(plan.GROUPS),
                        help='a group alone (again for more): '
                        + ', '.join(plan.GROUPS))
    return parser.parse_args()


def machine():
    """The machine and its system in a line."""
    processor = platform.processor() or platform.machine()
    try:
        text = pathlib.Path('/proc/cpuinfo').read_text()
        processor = text.split('model name')[1].split(':')[1].split('\n')[0]
    except (OSError, IndexError):
        pass                    # not Linux, or another processor's format
    return (f'{processor.strip()}, {os.cpu_count()} processors,'
            f' {platform.system()} {platform.release()}'
            f' {platform.machine()}')


class Progress:
    """A line for each round of each group, with a counter on a terminal."""

    def __init__(self, total):
        self.total = total
        self.done = 0
        self.terminal = sys.stdout.isatty()

    def begin(self, text, count):
        self.text = text
        self.count = count
        self.begun = time.monotonic()
        print(f'{100 * self.done // self.total:3} %  {text} ... ', end='',
              flush=True)

    def step(self, index):
        self.done += 1
        if self.terminal:
            print(f'\r{100 * self.done // self.total:3} %  {self.text} ...'
                  f' {index + 1} of {self.count} ', end='', flush=True)

    def end(self):
        if self.terminal:
            print(f'\r{100 * self.done // self.total:3} %  {self.text} ... ',
                  end='\033[K')
        print(f'{time.monotonic() - self.begun:.0f} s', flush=True)


class Bench:
    """The builds, the measurements and what came of them."""

    def __init__(self, available, measurements):
        self.builds = available
        self.rows = []
        for measurement in measurements:
            used = [name for name in measurement.builds if name in available]
            if used:
                self.rows.append((measurement, {name: [] for name in used}))
        self.errors = []

    def run(self):
        progress = Progress(sum(m.rounds for m, runs in self.rows))
        for group in dict.fromkeys(m.group for m, runs in self.rows):
            rows = [row for row in self.rows if row[0].group == group]
            rounds = max(m.rounds for m, runs in rows)
            for number in range(rounds):
                todo = [row for row in rows if number < row[0].rounds]
                progress.begin(f'{group}, round {number + 1} of {rounds}',
                               len(todo))
                for index, (measurement, runs) in enumerate(todo):
                    self.measure(measurement, runs)
                    progress.step(index)
                progress.end()

    def measure(self, measurement, runs):
        """One round: a process of each build, in turns."""
        # What has failed once would only crash or hang again.
        names = [name for name, done in runs.items()
                 if not (done and 'failure' in done[-1])]
        new = {name: [] for name in names}
        with ExitStack() as stack:
            sessions = {name: stack.enter_context(builds.Session(
                self.builds[name], 'measure.py', measurement.kind,
                json.dumps(measurement.params))) for name in names}
            for turn in range(measurement.turns):
                # The builds take turns in going first, too.
                for name in names[::-1 if turn % 2 else 1]:
                    if name in sessions:
                        self.turn(sessions, name, measurement, new[name])
        for name in names:
            runs[name] += new[name]
            if ('failure' in new[name][-1] and name.endswith('patched')
                    and not self.not_built(runs)):
                self.errors.append(
                    f'{name}: {measurement.kind} {measurement.params}:'
                    f' {new[name][-1]["failure"]}')

    @staticmethod
    def turn(sessions, name, measurement, done):
        """Append a result, or the reason why there is none and no more."""
        try:
            done.append(sessions[name].turn(measurement.timeout))
        except (builds.Failure, ValueError) as error:
            done.append({'failure': str(error)})
            del sessions[name]

    @staticmethod
    def not_built(runs):
        """Do all builds lack an extension, for want of its library?"""
        return all(
            done and 'ModuleNotFoundError' in done[-1].get('failure', '')
            for done in runs.values())

    def results(self, seconds):
        return {
            'machine': machine(),
            'command': ' '.join(sys.argv[1:]),
            'seconds': round(seconds),
            'builds': {name: build.facts
                       for name, build in self.builds.items()},
            'rows': [{'group': m.group, 'kind': m.kind, 'params': m.params,
                      'runs': runs} for m, runs in self.rows],
            'errors': self.errors,
        }


def main():
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    paths = {'stock': args.stock, 'patched': args.patched,
             'freethreaded-stock': args.freethreaded_stock,
             'freethreaded-patched': args.freethreaded_patched}
    available = {name: builds.copy(name, path, args.out)
                 for name, path in paths.items() if path}
    measurements = [measurement for name, group in plan.GROUPS.items()
                    if not args.only or name in args.only
                    for measurement in group(args.quick)]
    begin = time.monotonic()
    bench = Bench(available, measurements)
    bench.run()
    results = bench.results(time.monotonic() - begin)
    (args.out / 'results.json').write_text(json.dumps(results, indent=1))
    report.write(args.out)
    plots.write(args.out)
    for error in bench.errors:
        print('error:', error)
    return 1 if bench.errors else 0


if __name__ == '__main__':
    sys.exit(main())
