"""The steps of 'make proof', and how each kind of them is done.

A step's do() returns a Result or raises NotRun or Failed.  Whether failures
are in order, because stock has them too or because they are explained, is
decided by proof.py when it writes the table.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys

from proof_builds import (
    BUILD, BUILDS, DOCUMENTS, JOBS, PROOF, ROOT, STOCK, TREE, Failed, NotRun,
    export_source, git, output, run, source_id, write)

HERE = pathlib.Path(__file__).resolve().parent
OWN_TESTS = ('test_tracemalloc', 'test_tracemalloc_concurrent',
             'test_tracemalloc_counters', 'test_tracemalloc_errors',
             'test_tracemalloc_fast_path', 'test_tracemalloc_faults',
             'test_tracemalloc_filenames', 'test_tracemalloc_fork',
             'test_tracemalloc_interpreters', 'test_tracemalloc_lifecycle',
             'test_tracemalloc_memory', 'test_tracemalloc_nomemory',
             'test_tracemalloc_oracle', 'test_tracemalloc_others',
             'test_tracemalloc_reports', 'test_tracemalloc_threads',
             'test_tracemalloc_tracebacks')
QUICK_TESTS = ('test_tracemalloc', 'test_tracemalloc_concurrent',
               'test_tracemalloc_counters', 'test_tracemalloc_filenames',
               'test_tracemalloc_interpreters', 'test_tracemalloc_lifecycle',
               'test_tracemalloc_reports', 'test_tracemalloc_threads',
               'test_tracemalloc_tracebacks')
# CPython itself has data races when interpreters are created while others run;
# the last two have nothing that threads share.
NOT_LISTED = ('test_tracemalloc_concurrent', 'test_tracemalloc_faults',
              'test_tracemalloc_fast_path', 'test_tracemalloc_memory')
# Seconds of the oracle in all, and of each other storm.
ORACLE_SECONDS = float(os.environ.get('ORACLE_SECONDS') or 3600)
STORM_SECONDS = float(os.environ.get('STORM_SECONDS') or 15)

# A storm that wants more fails, rather than some other process of the machine.
MOST_MEMORY = (os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
               * 3 // 4)

# glibc's malloc() shall hand out an address again at once, to any thread.
ONE_ARENA = {'MALLOC_ARENA_MAX': '1',
             'GLIBC_TUNABLES': 'glibc.malloc.tcache_count=0'}


@dataclasses.dataclass
class Result:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list = dataclasses.field(default_factory=list)
    note: str = ''
    text: str = ''              # Markdown, for the summary

    def add(self, ok, name):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            self.failures.append(name)

    def include(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.failures += other.failures


def digest(path):
    """Of a file, or of all those in a folder."""
    if path.is_dir():
        text = ''.join(digest(one) for one in sorted(path.iterdir()))
        return hashlib.sha256(text.encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def all_but(tests):
    """The documents, and the series' tests without these and what those
    import."""
    unused = set(OWN_TESTS)
    tests = list(tests)
    while tests:
        test = tests.pop()
        if test in unused:
            unused.remove(test)
            path = TREE / 'Lib' / 'test' / f'{test}.py'
            if path.exists():
                tests += re.findall(r'^from test\.(\w+) import',
                                    path.read_text(), re.M)
    return (*DOCUMENTS, *(f'Lib/test/{test}.py' for test in sorted(unused)))


def symbol(match):
    """The file and function of '(program+0x123)', not an inlined one."""
    text = output(['addr2line', '-f', '-i', '-e', match[1], match[2]])
    if not text:
        return match[0]
    function, place = text.splitlines()[-2:]
    return f'{place.partition(":")[0]} in {function}'


# Reports are counted by themselves.  To symbolize ASan's takes so long that
# the end of the process may cut them off; see symbol().
REPORTING = {
    'ASAN_OPTIONS': ':exitcode=0:symbolize=0',
    'TSAN_OPTIONS': ':exitcode=0',
}


class Step:
    """Something to do, in certain builds."""

    title = ''
    baseline = None     # a step whose failures are no failures of this one
    beside = None       # a step whose results are shown next to this one's
    reference = False   # for others to be compared with
    files = ()          # of scripts/, on which the result depends as well
    tests = ()          # those of the series' own that are run

    def __init__(self, group, name, builds, title, **attributes):
        self.group = group
        self.name = name
        self.builds = [BUILDS[build] for build in builds]
        self.title = title
        for attribute, value in attributes.items():
            setattr(self, attribute, value)
        self.out = PROOF / 'out' / name
        self.log = PROOF / 'log' / f'{name}.log'

    @property
    def stock_only(self):
        return bool(self.builds) and all(one.stock for one in self.builds)

    def unused(self):
        """Files of the series on which the result does not depend."""
        return all_but(self.tests)

    def parameters(self):
        """What is done: the result is out of date if this changes."""
        return ()

    def key(self):
        files = [digest(HERE / name) for name in self.files]
        text = repr((type(self).__name__, self.name, self.parameters(), files,
                     [build.description() for build in self.builds]))
        return hashlib.sha256(text.encode()).hexdigest()

    def prepare(self):
        """Before the builds are made: raise NotRun if it is in vain."""

    def fresh_out(self):
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)

    def where(self):
        return f'see {self.log.relative_to(ROOT)}'

    def perform(self):
        self.prepare()
        for build in self.builds:
            build.ensure()
        self.fresh_out()
        try:
            return self.do()
        finally:
            shutil.rmtree(self.out / 'tmp', ignore_errors=True)

    def environ(self, build):
        """Of programs that run in a build.

        Reports of sanitizers go into files, for a child's output may be read
        by nobody.
        """
        environ = {}
        for name, value in build.environment().items():
            environ[name] = (f'{value}:log_path={self.out}/report'
                             f'{REPORTING.get(name, "")}')
        return environ

    def add_reports(self, result):
        """Count each different sanitizer's report as a failure."""
        seen = set()
        for path in sorted(self.out.glob('report.*')):
            text = path.read_text(errors='replace')
            # Of a test that wants too much: it gets its MemoryError.
            text = re.sub(r'^==\d+==WARNING: \w+ failed to allocate .*\n', '',
                          text, flags=re.M)
            if not text.strip():
                continue
            found = re.findall(r'^SUMMARY: (\w+: .*)$', text, re.M)
            found += [f'UBSan: {message}' for message in
                      re.findall(r'runtime error: (.*)$', text, re.M)]
            for line in found or ['a report without a summary']:
                line = re.sub(r'\((\S+)\+(0x[0-9a-f]+)\)', symbol, line)
                # Neither paths nor addresses, which differ each time.
                line = re.sub(r'(\S*/)(\S+?)(:\d+)*( |$)', r'\2\4', line)
                seen.add(re.sub(r'0x[0-9a-f]+', '0x', line).strip())
        for line in sorted(seen):
            result.add(False, line)


