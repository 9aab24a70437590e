"""A build of CPython, copied aside, and how a script is run in it.

tracemalloc records the paths of files, and interpreters keep them in many
strings.  A build is therefore copied into TREES/NAME, and all builds run
through one and the same path, TREES/now, a symbolic link that is set whenever
one of them is about to work.  So no path differs between two builds, nor does
the length of one.  The copy also keeps a measurement apart from a build that
is made meanwhile.
"""

import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent

# Asked of the interpreter: where it has its library and its extensions.
PROBE = """if 1:
    import json, os, sys, sysconfig
    variable = sysconfig.get_config_var
    suffix = 't' if variable('Py_GIL_DISABLED') else ''
    print(json.dumps({
        'version': sys.version,
        'library': os.path.dirname(os.__file__),
        'extensions': sys.path[-1],
        'folder': 'python%d.%d' % sys.version_info[:2] + suffix,
        'configure': variable('CONFIG_ARGS'),
        'compiler': '%s %s' % (variable('CC'), variable('CFLAGS')),
        'debug': bool(variable('Py_DEBUG')),
    }))
"""

LEFT_OUT = ('test', 'tests', 'idlelib', 'tkinter', 'turtledemo', 'ensurepip',
            'site-packages', '__pycache__')

# What there has to be of the package test for the tests that are measured.
TESTS = ('__init__.py', 'support', 'typinganndata', 'test_json',
         'test_typing.py', 'test_dataclasses')


class Failure(Exception):
    """A script crashed, hung or raised; the text says which."""


class Build:
    """A copy of the build with this executable, below the folder trees."""

    def __init__(self, name, python, trees):
        self.name = name
        self.python = pathlib.Path(python).resolve()
        self.trees = pathlib.Path(trees).resolve()
        output = subprocess.run(
            [self.python, '-I', '-S', '-c', PROBE], check=True,
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout
        self.facts = json.loads(output)
        self._copy()

    def _copy(self):
        tree = self.trees / self.name
        if tree.exists():
            shutil.rmtree(tree)
        (tree / 'bin').mkdir(parents=True)
        shutil.copy2(self.python, tree / 'bin' / 'python')
        library = tree / 'lib' / self.facts['folder']
        shutil.copytree(self.facts['library'], library,
                        ignore=shutil.ignore_patterns(*LEFT_OUT))
        shutil.copytree(self.facts['extensions'], library / 'lib-dynload',
                        dirs_exist_ok=True)

    def select(self):
        """Let the common path lead to this build."""
        new = self.trees / 'now.new'
        new.unlink(missing_ok=True)
        new.symlink_to(self.name)
        os.replace(new, self.trees / 'now')


class Session:
    """A script that runs in a build and works only when it is told to.

    For each line of input it writes a line of output.  Sessions of several
    builds can be open if only one of them works, or starts, at a time: the
    first turn of one must have ended before another one is opened.
    """

    def __init__(self, build, script, *arguments, cwd=None, path=None):
        self.build = build
        self.errors = tempfile.TemporaryFile()
        self.buffer = b''
        build.select()
        now = build.trees / 'now'
        # -I would be simpler, but it ignores the hash seed.
        command = [now / 'bin' / 'python', '-s', '-S',
                   '-X', f'pycache_prefix={now}/cache',
                   HERE / script, *arguments]
        environ = {'PYTHONHASHSEED': '0', 'LC_ALL': 'C.UTF-8',
                   'PATH': os.defpath}
        if path is not None:
            environ['PYTHONPATH'] = str(path)
        self.process = subprocess.Popen(
            command, cwd=cwd or build.trees, bufsize=0, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors, env=environ)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()

    def turn(self, timeout):
        """Let the script work and return its line, as JSON decoded."""
        self.build.select()
        try:
            self.process.stdin.write(b'\n')
        except BrokenPipeError:
            self._ended()
        deadline = time.monotonic() + timeout
        while b'\n' not in self.buffer:
            left = deadline - time.monotonic()
            if not select.select([self.process.stdout], [], [],
                                 max(left, 0))[0]:
                raise Failure(f'no end after {timeout} s')
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                self._ended()
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b'\n')
        return json.loads(line)

    def _ended(self):
        """The script ended too early: raise Failure with the reason."""
        code = self.process.wait()
        if code < 0:
            raise Failure('crash, ' + signal.Signals(-code).name)
        self.errors.seek(0)
        text = self.errors.read().decode('utf-8', 'replace').strip()
        lines = text.split('\n')
        fatal = [line for line in lines if line.startswith('Fatal Python')]
        raise Failure((fatal or lines)[-1] or f'exit status {code}')


def copy_tests(build, out):
    """Copy the tests of a build's library to where all builds find them.

    Returns that folder, or None if the library has no tests.
    """
    folder = (out / 'trees' / 'source').resolve()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / 'test').mkdir(parents=True)
    for name in TESTS:
        source = pathlib.Path(build.facts['library'], 'test', name)
        if source.is_dir():
            shutil.copytree(source, folder / 'test' / name,
                            ignore=shutil.ignore_patterns('__pycache__'))
        elif source.is_file():
            shutil.copy2(source, folder / 'test')
        else:
            return None
    return folder


def arguments(parser):
    """Add the options that name builds to an argument parser."""
    parser.add_argument('--stock', required=True, metavar='PYTHON',
                        help='executable of the build to compare with')
    parser.add_argument('--patched', required=True, metavar='PYTHON',
                        help='executable of the build that is looked at')
    parser.add_argument('--out', default='build/bench', metavar='DIR',
                        type=pathlib.Path, help='folder of the results')


def copy(name, python, out):
    """Copy a build below the folder of results; exit if it does not run."""
    try:
        return Build(name, python, out / 'trees')
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f'error: {python} cannot be used as {name}: {error}.')
