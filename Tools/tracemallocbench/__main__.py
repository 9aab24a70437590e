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
                        help='less of everything, two minutes')
    parser.add_argument('--only', metavar='GROUP', action='append',
                        choices=list(plan.GROUPS),
                        help='a group alone (again for more): '
                        + ', '.join(plan.GROUPS))
    parser.add_argument('--row', metavar='NAME[/FRAMES]', action='append',
                        help='a row alone (again for more; * stands for any'
                        ' text), like deep_path or recursion/25')
    return parser.parse_args()


def machine():
    """The machine and its system in a line."""
    processor = platform.processor() or platform.machine()
    try:
        text = pathlib.Path('/proc/cpuinfo').read_text()
        processor = text.split('model name')[1].split(':')[1].split('\n')[0]
    except (OSError, IndexError):
        pass                    # not Linux, or another processor's format
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return (f'{processor.strip()}, {os.cpu_count()} processors,'
            f' {memory / 2**30:.0f} GiB,'
            f' {platform.system()} {platform.release()}'
            f' {platform.machine()}')


def has_rss_anon():
    try:
        return 'RssAnon:' in pathlib.Path('/proc/self/status').read_text()
    except OSError:
        return False


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

    def __init__(self, available, measurements, tests):
        self.builds = available
        self.tests = tests
        self.load = os.getloadavg()[0]
        self.interrupted = False
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
                    self.measure(measurement, runs, number)
                    progress.step(index)
                progress.end()

    def measure(self, measurement, runs, number):
        """One round: a process of each build, in turns."""
        # What has failed once would only crash or hang again.
        names = [name for name, done in runs.items()
                 if not (done and 'failure' in done[-1])]
        new = {name: [] for name in names}
        with ExitStack() as stack:
            sessions = {}
            for name in names:
                sessions[name] = stack.enter_context(builds.Session(
                    self.builds[name], 'measure.py', measurement.kind,
                    json.dumps(measurement.params), path=self.tests))
                # Before it has started, no other build may be selected.
                started = []
                self.turn(sessions, name, measurement, started)
                new[name] = [failure for failure in started if failure]
            for turn in range(measurement.turns):
                # The builds take turns in going first, too.
                for name in names[::-1 if (number + turn) % 2 else 1]:
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
            'load': self.load,
            'interrupted': self.interrupted,
            'command': ' '.join(sys.argv[1:]),
            'seconds': round(seconds),
            'builds': {name: build.facts
                       for name, build in self.builds.items()},
            'rows': [{'group': m.group, 'kind': m.kind, 'params': m.params,
                      'runs': runs} for m, runs in self.rows],
            'errors': self.errors,
        }


def chosen(args):
    """The measurements that the options ask for; exit if there are none."""
    measurements = plan.choose(args.only, args.row, args.quick)
    if not measurements:
        names = dict.fromkeys(m.name for m in plan.choose(
            args.only, None, args.quick))
        sys.exit(f'error: no row is called {" or ".join(args.row)} here; the'
                 f' rows are {", ".join(names)}.')
    need_linux = dict.fromkeys(m.group for m in measurements
                               if m.group in plan.NEED_LINUX)
    if need_linux and not has_rss_anon():
        sys.exit(f'error: {", ".join(need_linux)} cannot be measured here, as'
                 ' the system (not Linux?) has no RssAnon in'
                 ' /proc/self/status.')
    return measurements


def find_tests(measurements, build, out):
    """(measurements that can run, folder of CPython's tests or None)."""
    suites = [m for m in measurements
              if m.group == 'shapes' and m.name in plan.SUITES]
    tests = builds.copy_tests(build, out) if suites else None
    if suites and tests is None:
        print(f'{", ".join(m.name for m in suites)}: left out, as the library'
              ' of stock has no such tests.')
        measurements = [m for m in measurements if m not in suites]
    return measurements, tests


def say_what_is_left_out(measurements, available):
    groups = dict.fromkeys(m.group for m in measurements
                           if not set(m.builds) & set(available))
    if groups:
        print(f'{", ".join(groups)}: what needs --disable-gil builds is left'
              ' out, as neither --freethreaded-stock nor'
              ' --freethreaded-patched is given.')


def main():
    args = parse_arguments()
    measurements = chosen(args)
    args.out.mkdir(parents=True, exist_ok=True)
    paths = {'stock': args.stock, 'patched': args.patched,
             'freethreaded-stock': args.freethreaded_stock,
             'freethreaded-patched': args.freethreaded_patched}
    available = {name: builds.copy(name, path, args.out)
                 for name, path in paths.items() if path}
    say_what_is_left_out(measurements, available)
    measurements, tests = find_tests(measurements, available['stock'],
                                     args.out)
    bench = Bench(available, measurements, tests)
    if not bench.rows:
        sys.exit('error: nothing is left to measure.')
    begin = time.monotonic()
    try:
        bench.run()
    except KeyboardInterrupt:
        bench.interrupted = True
        print('\ninterrupted: what follows is of the rounds before.')
    results = bench.results(time.monotonic() - begin)
    (args.out / 'results.json').write_text(json.dumps(results, indent=1))
    report.write(args.out)
    plots.write(args.out)
    for error in bench.errors:
        print('error:', error)
    line = report.largest_ratio(args.out)
    if line:
        print(line)
    if bench.interrupted:
        return 130
    return 1 if bench.errors else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit('\ninterrupted.')
