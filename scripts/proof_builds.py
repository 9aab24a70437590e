"""The builds that 'make proof' needs, and how a program is run in one.

Builds of the CONFIGs are those of scripts/build.sh, in build/CONFIG and
build/stock-CONFIG.  The others are configured in build/proof/builds/NAME.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(os.environ['ROOT'])
TREE = pathlib.Path(os.environ['TREE'])
BUILD = pathlib.Path(os.environ['BUILD'])
STOCK = BUILD / 'stock-src'
PROOF = BUILD / 'proof'
JOBS = os.environ['JOBS']

SILENT = 300        # seconds between signs of life if nobody watches

# Not of the tests' own: what is asked of the sanitizers.
ASAN = 'allocator_may_return_null=1:handle_segv=0'
UBSAN = 'print_stacktrace=1:halt_on_error=1'


class NotRun(Exception):
    """A step cannot be done here; the text says what is missing."""


class Failed(Exception):
    """A step cannot be done because something else is broken."""


@contextlib.contextmanager
def locked(name, wait):
    """Hold a lock against other runs; False if that was not possible."""
    folder = PROOF / 'lock'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def write(path, text):
    """Write a file as a whole or not at all."""
    new = path.with_name(f'{path.name}.{os.getpid()}')
    try:
        new.write_text(text)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


# --- Running programs -------------------------------------------------------

def before_exec(memory):
    # A shell lets jobs in the background ignore it, and tests need it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def clean_environ(**more):
    environ = {name: value for name, value in os.environ.items()
               if not name.startswith(('PYTHON', 'MAKE', 'MFLAGS'))
               and name not in ('CC', 'CONFIG', 'STEP', 'STEPS', 'STEP_OPEN',
                                'ONLY', 'AGAIN', 'KEPT', 'OUR_SCRIPT')}
    environ.update(more)
    return environ


def end(process):
    """Interrupt a program, and kill what is left of its group."""
    for number, patience in (signal.SIGINT, 10), (signal.SIGKILL, 10):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            pass


class Progress:
    """The last line of a log, shown while the program runs."""

    def __init__(self, log):
        self.log = log
        self.shown = time.monotonic()
        self.watched = sys.stdout.isatty()

    def last_line(self):
        with open(self.log, 'rb') as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
            lines = file.read().decode('utf-8', 'replace').split('\n')
        return next((line for line in reversed(lines) if line.strip()), '')

    def show(self):
        now = time.monotonic()
        if self.watched:
            width = shutil.get_terminal_size().columns - 1
            text = ('      ' + self.last_line())[:width]
            print(f'\r{text}\x1b[K', end='', flush=True)
        elif now - self.shown > SILENT:
            print(f'\n      {self.last_line()} ... ', end='', flush=True)
            self.shown = now

    def clear(self):
        if self.watched:
            print('\r\x1b[K', end='', flush=True)


def run(command, log, cwd=None, timeout=None, append=False, memory=None,
        **environ):
    """Run a program with its output in a log; return its exit status.

    It is -1000 if there was no end after 'timeout' seconds.  'memory' is the
    most of address space that it may have.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(log)
    deadline = None if timeout is None else time.monotonic() + timeout
    with open(log, 'ab' if append else 'wb') as file:
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, cwd=cwd,
            env=clean_environ(**environ), start_new_session=True,
            preexec_fn=lambda: before_exec(memory))
        try:
            while True:
                try:
                    return process.wait(2)
                except subprocess.TimeoutExpired:
                    progress.show()
                if deadline is not None and time.monotonic() > deadline:
                    end(process)
                    return -1000
        except BaseException:
            end(process)
            raise
        finally:
            progress.clear()