# --- Tests ----------------------------------------------------------------

class Tests(Step):
    """One run of regrtest, of all tests if 'tests' names none.  Files that
    fail are run once more if 'again'."""

    options = ()        # of python
    regrtest = ()       # more arguments
    again = True
    timeout = 1200
    jobs = int(JOBS)
    files = ('count-results.py',)

    def unused(self):
        return all_but(self.tests or OWN_TESTS)

    def parameters(self):
        return (self.options, self.tests, self.regrtest, self.again,
                self.timeout)

    def call(self, label, again, tests, jobs):
        build = self.builds[0]
        xml, log = self.out / f'{label}.xml', self.out / f'{label}.log'
        tmp = self.out / 'tmp'
        tmp.mkdir(exist_ok=True)
        status = run(
            [build.python, *self.options, '-m', 'test', f'-j{jobs}',
             '--timeout', self.timeout, '--fail-env-changed', '-W',
             '--junit-xml', xml, '--tempdir', tmp, *self.regrtest, *tests],
            log, cwd=self.out, **self.environ(build))
        shutil.copyfile(log, self.log)
        text = output([sys.executable, HERE / 'count-results.py', xml, log,
                       status, *(['again'] if again else [])])
        if text is None:
            raise Failed(f'the results cannot be read (exit status {status}),'
                         f' {self.where()}')
        lines = text.splitlines()
        counts = Result(*map(int, lines[0].split()))
        counts.failures = [line[8:] for line in lines[1:]
                           if line.startswith('failed: ')]
        return counts, [line[7:] for line in lines if line[:7] == 'again: ']

    def missing_tests(self):
        source = self.builds[0].source / 'Lib' / 'test'
        return [name for name in self.tests
                if not (source / f'{name}.py').exists()
                and not (source / name).is_dir()]

    def do(self):
        missing = self.missing_tests()
        if missing:
            raise NotRun(f'there is no {" ".join(missing)}')
        return self.run_tests(self.tests)

    def run_tests(self, tests, part=''):
        result, again = self.call(f'{part}tests', self.again, tests,
                                  self.jobs)
        if again:
            more, _ = self.call(f'{part}again', False, again, 1)
            result.include(more)
            still = {file for file in again for name in more.failures
                     if f'.{file}.' in f'.{name.split()[0]}.'}
            healed = [file for file in again if file not in still]
            if healed:
                result.note = 'failed at first: ' + ' '.join(healed)
        self.add_reports(result)
        return result


