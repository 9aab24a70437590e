"""run.py PART STOCK PATCHED: run by scripts/packages.sh, in the user space.

STOCK and PATCHED are executables of two builds.  Each part leaves its rows in
/work/results:

    programs  programs/*.py, untraced and traced: passed, time, peak RSS
    traces    do both builds keep the same traces of them?
    tests     tests of greenlet's and numpy's, untraced and traced
    table     table.md and results.json, of what the others have left
"""

import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = sorted((HERE / 'programs').glob('use_*.py'))
COMPARE = pathlib.Path('/src/patch/Tools/tracemallocbench/compare_traces.py')
WORK = pathlib.Path('/work')
RESULTS = WORK / 'results'
PACKAGES = pathlib.Path('/usr/lib/python3/dist-packages')

FRAMES = (0, 1, 25)         # 0: untraced
TURNS = 3
TIMEOUT = 900
RUN = ('import runpy, sys;'
       'runpy.run_path(sys.argv[1], None, sys.argv[2])["main"](2)')
TESTS = {
    'greenlet': 'greenlet/tests',
    **{f'numpy {name}': f'numpy/_core/tests/{name}.py' for name in (
        'test_dtype', 'test_indexing', 'test_regression', 'test_shape_base')},
}

# pytest takes itself what greenlet's tests look for in stderr.
PYTEST = ('-m', 'pytest', '-q', '-p', 'no:cacheprovider',
          '-p', 'no:unraisableexception', '-p', 'no:threadexception')

# Sizes of the list in which an interpreter has the modules of one phase, by
# which it comes to grow.  In stock, _tracemalloc is one of them, and so in some
# programs another module is the one at which it grows.
LIST_SIZES = {8 * n for n in (4, 8, 16, 24, 32, 40, 52, 64, 76, 92, 108,
                              128, 148, 172, 200, 232, 268)}
LIST_GROWS = re.compile(
    r'^    patched has 1 (?:more|less): domain 0, (\d+) bytes, \d+ frames:\n'
    r' +<frozen importlib\._bootstrap>:\d+$', re.M)

# How one thing went with the series.  What stock does no better is skipped.
PASSED, FAILED, SKIPPED = 'passed', 'failed', 'skipped'


# --- Running ----------------------------------------------------------------

