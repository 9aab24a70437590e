"""sizes.py [FOLDER]: how long the files of the series are.

FOLDER is a CPython tree with the series applied, or this checkout, whose
folders hold the files that the series owns.  Prints the lines of the product (C
and headers that go into the interpreter), the longest files, functions and
patch, the exported functions and the tests, each with its limit.  Exit status 1
if a limit is exceeded.
"""

import pathlib
import re
import sys

PRODUCT = ('Include/internal/pycore_tracemalloc*.h', 'Python/tracemalloc*.c',
           'Modules/_tracemalloc.c')
TESTS = ('Lib/test/test_tracemalloc_*.py', 'Lib/test/tracemalloc_*.py',
         'Lib/test/support/tracemalloc*.py',
         'Modules/_testinternalcapi/test_tracemalloc*.c')
MAIN_HEADER = 'Include/internal/pycore_tracemalloc.h'

# In lines, but for the exports.
MAX_PRODUCT = 4000
MAX_FILE = 600
MAX_FUNCTION = 60
MAX_MAIN_HEADER = 450
MAX_TEST = 800
MAX_PATCH = 1500


def find(folder, patterns):
    return sorted(path for pattern in patterns
                  for path in folder.glob(pattern))


def functions(text):
    """Yield (name, lines) of each function of a C file in CPython's style."""
    name = start = None
    lines = text.splitlines()
    for number, line in enumerate(lines):
        found = re.match(r'(\w+)\(', line)
        if found:
            name, start = found[1], number
        elif line == '}' and name:
            # With the line of the return type.
            yield name, number - start + 2
            name = None
        elif line.endswith(';') and name and not line.startswith((' ', '{')):
            name = None


def added_to_product(patch):
    """Count the lines of C that a patch adds, but for tests and generated."""
    count, counted = 0, False
    for line in patch.read_text().splitlines():
        if line.startswith('+++ '):
            counted = (line.endswith(('.c', '.h'))
                       and not re.search(r'/clinic/|_cases\.c\.h|_test', line))
        elif line.startswith('+') and counted:
            count += 1
    return count


class Report:
    def __init__(self):
        self.exceeded = 0

    def line(self, what, value, limit=None):
        mark = ''
        if limit is not None:
            over = value > limit
            self.exceeded += over
            mark = f' of at most {limit:,}' + (', exceeded' if over else '')
        print(f'      {what}: {value:,}{mark}')


def main(folder):
    report = Report()
    texts = {path: path.read_text() for path in find(folder, PRODUCT)}
    if not texts:
        sys.exit(f'error: there is no product of the series in {folder}.')
    sizes = {path: len(text.splitlines()) for path, text in texts.items()}
    report.line('product, C and headers, lines', sum(sizes.values()),
                MAX_PRODUCT)
    report.line(f'{MAIN_HEADER}, lines', sizes[folder / MAIN_HEADER],
                MAX_MAIN_HEADER)
    longest = max(sizes, key=sizes.get)
    report.line(f'longest file, {longest.name}', sizes[longest], MAX_FILE)
    lines, name = max((lines, name) for path, text in texts.items()
                      if path.suffix == '.c'
                      for name, lines in functions(text))
    report.line(f'longest function, {name}()', lines, MAX_FUNCTION)
    patches = {patch: added_to_product(patch)
               for patch in folder.glob('patches/*.patch')}
    if patches:
        longest = max(patches, key=patches.get)
        report.line(f'longest patch, {longest.name[:4]}, added C',
                    patches[longest], MAX_PATCH)
    report.line('exported functions (PyAPI_FUNC)',
                sum(text.count('\nPyAPI_FUNC(') for text in texts.values()))
    tests = {path: len(path.read_text().splitlines())
             for path in find(folder, TESTS)}
    for path, lines in tests.items():
        if lines > MAX_TEST:
            report.line(f'test {path.name}', lines, MAX_TEST)
    report.line('tests of the series, lines', sum(tests.values()))
    return 1 if report.exceeded else 0


if __name__ == '__main__':
    sys.exit(main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else '.')))