class LongTests(Tests):
    """All of regrtest's files in parts, so that an interruption costs one."""

    parts = 12

    def parameters(self):
        return *super().parameters(), self.parts

    def test_files(self):
        text = output([self.builds[0].python, '-m', 'test', '--list-tests'])
        if not text:
            raise Failed('regrtest does not list its tests')
        return text.split()

    def do(self):
        files = self.test_files()
        done = PROOF / 'parts' / self.name
        done.mkdir(parents=True, exist_ok=True)
        total = Result()
        notes = []
        for number in range(self.parts):
            part = self.do_part(done / f'{number}.json',
                                files[number::self.parts])
            total.include(part)
            if part.note:
                notes.append(part.note)
            print(f'{number + 1}/{self.parts} ', end='', flush=True)
        total.note = '; '.join(notes)
        shutil.rmtree(done)
        return total

    def do_part(self, path, files):
        source = None if self.stock_only else source_id()
        made = [source, self.key(), files]
        try:
            stored = json.loads(path.read_text())
            if stored['made'] == made:
                return Result(**stored['result'])
        except (OSError, ValueError, KeyError):
            pass
        result = self.run_tests(files, f'{path.stem}-')
        if not self.stock_only and source_id() != source:
            raise Failed('the source was changed meanwhile')
        write(path, json.dumps(
            {'made': made, 'result': dataclasses.asdict(result)}))
        return result


class Listed(Step):
    """Are the tests in TSAN_TESTS, and are suppressions the same?"""

    def do(self):
        result = Result()
        # Only the list is wanted, not the package around it.
        namespace = {}
        exec((TREE / 'Lib/test/libregrtest/tsan.py').read_text(), namespace)
        for name in OWN_TESTS:
            if name not in NOT_LISTED:
                result.add(name in namespace['TSAN_TESTS'],
                           f'{name} is not in TSAN_TESTS')
        for path in sorted((TREE / 'Tools/tsan').iterdir()):
            name = f'Tools/tsan/{path.name}'
            diff = git(TREE, 'diff', 'pristine', '--', name)
            more = re.findall(r'^\+(\w+:.*)$', diff, re.M)
            result.add(not more, f'{name} suppresses more: {" ".join(more)}')
        return result


class Races(Step):
    """What TSan finds when interpreters are created while others run."""

    PROGRAM = """if 1:
        import threading
        import _interpreters
        code = compile('kept = [[str(i)] for i in range(999)]', 'x', 'exec')
        def work(config):
            for _ in range(10):
                interp = _interpreters.create(config)
                for _ in range(5):
                    _interpreters.exec(interp, code)
                _interpreters.destroy(interp)
        for config in 'legacy', 'isolated':
            threads = [threading.Thread(target=work, args=(config,))
                       for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        """
    REPEAT = 8

    def parameters(self):
        return self.PROGRAM, self.REPEAT

    def do(self):
        build = self.builds[0]
        result = Result()
        for _ in range(self.REPEAT):
            status = run([build.python, '-c', self.PROGRAM], self.log,
                         timeout=600, **self.environ(build))
            if status:
                raise Failed(f'exit status {status}, {self.where()}')
            result.passed += 1
        self.add_reports(result)
        return result