class Build:
    def __init__(self, name, python):
        self.name = name
        self.python = python

    def environ(self):
        # Of the two, neither shall compile what the other one reads.
        return {'PATH': os.environ['PATH'], 'HOME': os.environ['HOME'],
                'LC_ALL': 'C.UTF-8', 'PYTHONHASHSEED': '0',
                'PYTHONNOUSERSITE': '1', 'PYTHONPATH': str(PACKAGES),
                'PYTHONPYCACHEPREFIX': str(WORK / 'cache' / self.name)}

    def run(self, frames, *arguments):
        """One process: why it failed or '', seconds, peak RSS in MB."""
        tmp = WORK / 'tmp'
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        tracing = ['-X', f'tracemalloc={frames}'] if frames else []
        command = [self.python, '-S', *tracing, *map(str, arguments)]
        print('+', self.name, *command[1:], flush=True)
        process = subprocess.Popen(
            command, cwd=tmp, env=self.environ(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=before_exec)
        output, status, usage = wait(process)
        text = output.decode('utf-8', 'replace').strip()
        print(text, flush=True)
        return (reason(status, text), usage.ru_utime + usage.ru_stime,
                usage.ru_maxrss / 1024)


def before_exec():
    # A shell's job may ignore it.  And to call a function the process is
    # forked; after vfork() its peak RSS would be this one's at the least.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(process):
    """The process's output, exit status and resource usage."""
    def end(*_):
        os.killpg(process.pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.alarm(TIMEOUT)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if signal.alarm(0) == 0:
        status = None
    process.returncode = 0      # it has been waited for
    return output, status, usage


def reason(status, text):
    if status is None:
        return f'no end after {TIMEOUT} s'
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f'crash, {signal.Signals(-code).name}'
    if code:
        return text.rpartition('\n')[2] or f'exit status {code}'
    return ''


def store(part, rows):
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f'{part}.json').write_text(json.dumps(rows, indent=1) + '\n')


def tracing(frames):
    if not frames:
        return 'none'
    return '1 frame' if frames == 1 else f'{frames} frames'


# --- The parts --------------------------------------------------------------

def programs(builds):
    rows = []
    for path in PROGRAMS:
        for build in builds:
            build.run(0, '-c', RUN, path, path.stem)    # writes .pyc files
        for frames in FRAMES:
            row = {'name': path.stem[4:], 'frames': frames}
            runs = [[build.run(frames, '-c', RUN, path, path.stem)
                     for build in builds] for _ in range(TURNS)]
            for build, results in zip(builds, zip(*runs)):
                errors, times, peaks = zip(*results)
                row[build.name] = {'error': max(errors), 'time': min(times),
                                   'rss': min(peaks)}
            stock, patched = (row[build.name]['error'] for build in builds)
            row['result'] = (PASSED if not patched
                             else SKIPPED if stock else FAILED)
            rows.append(row)
    store('programs', rows)
    good = [row for row in rows if row['result'] == PASSED]
    print(f'{len(good)} of {len(rows)} passed')


def same_variables(stock, patched):
    """Give both the _sysconfigdata of stock: it says how a build was made."""
    pattern = 'build/lib.*/_sysconfigdata_*.py'
    for path in pathlib.Path(stock.python).parent.glob(pattern):
        for other in pathlib.Path(patched.python).parent.glob(pattern):
            shutil.copyfile(path, other)


def explained(text):
    """How many of the differences that are shown are of LIST_GROWS."""
    sizes = [int(size) for size in LIST_GROWS.findall(text)]
    return len(sizes) if len(sizes) < 3 and LIST_SIZES.issuperset(
        sizes) else 0


def compare(stock, patched, paths):
    """{(name, frames): (traces, differences, noise, explained)},
    {name: error}
    """
    frames = ','.join(str(n) for n in FRAMES if n)
    text = subprocess.run(
        [sys.executable, '-B', COMPARE, '--stock', stock.python, '--patched',
         patched.python, '--out', WORK / 'traces', '--timeout', str(TIMEOUT),
         '--frames', frames, *paths], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    print(text, flush=True)
    if not re.search(r'^differences: \d+$', text, re.M):
        sys.exit('error: compare_traces.py did not come to its end.')
    found = {(name, int(frames)): (*map(int, numbers), explained(shown))
             for name, frames, *numbers, shown in re.findall(
                 r'^use_(\w+), (\d+) kept: (\d+) traces, (\d+) differences '
                 r'\((\d+) .*\n((?: .*\n)*)', text, re.M)}
    return found, dict(re.findall(r'^use_(\w+): (.*)$', text, re.M))


def traces(builds):
    stock, patched = builds
    same_variables(stock, patched)
    found, errors = compare(stock, patched, PROGRAMS)
    # An error does not say whose it is.
    stock_errors = {}
    if errors:
        _, stock_errors = compare(stock, stock, [
            path for path in PROGRAMS if path.stem[4:] in errors])
    rows = []
    for path in PROGRAMS:
        for frames in filter(None, FRAMES):
            name = path.stem[4:]
            row = {'name': name, 'frames': frames, 'error': ''}
            if (name, frames) in found:
                row['numbers'] = found[name, frames]
                _, differences, _, known = row['numbers']
                row['result'] = PASSED if differences == known else FAILED
            else:
                row['error'] = errors.get(name, 'not compared')
                row['result'] = SKIPPED if name in stock_errors else FAILED
            rows.append(row)
    store('traces', rows)
    print(sum(row['result'] == PASSED for row in rows), 'of', len(rows),
          'are the same')


def outcomes(path):
    """{test: outcome} of a file in JUnit's format."""
    found = {}
    for case in xml.etree.ElementTree.parse(path).iter('testcase'):
        kinds = {child.tag for child in case}
        name = f'{case.get("classname")}.{case.get("name")}'
        found[name] = (FAILED if kinds & {'failure', 'error'}
                       else SKIPPED if 'skipped' in kinds else PASSED)
    return found


def run_tests(build, path, frames):
    out = WORK / 'junit.xml'
    out.unlink(missing_ok=True)
    error, seconds, rss = build.run(
        frames, *PYTEST, f'--junit-xml={out}', PACKAGES / path)
    found = outcomes(out) if out.exists() else {}
    if found and not error.startswith(('crash', 'no end')):
        error = ''      # it is among the results
    elif not found:
        error = error or 'no results'
    return {'error': error, 'time': seconds, 'rss': rss, 'found': found}


def judge_tests(stock, patched):
    """Counts, failures, and what fails with stock as well."""
    counts = {PASSED: 0, FAILED: 0, SKIPPED: 0}
    failures, shared = [], []
    if patched['error']:
        counts[SKIPPED if stock['error'] else FAILED] += 1
        (shared if stock['error'] else failures).append(patched['error'])
        return counts, failures, shared
    before = stock['found']
    for test in {**before, **patched['found']}:
        now = patched['found'].get(test, 'not run')
        if now not in (PASSED, SKIPPED, before.get(test)) or (
                now == SKIPPED and before.get(test) == PASSED):
            counts[FAILED] += 1
            failures.append(f'{test}: {now}')
            continue
        counts[PASSED if now == PASSED else SKIPPED] += 1
        if now == FAILED:
            shared.append(test)
    return counts, failures, shared


def tests(builds):
    rows = []
    total = {PASSED: 0, FAILED: 0, SKIPPED: 0}
    for name, path in TESTS.items():
        for build in builds:        # writes .pyc files
            build.run(0, *PYTEST, '-q', '--collect-only', PACKAGES / path)
        for frames in FRAMES[0], FRAMES[-1]:
            row = {'name': name, 'frames': frames}
            for build in builds:
                row[build.name] = run_tests(build, path, frames)
            row['counts'], row['failures'], row['shared'] = judge_tests(
                *(row[build.name] for build in builds))
            for build in builds:
                found = list(row[build.name].pop('found').values())
                row[build.name]['counts'] = {
                    kind: found.count(kind) for kind in total}
            for kind in total:
                total[kind] += row['counts'][kind]
            rows.append(row)
    store('tests', rows)
    print(counted(total))


# --- The table --------------------------------------------------------------

def counted(counts):
    return ', '.join(f'{counts[kind]} {kind}'
                     for kind in (PASSED, FAILED, SKIPPED))


def version(name):
    # An epoch is of interest to Debian alone.
    text = subprocess.run(
        ['dpkg-query', '-W', '-f', '${Version}', f'python3-{name}'],
        stdout=subprocess.PIPE, text=True).stdout
    return f'{name} {text.rpartition(":")[2]}'


def cost(row):
    """Cells: time and peak RSS of both builds."""
    cells = []
    for kind, form in ('time', '{:.2f}'), ('rss', '{:.1f}'):
        stock, patched = (row[name][kind] for name in ('stock', 'patch'))
        if row['stock']['error'] or row['patch']['error']:
            cells += ['', '', '']
        else:
            cells += [form.format(stock), form.format(patched),
                      f'{patched / stock:.2f}']
    return cells


COST = ('time of stock (s)', 'with the series', 'ratio',
        'peak RSS of stock (MB)', 'with the series', 'ratio')


def table(titles, left, rows):
    """Lines of a table, of whose columns the first few are text."""
    rules = ['---'] * left + ['---:'] * (len(titles) - left)
    return [f'| {" | ".join(map(str, row))} |'
            for row in (titles, rules, *rows)] + ['']


def shown(row):
    """The result of a program, of both builds if they differ."""
    stock, patched = row['stock']['error'], row['patch']['error']
    if stock and not patched:
        return f'passed; stock: {stock}'
    return {PASSED: PASSED, FAILED: f'**{patched}**',
            SKIPPED: f'as stock: {patched}'}[row['result']]


def shown_tests(result):
    return result['error'] or counted(result['counts'])


def gather(parts):
    """What results.json is to hold."""
    counts = {PASSED: 0, FAILED: 0, SKIPPED: 0}
    failures, shared = [], []
    for part in 'programs', 'traces':
        for row in parts[part]:
            counts[row['result']] += 1
            what = row['error'] if part == 'traces' else row['patch']['error']
            if not what and row['result'] == FAILED:
                what = f'{row["numbers"][1]} differences'
            line = f'{part}, {row["name"]}, {tracing(row["frames"])}: {what}'
            if row['result'] == FAILED:
                failures.append(line)
            elif row['result'] == SKIPPED:
                shared.append(line)
    for row in parts['tests']:
        for kind in counts:
            counts[kind] += row['counts'][kind]
        head = f'tests, {row["name"]}, {tracing(row["frames"])}'
        failures += [f'{head}: {line}' for line in row['failures']]
        shared += [f'{head}: {line}' for line in row['shared']]
    return {**counts, 'failures': failures, 'shared': shared}


def write_table(builds):
    parts = {part: json.loads((RESULTS / f'{part}.json').read_text())
             for part in ('programs', 'traces', 'tests')}
    summary = gather(parts)
    python = subprocess.run(
        [builds[1].python, '-c', 'import sys; print(sys.version)'],
        stdout=subprocess.PIPE, text=True).stdout
    debian = pathlib.Path('/etc/debian_version').read_text().strip()
    lines = [
        '# Packages compiled for stock', '',
        f'CPython {" ".join(python.split())}; Debian {debian}, '
        f'{platform.machine()}, {time.strftime("%Y-%m-%d")}: '
        f'{counted(summary)}.', '',
        'Time is that of the processor, and it and the peak RSS are the '
        f'least of {TURNS} turns of programs, and of one run of tests.  What '
        'fails with stock as well counts as skipped.', '',
        '## Programs that use them', '',
        *table(('package', 'tracing', 'result', *COST), 3,
               [(version(row['name']), tracing(row['frames']), shown(row),
                 *cost(row)) for row in parts['programs']]),
        '## Traces that these leave behind', '',
        'Explained is where the list of modules of one phase grows, which in '
        'stock has _tracemalloc as well.', '',
        *table(('package', 'tracing', 'traces', 'differences',
                'between runs of stock', 'explained'), 2,
               [(row['name'], tracing(row['frames']),
                 *row.get('numbers', ('', row['error'], '', '')))
                for row in parts['traces']]),
        '## Tests of the packages', '',
        *table(('tests', 'tracing', 'stock', 'with the series', *COST), 4,
               [(row['name'], tracing(row['frames']),
                 shown_tests(row['stock']), shown_tests(row['patch']),
                 *cost(row)) for row in parts['tests']]),
    ]
    for title, names in (('Failed', summary['failures']),
                         ('Fails with stock as well', summary['shared'])):
        if names:
            lines += [f'## {title}', '', *(f'- {name}' for name in names), '']
    (RESULTS / 'table.md').write_text('\n'.join(lines))
    (RESULTS / 'results.json').write_text(
        json.dumps(summary, indent=1) + '\n')
    print(counted(summary))


def main():
    part, stock, patched = sys.argv[1:]
    builds = Build('stock', stock), Build('patch', patched)
    {'programs': programs, 'traces': traces, 'tests': tests,
     'table': write_table}[part](builds)


if __name__ == '__main__':
    main()
