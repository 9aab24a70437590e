"""What the tests of tracemalloc in several interpreters and processes share.

Tests are in this process, where nothing may be traced before (TestBase), or
are scripts in processes of their own, since what is wrong there crashes or
hangs (ScriptBase).
"""

import ast
import contextlib
import os
import subprocess
import sys
import textwrap
import unittest

from test import support
from test.support import import_helper
from test.support import threading_helper

# Raise SkipTest where they are not supported.
_interpreters = import_helper.import_module('_interpreters')
tracemalloc = import_helper.import_module('_tracemalloc')
capi = import_helper.import_module('_testinternalcapi')
mmap = import_helper.import_module('mmap')
threading_helper.requires_working_threading(module=True)


CONFIGS = ('legacy', 'isolated')
UNKNOWN = (('<unknown>', 0),)

# A domain for PyTraceMalloc_Track(), and an address which no allocator
# returns.
DOMAIN = 0xbeef
ADDRESS = 0x1230

# A block that no other block of the test has the size of.
MARK = 1_234_567
MB = 1 << 20

# How long a native thread may take: less than a whole script.
TIMEOUT = support.LONG_TIMEOUT / 2

ASAN_FORK_BUG = 'libasan: a child finds locks of threads that it has not'


@contextlib.contextmanager
def full_address_space():
    """No block of sys.maxsize bytes can be had, be addresses of 32 bits."""
    with contextlib.ExitStack() as mappings:
        with contextlib.suppress(OSError):
            while True:
                mappings.enter_context(mmap.mmap(-1, sys.maxsize // 4))
        yield


class Subinterpreter:
    """An interpreter that runs source code and answers questions."""

    def __init__(self, config):
        self.id = _interpreters.create(config)
        self.pipe = os.pipe()
        try:
            self.run("""
                import os
                import _tracemalloc as tracemalloc
                import _testinternalcapi as capi
                """)
        except BaseException:
            self.destroy()
            raise

    def run(self, source):
        excinfo = _interpreters.exec(self.id, textwrap.dedent(source))
        if excinfo is not None:
            raise AssertionError(f'in interpreter {self.id}: '
                                 f'{excinfo.errdisplay}')

    def ask(self, expr):
        """Evaluate an expression.  Its value must survive repr()."""
        reader, writer = self.pipe
        self.run(f"os.write({writer}, repr({expr}).encode())")
        return ast.literal_eval(os.read(reader, 60_000).decode())

    def destroy(self):
        if self.id is not None:
            _interpreters.destroy(self.id)
            self.id = None
            for fd in self.pipe:
                os.close(fd)


class TestBase(unittest.TestCase):
    """Tests in this process: nothing traces before, nothing traces after."""

    def setUp(self):
        if tracemalloc.is_tracing():
            self.skipTest("tracemalloc must be stopped before the test")
        self.addCleanup(tracemalloc.stop)

    def create(self, config='isolated'):
        interp = Subinterpreter(config)
        self.addCleanup(interp.destroy)
        return interp

    def assert_sums(self, *interps):
        """The traces of all tracing interpreters add up to the total.

        The current interpreter need not be given.
        """
        ids = [interp.id for interp in interps]
        total, traced = capi.tracemalloc_sums(*ids)
        self.assertEqual(total, traced)

    def get_traceback(self, addr, domain=0):
        return capi._PyTraceMalloc_GetTraceback(domain, addr)

    def ask_traceback(self, interp, addr, domain=0):
        return interp.ask(f"capi._PyTraceMalloc_GetTraceback({domain}, "
                          f"{addr})")

    def count(self, size=MARK, interp=None):
        """How many traces of this size an interpreter has."""
        expr = f"[t[1] for t in tracemalloc._get_traces()].count({size})"
        return eval(expr) if interp is None else interp.ask(expr)


def get_lineno():
    return sys._getframe(1).f_lineno


# --- Scripts ------------------------------------------------------------

# What each script begins with.
PRELUDE = f"""\
import os
import sys
import threading
import _interpreters
import _testinternalcapi as capi
import _tracemalloc as tracemalloc

TIMEOUT = {TIMEOUT}

def run(interp, source):
    # Not compiled there: the parser of a debug build counts in a variable of
    # the process, without a lock.
    code = compile(source, '<string>', 'exec')
    excinfo = _interpreters.exec(interp, code)
    if excinfo is not None:
        raise AssertionError(excinfo.errdisplay)

def sizes():
    return [trace[1] for trace in tracemalloc._get_traces()]

def check_sums(*interps):
    total, traced = capi.tracemalloc_sums(*interps)
    assert total == traced, (total, traced)

def run_threads(targets):
    errors = []
    def call(target):
        try:
            target()
        except BaseException as exc:
            errors.append(exc)
    threads = [threading.Thread(target=call, args=(target,))
               for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for exc in errors:
        raise exc

"""

# What an interpreter with -X tracemalloc=3 does as the first thing.
FIRST = """\
import _tracemalloc as tracemalloc
assert tracemalloc.is_tracing()
assert tracemalloc.get_traceback_limit() == 3
traces = tracemalloc._get_traces()
names = {filename for trace in traces for filename, _ in trace[2]}
# Traces of the import of site, which comes before any code of the user's.
# It is not frozen in all builds.
assert any(name.endswith(('site.py', ' site>')) for name in names), names
assert max(len(trace[2]) for trace in traces) == 3
"""


@support.requires_subprocess()
class ScriptBase(unittest.TestCase):
    """Tests that crash or hang where something is wrong."""

    def run_script(self, script, *args, malloc=None, returncode=0, **env):
        """Run a script in a new process and return its stdout and stderr."""
        environ = os.environ.copy()
        for name in 'PYTHONTRACEMALLOC', 'PYTHONMALLOC', 'PYTHONDEVMODE':
            environ.pop(name, None)
        if malloc is not None:
            environ['PYTHONMALLOC'] = malloc
        environ.update(env)
        script = PRELUDE + textwrap.dedent(script)
        cmd = [sys.executable, '-X', 'faulthandler', *args, '-c', script]
        with support.SuppressCrashReport():
            try:
                proc = subprocess.run(cmd, env=environ, text=True,
                                      errors='backslashreplace',
                                      stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE,
                                      timeout=support.LONG_TIMEOUT)
            except subprocess.TimeoutExpired as exc:
                self.fail(f'the script hangs: {exc.stderr}')
        self.assertEqual(proc.returncode, returncode,
                         f'\n{proc.stdout}\n{proc.stderr}')
        return proc.stdout, proc.stderr

    def run_twice(self, script, *args):
        """Run a script with the usual and with the debug allocators."""
        for malloc in None, 'debug':
            with self.subTest(malloc=malloc):
                self.run_script(script, *args, malloc=malloc)


@unittest.skipUnless(hasattr(os, 'fork'), 'need os.fork()')
@support.requires_fork()
class ForkBase(ScriptBase):
    """Scripts that fork."""

    FORK = """
        import signal

        def in_child(func):
            pid = os.fork()
            if pid == 0:
                # A child that deadlocks dies of it.
                signal.alarm(max(int(TIMEOUT) - 1, 1))
                try:
                    func()
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    os._exit(1)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            status = os.waitstatus_to_exitcode(status)
            assert status == 0, status
        """

    def run_fork(self, script, *args):
        script = textwrap.dedent(self.FORK) + textwrap.dedent(script)
        self.run_script(script, '-W', 'ignore::DeprecationWarning', *args)


# --- Scripts with allocators below the hooks ----------------------------

# What these begin with.
SETUP = """\
from itertools import product

OLD, NEW, OTHER = 10_001, 20_002, 30_003
# More than any allocator has.
TOO_MUCH = sys.maxsize - 4096

def get_traceback(addr):
    return capi._PyTraceMalloc_GetTraceback(0, addr)

def realloc(domain, addr, size):
    # No request fails.
    return capi.tracemalloc_realloc_failing(
        domain, addr, size, 0, 0, False)[0]

def malloc(domain, size):
    return realloc(domain, 0, size)

def free(domain, addr):
    capi.tracemalloc_domain_free(domain, addr)

def create(config):
    interp = _interpreters.create(config)
    run(interp, '''if 1:
        import _testinternalcapi as capi
        import _tracemalloc as tracemalloc
        def sizes():
            return [trace[1] for trace in tracemalloc._get_traces()]
        tracemalloc.start()
        ''')
    return interp

def hold_up(key, func, meanwhile, detach=False, after=False):
    '''Call func() in a thread, and something else when it is at the gate.'''
    errors = []
    def target():
        try:
            func()
        except BaseException as exc:
            errors.append(exc)
    capi.tracemalloc_gate_close(key, detach, after)
    thread = threading.Thread(target=target)
    thread.start()
    try:
        capi.tracemalloc_gate_wait(TIMEOUT)
        return meanwhile()
    finally:
        capi.tracemalloc_gate_open()
        thread.join()
        for exc in errors:
            raise exc

capi.tracemalloc_below_install()
"""


class FaultsBase(ScriptBase):
    """Scripts where the allocators fail, or hold a thread up."""

    def run_faults(self, script, *args, malloc=None):
        self.run_script(SETUP + textwrap.dedent(script), *args, malloc=malloc)