# --- LeakSanitizer --------------------------------------------------------

LEAK_PROGRAMS = {
    'pass': 'pass',
    'imports': 'import json, re, argparse, asyncio, unittest, decimal',
    'start and stop': (
        'import tracemalloc\n'
        'for n in 1, 25, 3:\n'
        '    tracemalloc.start(n)\n'
        '    kept = [[str(i)] for i in range(9999)]\n'
        '    tracemalloc.take_snapshot().statistics("traceback")\n'
        '    tracemalloc.stop()\n'
        'tracemalloc.start()\n'),
    'threads': (
        'import threading\n'
        'def work():\n'
        '    kept = [[str(i)] for i in range(9999)]\n'
        'threads = [threading.Thread(target=work) for _ in range(8)]\n'
        'for t in threads: t.start()\n'
        'for t in threads: t.join()\n'),
    'interpreters': (
        'import _interpreters\n'
        'for config in ["legacy", "isolated"] * 3:\n'
        '    interp = _interpreters.create(config)\n'
        '    assert _interpreters.exec(interp, """if 1:\n'
        '        import sys\n'
        '        if "tracemalloc" in sys._xoptions:\n'
        '            import tracemalloc\n'
        '            tracemalloc.start()\n'
        '        kept = [[str(i)] for i in range(9999)]\n'
        '        """) is None\n'
        '    _interpreters.destroy(interp)\n'),
    'interpreters alive': (
        'import _interpreters\n'
        'for config in "legacy", "isolated":\n'
        '    interp = _interpreters.create(config)\n'
        '    _interpreters.exec(interp, "kept = [[]] * 999")\n'),
    'fork': (
        'import os\n'
        'pid = os.fork()\n'
        'if pid:\n'
        '    assert os.waitpid(pid, 0)[1] == 0\n'
        'kept = [[str(i)] for i in range(9999)]\n'),
}


class Leaks(Step):
    """Memory that is lost at exit: with tracing no more than without."""

    def parameters(self):
        return LEAK_PROGRAMS

    def leaked(self, log, *options):
        build = self.builds[0]
        environ = build.environment()
        environ['ASAN_OPTIONS'] = environ['ASAN_OPTIONS'].replace(
            'detect_leaks=0', 'detect_leaks=1')
        status = run([build.python, *options], log, timeout=600, **environ)
        text = log.read_text(errors='replace')
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, 'a') as file:
            file.write(text)
        if 'LeakSanitizer has encountered a fatal error' in text:
            raise NotRun('LeakSanitizer does not work here, as under a '
                         'debugger or without ptrace()')
        found = re.findall(r'(\d+) byte\(s\) leaked in (\d+) alloc', text)
        if found:
            return f'{found[-1][0]} bytes in {found[-1][1]} blocks'
        if status:
            return f'exit status {status}'
        return ''

    def do(self):
        result = Result()
        self.log.unlink(missing_ok=True)
        for name, program in LEAK_PROGRAMS.items():
            log = self.out / 'run.log'
            without = self.leaked(log, '-c', program)
            for frames in 1, 10:
                found = self.leaked(log, '-X', f'tracemalloc={frames}', '-c',
                                    program)
                result.add(not found, f'{name}, {frames} frames: {found}'
                           f' (untraced: {without or "nothing"})')
        return result


# --- Differential ---------------------------------------------------------

