"""Nearly every traced allocation executes no atomic read-modify-write.

Such an instruction takes as long as all the rest of a hook, and makes threads
wait for each other; a lock needs one as well.  So look at the machine code of
the functions through which an allocation and a free go.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import unittest
from test import support

# What is rare is in other functions.
FUNCTIONS = """
    mem0_malloc mem0_calloc mem0_free obj0_malloc obj0_calloc obj0_free
    call_attached
    _PyTraceMalloc_AddBlock _PyTraceMalloc_FreeBlock
    _PyTraceMalloc_ObjectCreated
""".split()

# x86-64: prefixed, implied by an operand in memory, and the fences.
LOCKED = re.compile(r'\tlock |\txchg .*\(|\tmfence|\tlfence')

CFLAGS = sysconfig.get_config_var('PY_CORE_CFLAGS') or ''


def optimized():
    levels = re.findall(r'-O(\w*)', CFLAGS)
    # With -flto functions have other names.
    return (bool(levels) and levels[-1] in ('2', '3')
            and '-flto' not in CFLAGS)


@unittest.skipUnless(sysconfig.get_platform() == 'linux-x86_64',
                     'knows the instructions of x86-64')
@unittest.skipUnless(optimized(), 'the build is not optimized')
@unittest.skipIf(support.check_sanitizer(address=True, memory=True, ub=True,
                                         thread=True),
                 'sanitizers add instructions')
@unittest.skipIf(sysconfig.get_config_var('Py_ENABLE_SHARED'),
                 'the functions are in a library')
@unittest.skipUnless(shutil.which('objdump'), 'needs objdump')
class FastPathTests(unittest.TestCase):

    def setUp(self):
        if '<PyMutex_Lock>:' not in self.disassemble('PyMutex_Lock'):
            self.skipTest('the interpreter is stripped, or objdump is too old')

    def disassemble(self, function):
        return subprocess.run(
            ['objdump', '--disassemble=' + function, '--no-show-raw-insn',
             sys.executable],
            capture_output=True, text=True).stdout

    def test_no_locked_instruction(self):
        symbols = subprocess.run(['objdump', '--syms', sys.executable],
                                 capture_output=True, text=True).stdout
        for function in FUNCTIONS:
            # A compiler may add a suffix to the name of a static function.
            names = re.findall(rf'\s({function}(?:\.\w+)*)$', symbols, re.M)
            self.assertTrue(names, function)
            for name in names:
                with self.subTest(function=name):
                    code = self.disassemble(name)
                    self.assertIn(f'<{name}>:', code)
                    self.assertEqual(
                        [line for line in code.splitlines()
                         if LOCKED.search(line)], [])

    def test_a_locked_instruction_would_be_found(self):
        # It takes a mutex.
        self.assertRegex(self.disassemble('PyMutex_Lock'), LOCKED)


if __name__ == '__main__':
    unittest.main()