def output(command, **kwargs):
    """What a short program writes, or None if it fails."""
    try:
        return subprocess.run(
            [str(word) for word in command], check=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, **kwargs).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def git(folder, *args, **environ):
    """git without anybody's settings, as g() of common.sh."""
    settings = {'GIT_CONFIG_NOSYSTEM': '1', 'GIT_CONFIG_GLOBAL': '/dev/null',
                'GIT_ATTR_NOSYSTEM': '1', 'HOME': '/nonexistent',
                'XDG_CONFIG_HOME': '/nonexistent'}
    result = subprocess.run(
        ['git', '--no-optional-locks', '-C', str(folder),
         '-c', 'core.hooksPath=/dev/null', '-c', 'core.autocrlf=false',
         '-c', 'core.quotePath=false', '-c', 'core.fsmonitor=false',
         '-c', 'gc.auto=0', '-c', 'safe.directory=*', *args],
        env=clean_environ(**settings, **environ), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    if result.returncode:
        raise Failed(f'git {args[0]} failed: {result.stderr.strip()}')
    return result.stdout


# What no result depends on.
DOCUMENTS = ('Doc', 'InternalDocs', 'Misc/NEWS.d')


def source_id(without=DOCUMENTS):
    """The git tree of build/cpython as it is, uncommitted changes included.

    Nothing is written into its repository.
    """
    with tempfile.TemporaryDirectory() as tmp:
        environ = {
            'GIT_INDEX_FILE': f'{tmp}/index',
            'GIT_OBJECT_DIRECTORY': f'{tmp}/objects',
            'GIT_ALTERNATE_OBJECT_DIRECTORIES': f'{TREE}/.git/objects',
        }
        os.mkdir(f'{tmp}/objects')
        index = TREE / '.git' / 'index'
        if index.exists():
            # Spares it to read every file.
            shutil.copy2(index, f'{tmp}/index')
        git(TREE, 'add', '-A', **environ)
        if without:
            git(TREE, 'rm', '-r', '-q', '--cached', '--ignore-unmatch', '--',
                *without, **environ)
        return git(TREE, 'write-tree', **environ).strip()


def export_source(folder):
    """Copy build/cpython as it is, as a git repository of one commit."""
    files = git(TREE, 'ls-files', '-z', '--cached', '--others',
                '--exclude-standard').split('\0')
    for name in filter(None, files):
        if (TREE / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, target)
    git(folder, 'init', '-q')
    git(folder, 'add', '-A', '-f')
    git(folder, '-c', 'user.name=proof', '-c', 'user.email=proof@localhost',
        '-c', 'commit.gpgSign=false', 'commit', '-q', '-m', 'source')


def series_files(suffixes):
    """(new, changed) files of the series with these suffixes."""
    kinds = {'A': [], 'M': []}
    lines = git(TREE, 'diff', '--name-status', '--no-renames',
                'pristine').splitlines()
    for line in lines:
        kind, name = line.split('\t')
        if name.endswith(suffixes):
            kinds.setdefault(kind, []).append(name)
    untracked = git(TREE, 'ls-files', '--others', '--exclude-standard')
    kinds['A'] += [name for name in untracked.splitlines()
                   if name.endswith(suffixes)]
    return kinds['A'], kinds['M']


# --- Builds -----------------------------------------------------------------

def can_build(compiler, *flags):
    """Does a program made with these flags run here?"""
    if shutil.which(shlex.split(compiler)[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as tmp:
        source = pathlib.Path(tmp, 'a.c')
        source.write_text('#include <stdio.h>\n#include <pthread.h>\n'
                          'int main(void) { return puts("ok") < 0; }\n')
        command = [*shlex.split(compiler), *flags, str(source), '-o',
                   f'{tmp}/a', '-lpthread', '-lm']
        return (output(command) is not None
                and output([f'{tmp}/a']) is not None)


class Build:
    """One way to build CPython, the series or (stock) the pristine source."""

    def __init__(self, name, *, config=None, compiler='gcc', flags=(),
                 options=(), variables=(), make=(), stock=False, folder=None,
                 source=None, missing='', **environ):
        self.name = name
        self.config = config            # of scripts/build.sh
        self.compiler = compiler
        self.flags = flags              # that a program has to bear
        self.options = list(options)    # of configure
        self.variables = dict(variables)    # NAME=VALUE for configure
        self.make = list(make)          # arguments of make
        self.stock = stock
        self.source = source or (STOCK if stock else TREE)
        self.folder = folder or PROOF / 'builds' / name
        self.missing = missing or f'{compiler} {" ".join(flags)}'.strip()
        self.environ = environ          # with '{source}', see environment()
        self.log = PROOF / 'log' / f'build-{name}.log'
        self.state = None               # None, 'done', or what is wrong
        self.paths = {}                 # variables that name paths

    @property
    def python(self):
        return self.folder / 'python'

    def environment(self):
        """Of what runs in it."""
        return {name: value.replace('{source}', str(self.source))
                for name, value in self.environ.items()}

    def description(self):
        """What its results depend on, other than the source."""
        return (self.config, self.compiler, self.options,
                sorted(self.variables.items()), self.make,
                sorted(self.environ.items()))

    def ensure(self):
        """Build it, once in a run."""
        if self.state is None:
            self.state = 'done'
            try:
                with locked('builds', wait=True):
                    self._build()
            except (NotRun, Failed) as error:
                self.state = error
        if self.state != 'done':
            raise self.state

    def _build(self):
        if not can_build(self.compiler, *self.flags):
            raise NotRun(f'programs made with {self.missing} cannot be built'
                         ' or run here')
        if self.config:
            script = ROOT / 'scripts' / 'build.sh'
            command = [script, 'stock'] if self.stock else [script]
            status = run(command, self.log, CONFIG=self.config,
                         **({'CC': self.compiler} if self.compiler != 'gcc'
                            else {}))
        else:
            status = self._build_own()
        if status:
            raise Failed(f'the build {self.name} failed, see '
                         f'{self.log.relative_to(ROOT)}')

    def _build_own(self):
        if self.stock and not STOCK.exists():
            status = run([ROOT / 'scripts' / 'build.sh', 'stock'], self.log,
                         CONFIG='release')
            if status:
                return status
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = repr((str(self.source), self.description(),
                       (self.source / 'configure').stat().st_mtime))
        done = self.folder / '.configured'
        if not done.exists() or done.read_text() != wanted:
            if self.folder != self.source:
                shutil.rmtree(self.folder)
                self.folder.mkdir()
            variables = {'CC': self.compiler, **self.variables,
                         **self.paths}
            status = run([self.source / 'configure', *self.options,
                          *(f'{name}={value}'
                            for name, value in variables.items())],
                         self.log, cwd=self.folder)
            if status:
                return status
            done.write_text(wanted)
        # It runs what it has built: _freeze_module, which leaks at exit.
        return run(['make', f'-j{JOBS}', *self.make], self.log,
                   cwd=self.folder, append=True, **self.environment())

    def remove(self):
        """Make room: only its log is kept."""
        if self.folder.parent == PROOF / 'builds':
            shutil.rmtree(self.folder, ignore_errors=True)
            self.state = None

    def warnings(self):
        """(new, all) warnings in files of the series, as lines.

        Those in changed files that stock has as well are not new.
        """
        text = self.log.read_text(errors='replace')
        added, changed = series_files(('.c', '.h'))
        found = parse_warnings(text, self.source)
        new = [line for name, line in found if name in added]
        touched = [(name, line) for name, line in found if name in changed]
        if touched:
            old = set(self._warnings_of_stock(text, changed))
            new += [line for name, line in touched if (name, line) not in old]
        return sorted(set(new)), [line for _, line in found]

    def _warnings_of_stock(self, text, names):
        """Compile stock's files with the same commands."""
        if not STOCK.exists():
            raise NotRun('there is no build/stock-src to compare with')
        found = []
        for command in text.splitlines():
            words = command.split()
            name = words[-1] if words else ''
            name = name.replace(f'{self.source}/', '')
            if name not in names or ' -c ' not in command:
                continue
            command = command.replace(str(self.source), str(STOCK))
            command = re.sub(r' -o \S+', ' -o /dev/null', command)
            result = subprocess.run(
                shlex.split(command), cwd=self.folder, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT)
            found += parse_warnings(result.stdout, STOCK)
        return found


def parse_warnings(text, source):
    """(file, 'file: warning') of each, without line numbers."""
    found = []
    for path, message in re.findall(
            r'^(\S+?):\d+:(?:\d+:)? warning: (.*)$', text, re.M):
        name = path.replace(f'{source}/', '')
        if name.startswith('./'):
            name = name[2:]
        found.append((name, f'{name}: {message}'))
    return found


def make_builds():
    builds = {}

    def add(name, **kwargs):
        builds[name] = Build(name, **kwargs)

    def pair(config, **kwargs):
        if config in os.environ['CONFIGS'].split():
            kwargs['config'] = config
            kwargs.pop('options', None)
        for stock in False, True:
            name = f'stock-{config}' if stock else config
            folder = BUILD / name if 'config' in kwargs else None
            add(name, stock=stock, folder=folder, **kwargs)

    pair('release')
    pair('debug')
    pair('freethreaded')
    pair('freethreaded-debug')
    pair('asan', flags=('-fsanitize=address,undefined',),
         missing='the address sanitizer',
         ASAN_OPTIONS=f'detect_leaks=0:{ASAN}', UBSAN_OPTIONS=UBSAN)
    # --with-address-sanitizer takes the pages away, and with them the slots.
    flags = '-fsanitize=address -fno-omit-frame-pointer'
    for name, options in (('pymalloc-asan', []),
                          ('freethreaded-asan', ['--disable-gil'])):
        add(name, flags=('-fsanitize=address',),
            options=['--with-pydebug', *options],
            variables={'CFLAGS': flags, 'LDFLAGS': '-fsanitize=address'},
            missing='the address sanitizer',
            ASAN_OPTIONS=f'detect_leaks=0:{ASAN}')
    compiler = 'clang' if shutil.which('clang') else 'gcc'
    thread = dict(compiler=compiler, flags=('-fsanitize=thread',),
                  missing='the thread sanitizer')
    tsan = '{source}/Tools/tsan/suppressions.txt'
    pair('tsan', TSAN_OPTIONS=f'suppressions={tsan}:{ASAN}', **thread)
    tsan = '{source}/Tools/tsan/suppressions_free_threading.txt'
    pair('freethreaded-tsan', TSAN_OPTIONS=f'suppressions={tsan}:{ASAN}',
         options=['--disable-gil', '--with-pydebug',
                  '--with-thread-sanitizer'], **thread)
    for one in 'gcc', 'clang':
        for level in range(4):
            add(f'{one}-O{level}', compiler=one,
                variables={'OPT': f'-DNDEBUG -g -O{level} -Wall'},
                make=['EXTRA_CFLAGS=-Wall -Wextra'])
    # Without pkg-config, which would find the libraries of 64 bits.
    add('m32', compiler='gcc -m32', options=['--build=i686-pc-linux-gnu'],
        variables={'PKG_CONFIG': 'false'},
        make=['EXTRA_CFLAGS=-Wall -Wextra'],
        missing='gcc -m32 (on Debian: apt-get install gcc-multilib)')
    for stock in False, True:
        add('stock-shared' if stock else 'shared', stock=stock,
            options=['--enable-shared'])
        # The checks look for pyconfig.h in the source.
        copy = PROOF / 'regen' / ('stock' if stock else 'series')
        add('stock-regen' if stock else 'regen', stock=stock, source=copy,
            folder=copy)
    return builds


BUILDS = make_builds()