class Differential(Step):
    """compare_traces.py, with one number of frames."""

    frames = 1
    scripts = None

    def parameters(self):
        return self.frames, self.scripts

    def prepare(self):
        tool = TREE / 'Tools' / 'tracemallocbench'
        for path in 'compare_traces.py', self.scripts:
            if path is not None and not (tool / path).exists():
                raise NotRun(f'the tree has no {path}')

    def do(self):
        tool = TREE / 'Tools' / 'tracemallocbench'
        stock, patched = self.builds
        more = []
        if self.scripts:
            more = ['--scripts', tool / self.scripts, '--source', TREE]
        status = run(
            [sys.executable, '-B', tool / 'compare_traces.py',
             '--stock', stock.python, '--patched', patched.python,
             '--out', self.out, '--frames', self.frames, '--timeout', 600,
             *more], self.log)
        shutil.rmtree(self.out, ignore_errors=True)
        text = self.log.read_text(errors='replace')
        result = Result()
        traces = 0
        for line in re.findall(r'^\S.*$', text, re.M):
            match = re.fullmatch(r'(.*), \d+ kept: (\d+) traces, '
                                 r'(\d+) differences .*', line)
            if match:
                traces += int(match[2])
                result.add(match[3] == '0', f'{match[1]}: {match[3]}'
                                            ' differences')
            elif not line.startswith('differences: '):
                result.add(False, line)
        if status not in (0, 1) or (status and not result.failed):
            result.add(False, f'compare_traces.py: exit status {status}')
        result.note = f'{traces:,} traces'
        return result


# --- Storms ---------------------------------------------------------------

# Variants of each storm: (name, PYTHONMALLOC, foreign hooks).
VARIANTS = (('default', None, 'none'), ('debug', 'debug', 'none'),
            ('malloc', 'malloc', 'none'), ('hook below', None, 'below'),
            ('hook above', None, 'above'), ('hooks below and above', 'debug',
                                            'both'))


class Storm(Step):
    """One storm in one build, in all variants."""

    storm = ''
    seconds = STORM_SECONDS
    count = 500
    files = ('proof_storm.py', 'proof_hooks.c')

    def parameters(self):
        return self.storm, self.seconds, self.count, VARIANTS

    def compile_hooks(self):
        """The foreign allocators, as an extension for this build."""
        build = self.builds[0]
        command = ['gcc', '-shared', '-fPIC', '-O1', '-Wall', '-Wextra',
                   f'-I{build.source}/Include', f'-I{build.folder}',
                   HERE / 'proof_hooks.c', '-o', self.out / 'proof_hooks.so']
        if run(command, self.log):
            raise Failed(f'proof_hooks.c cannot be compiled, {self.where()}')

    def do(self):
        build = self.builds[0]
        self.compile_hooks()        # and a new log
        result = Result()
        for seed, (name, malloc, hooks) in enumerate(VARIANTS, 1):
            if malloc == 'malloc' and 'freethreaded' in build.name:
                result.skipped += 1         # only mimalloc will do there
                continue
            environ = {'PYTHONPATH': str(self.out), **self.environ(build)}
            if malloc:
                environ['PYTHONMALLOC'] = malloc
            if self.storm == 'oracle':
                environ.update(ONE_ARENA)
            command = [build.python, '-X', 'faulthandler',
                       HERE / 'proof_storm.py', self.storm, '--hooks', hooks,
                       '--seconds', self.seconds, '--count', self.count,
                       '--seed', seed]
            memory = MOST_MEMORY
            if 'san' in build.name:
                command.append('--sanitizer')
                memory = None               # they need address space
            if 'tsan' in build.name:
                command.append('--one-by-one')
            log = self.out / 'storm.log'
            status = run(command, log, cwd=self.out, timeout=3600,
                         memory=memory, **environ)
            with open(self.log, 'a') as file:
                file.write(f'== {name}\n' + log.read_text(errors='replace'))
            result.add(status == 0, f'{name}: exit status {status}')
        self.add_reports(result)
        if result.failed:
            result.note = self.where()
        return result


# --- Others ---------------------------------------------------------------

