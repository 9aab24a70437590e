"""Short runs of test.tracemalloc_oracle, which can also run for hours."""

import unittest

from test import support
from test.support import import_helper
from test.support import script_helper
from test.support import threading_helper

# Raise SkipTest where they are not supported.
import_helper.import_module('_interpreters')
import_helper.import_module('_testinternalcapi')
import_helper.import_module('_tracemalloc')
support.requires_subprocess()
threading_helper.requires_working_threading(module=True)

# glibc's malloc() shall hand out an address again at once, to any thread.
ENV = {
    'MALLOC_ARENA_MAX': '1',
    'GLIBC_TUNABLES': 'glibc.malloc.tcache_count=0',
}


class OracleTests(unittest.TestCase):

    def check(self, mode, seed, *options, rounds=25, **env):
        args = ['--mode', mode, '--seed', str(seed), '--rounds', str(rounds),
                '--timeout', str(support.LONG_TIMEOUT)]
        if support.check_sanitizer(address=True, memory=True, thread=True):
            # They make it an error to ask for too much memory.
            args.append('--no-failures')
        result, _ = script_helper.run_python_until_end(
            *options, '-m', 'test.tracemalloc_oracle', *args, **ENV, **env)
        if result.rc != 0:
            self.fail(f'{" ".join(args)}: exit status {result.rc}\n'
                      + result.out.decode(errors='replace')
                      + result.err.decode(errors='replace'))

    def test_serial(self):
        for seed in 1, 2:
            with self.subTest(seed=seed):
                self.check('serial', seed)

    def test_parallel(self):
        for seed in 3, 4:
            with self.subTest(seed=seed):
                self.check('parallel', seed)

    def test_debug_allocator(self):
        self.check('both', 5, PYTHONMALLOC='debug')

    def test_traced_from_the_start(self):
        self.check('both', 6, '-X', 'tracemalloc=3', rounds=10)


if __name__ == '__main__':
    unittest.main()