class Command(Step):
    """A program that says by its exit status whether all is well."""

    command = ()
    needs = ()          # files of the tree
    tools = ()
    not_run = ()        # exit statuses that mean: not possible here
    settings = ()       # (NAME, VALUE)...

    def parameters(self):
        return self.command, self.settings

    def prepare(self):
        for name in self.needs:
            if not (TREE / name).exists():
                raise NotRun(f'the tree has no {name}')
        missing = [tool for tool in self.tools if shutil.which(tool) is None]
        if missing:
            raise NotRun(f'{" ".join(missing)} is not installed')

    def do(self):
        result = Result()
        words = [str(word).replace('{tree}', str(TREE))
                 .replace('{root}', str(ROOT)) for word in self.command]
        status = run(words, self.log, cwd=self.out, **dict(self.settings))
        if status in self.not_run:
            lines = self.log.read_text(errors='replace').strip().splitlines()
            raise NotRun(lines[-1] if lines else f'exit status {status}')
        result.add(status == 0, f'exit status {status}')
        if status:
            result.note = self.where()
        return result


class Packages(Step):
    """What was compiled for stock, in a user space that has its own builds."""

    files = ('packages.sh', 'packages', 'system.sh', 'options.sh')

    def do(self):
        status = run([HERE / 'packages.sh'], self.log)
        if status == 2:
            lines = self.log.read_text(errors='replace').splitlines()
            raise NotRun(lines[-1].removeprefix('error: '))
        # They are removed before anything else is done.
        results = BUILD / 'packages' / 'results.json'
        try:
            found = json.loads(results.read_text())
        except OSError:
            raise Failed(f'exit status {status}, {self.where()}') from None
        result = Result(found['passed'], found['failed'], found['skipped'],
                        found['failures'])
        shared = len(found['shared'])
        if shared:
            result.note = f'of the skipped {shared} fail with stock as well'
        result.text = (BUILD / 'packages' / 'table.md').read_text()
        return result


class Compiler(Tests):
    """Another compiler: no new warning, and the tests pass."""

    tests = QUICK_TESTS

    def perform(self):
        # A build that an interrupted run has left would have no warnings.
        self.builds[0].remove()
        return super().perform()

    def do(self):
        build = self.builds[0]
        new, everything = build.warnings()
        result = super().do()
        for line in new:
            result.add(False, f'warning: {line}')
        result.note = '; '.join(filter(None, [
            result.note, f'{len(new)} new warnings in files of the series, '
                         f'{len(everything)} in all']))
        build.remove()
        return result


class Regenerate(Step):
    """The checks of CPython's own CI in a copy of the source."""

    TARGETS = ('check-c-globals', 'smelly', 'check-limited-abi', 'regen-all')

    def parameters(self):
        return self.TARGETS, 'built in the source'

    def changes(self):
        """Files that are not those of the source."""
        lines = git(self.builds[0].source, 'status', '--porcelain',
                    '--untracked-files=all').splitlines()
        return {line for line in lines if '__pycache__' not in line
                and not line.endswith(('.o', '.a'))}

    def perform(self):
        build = self.builds[0]
        shutil.rmtree(build.source, ignore_errors=True)
        build.source.mkdir(parents=True)
        if build.stock:
            BUILDS['stock-release'].ensure()
            shutil.copytree(STOCK, build.source, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns('.git',
                                                          '__pycache__'))
            git(build.source, 'init', '-q')
            git(build.source, 'add', '-A', '-f')
            git(build.source, '-c', 'user.name=proof',
                '-c', 'user.email=proof@localhost', 'commit', '-q', '-m',
                'source')
        else:
            BUILDS['release'].ensure()
            export_source(build.source)
        python = BUILDS['release'].python
        build.paths = {'PYTHON_FOR_REGEN': str(python)}
        try:
            return super().perform()
        finally:
            shutil.rmtree(build.source, ignore_errors=True)
            build.remove()

    def last_error(self, offset):
        """What says why, so that another failure has another name."""
        text = self.log.read_bytes()[offset:].decode(errors='replace')
        errors = re.findall(r'^\w*(?:Error|Exception|ERROR|error): .*$', text,
                            re.M)
        if not errors:
            return ''
        return ', ' + errors[-1].replace(str(self.builds[0].source), '')[:200]

    def do(self):
        build = self.builds[0]
        result = Result()
        self.log.unlink(missing_ok=True)
        built = {line for line in self.changes() if line[:2] == '??'}
        for target in self.TARGETS:
            before = self.log.stat().st_size if self.log.exists() else 0
            status = run(['make', target], self.log, cwd=build.folder,
                         append=True)
            result.add(status == 0, f'make {target}: exit status {status}'
                                    f'{self.last_error(before)}')
        for line in sorted(self.changes() - built):
            result.add(False, f'regen-all changes {line[3:]}')
        if result.failed:
            result.note = self.where()
        return result


class Abi(Step):
    """What abidiff finds between stock's shared library and ours."""

    def prepare(self):
        if shutil.which('abidiff') is None:
            raise NotRun('abidiff is not installed (on Debian: apt-get '
                         'install abigail-tools)')

    def do(self):
        result = Result()
        libraries = [build.folder / 'libpython3.13.so'
                     for build in self.builds]
        status = run(['abidiff', *libraries, '--drop-private-types',
                      '--no-architecture', '--no-added-syms'], self.log)
        text = self.log.read_text(errors='replace')
        if status & 3:              # an error, or wrong usage
            raise Failed(f'abidiff failed, {self.where()}')
        changes = re.findall(r'^(\w+ changes summary: .*)$', text, re.M)
        if not status:
            result.add(True, '')
        for line in changes if status else ():
            result.add(not re.search(r'[1-9]\d* (Removed|Changed|Added)',
                                     line), line)
        result.note = self.where() if status else ''
        for build in self.builds:
            build.remove()
        return result


# --- The list -------------------------------------------------------------

def suites():
    for config in 'release', 'debug':
        for name, traced in ('suite', False), ('suite-traced', True):
            options = ('-X', 'tracemalloc=10') if traced else ()
            text = f'whole test suite{", traced" * traced}'
            for stock in f'stock-{config}', config:
                # Traced, each child process of a debug build takes seconds.
                kind = LongTests if traced and config == 'debug' else Tests
                step = kind('suite', f'{name}-{stock}', [stock],
                            f'{text}, {stock}', options=options,
                            timeout=2400 if traced else 1200)
                if stock != config:
                    step.reference = True
                    if kind is LongTests:
                        # In stock the time of a deep recursion is quadratic.
                        step.timeout, step.again = 1200, False
                elif traced:
                    step.baseline = f'suite-{config}'
                    step.beside = f'suite-traced-stock-{config}'
                else:
                    step.baseline = f'suite-stock-{config}'
                yield step
    for config in 'freethreaded', 'freethreaded-debug':
        yield Tests('suite', f'own-{config}', [config],
                    f'own tests, {config}', tests=OWN_TESTS, again=False)


def sanitizers():
    for config in 'stock-tsan', 'stock-freethreaded-tsan':
        yield Races('sanitizers', f'races-{config}', [config],
                    f'interpreters created while others run, {config}',
                    reference=True)
    for config in 'asan', 'tsan', 'freethreaded-tsan':
        for test in OWN_TESTS:
            yield Tests('sanitizers', f'{config}-{test}', [config],
                        f'{test}, {config}', tests=(test,), again=False,
                        timeout=7200,
                        baseline=(f'races-stock-{config}'
                                  if test == NOT_LISTED[0] else None))
    for config in 'pymalloc-asan', 'freethreaded-asan':
        yield Tests('sanitizers', f'own-{config}', [config],
                    f'own tests, {config}', tests=OWN_TESTS, again=False,
                    timeout=7200)
    around = ('test_capi', 'test_embed', 'test_interpreters',
              'test__interpreters', 'test_threading', 'test_gc')
    for stock in 'stock-asan', 'asan':
        yield Tests('sanitizers', f'around-{stock}', [stock],
                    f'tests around tracemalloc, {stock}', tests=around,
                    timeout=3600, reference=stock != 'asan',
                    baseline=None if stock != 'asan' else 'around-stock-asan')
    # Stock's new interpreters race, so only the races of the series count.
    yield Command('sanitizers', 'around-tsan', ['tsan'],
                  'tests around tracemalloc, traced, tsan',
                  files=('test.sh', 'count-results.py', 'count-reports.py',
                         'common.sh', 'options.sh'),
                  command=('{root}/scripts/test.sh',),
                  settings=(('CONFIG', 'tsan'), ('RACES', 'own'),
                            ('TRACE', '5'), ('OWN_TESTS', ''),
                            ('TESTS', 'test_embed test_interpreters '
                                      'test__interpreters test_gc'),
                            ('TEST_TIMEOUT', '3600')))
    for config in 'tsan', 'freethreaded-tsan':
        for stock in f'stock-{config}', config:
            yield Tests('sanitizers', f'list-{stock}', [stock],
                        f"CPython's list for TSan, {stock}",
                        regrtest=('--tsan',), timeout=3600,
                        reference=stock != config,
                        baseline=(None if stock != config
                                  else f'list-stock-{config}'))
    yield Listed('sanitizers', 'tsan-lists', [],
                 'the tests are in TSAN_TESTS, no suppression is new')
    yield Leaks('sanitizers', 'lsan', ['asan'],
                'LeakSanitizer at exit, traced')


def refleaks():
    for test in OWN_TESTS:
        yield Tests('refleaks', f'refleaks-{test}', ['debug'],
                    f'{test} with -R 3:3', tests=(test,),
                    regrtest=('-R', '3:3'), again=False, timeout=7200)


def differential():
    for name, scripts in ('scripts', 'scripts.txt'), ('programs', None):
        for frames in 1, 10, 100:
            yield Differential(
                'differential', f'{name}-{frames}',
                ['stock-release', 'release'],
                f'traces of {name} are those of stock, {frames} frames',
                frames=frames, scripts=scripts)


def packages():
    yield Packages('packages', 'packages', [],
                   "Debian's packages, compiled for stock, and tests of "
                   "greenlet's and numpy's")


def storms():
    configs = ('release', 'debug', 'freethreaded', 'freethreaded-debug',
               'asan', 'tsan', 'freethreaded-tsan')
    each = ORACLE_SECONDS / len(configs) / len(VARIANTS)
    for storm, seconds in (('oracle', each), ('interpreters', 0),
                           ('threads', STORM_SECONDS),
                           ('startstop', STORM_SECONDS)):
        for config in configs:
            count = 100 if 'san' in config else 500
            text = f'{count} interpreters' if not seconds else storm
            yield Storm('storms', f'{storm}-{config}', [config],
                        f'{text}, {config}', storm=storm, seconds=seconds,
                        count=count,
                        baseline=(f'races-stock-{config}'
                                  if config.endswith('tsan') else None))
    yield Tests('storms', 'forks', ['debug'],
                'test_tracemalloc_fork with -u cpu: 1000 forks',
                tests=('test_tracemalloc_fork',), regrtest=('-u', 'cpu'),
                timeout=7200, again=False)


def pure_parts():
    yield Command('model', 'model', [], 'model of the counters',
                  tools=('spin',), needs=('Tools/tracemalloc/check_model.sh',),
                  command=('{tree}/Tools/tracemalloc/check_model.sh',))


def compilers():
    for compiler in 'gcc', 'clang':
        for level in range(4):
            name = f'{compiler}-O{level}'
            yield Compiler('compilers', name, [name],
                           f'{compiler} -O{level} -Wall -Wextra, own tests')
    yield Compiler('compilers', 'm32', ['m32'], 'gcc -m32, own tests',
                   tests=OWN_TESTS)
    for stock in 'stock-regen', 'regen':
        yield Regenerate('compilers', stock, [stock],
                         f'{", ".join(Regenerate.TARGETS)}'
                         f'{", stock" * (stock != "regen")}',
                         reference=stock != 'regen',
                         baseline=None if stock != 'regen' else 'stock-regen')
    yield Abi('compilers', 'abi', ['stock-shared', 'shared'],
              "abidiff of stock's and our shared library")
    yield Command('compilers', 'series', [],
                  'each patch builds and passes test_tracemalloc',
                  tests=('test_tracemalloc',),
                  files=('../patches', 'check-series.sh', 'common.sh',
                         'options.sh', 'owned.sh'),
                  command=('{root}/scripts/check-series.sh',),
                  settings=(('EACH', '1'),))


def all_steps():
    return [step for group in (
        differential, packages, suites, sanitizers, refleaks, storms,
        pure_parts, compilers) for step in group()]
