"""count-reports.py FOLDER: the races in which the series takes part.

FOLDER holds the files that ThreadSanitizer's log_path=FOLDER/report has made.
CPython has data races of its own, and which of them show up is chance; so a
report counts only if a file of tracemalloc's is near the top of one of the
stacks in which it happened: at the top may be what was called, as memcpy().
Where the memory or a thread comes from does not count, and neither do static
types: each new interpreter writes to them (in typeobject.c, structseq.c and
exceptions.c) while others read them, and not all have names that end in _Type.
Prints the numbers of those that count and of the others, and then lines
'failed: SUMMARY'.
"""

import pathlib
import re
import sys

NEAR = 5            # frames
ORIGIN = r'^  (Location|Thread|Mutex .* created)\b'
OWN = r'[/ ][^/ ]*tracemalloc[^/ ]*\.[ch]:\d+'
STATIC_TYPE = r"^  Location is global '\w+_Type'"
TYPE_CODE = r'^ +#0 .*[/ ]Objects/(exceptions|structseq|typeobject)\.c:\d+'
BEGIN = 'WARNING: ThreadSanitizer: '


def takes_part(report):
    if re.search(STATIC_TYPE, report, re.M):
        return False
    if re.search(TYPE_CODE, report.partition('\n  Location')[0], re.M):
        return False
    for stack in report.split('\n\n'):
        frames = re.findall(r'^ +#\d+ .*$', stack, re.M)
        if (not re.search(ORIGIN, stack, re.M)
                and any(re.search(OWN, frame) for frame in frames[:NEAR])):
            return True
    return False


def summary(report):
    found = re.search(r'^SUMMARY: (.*)$', report, re.M)
    return found[1] if found else BEGIN + report.partition('\n')[0]


def main(folder):
    reports = []
    for path in sorted(pathlib.Path(folder).glob('report.*')):
        reports += path.read_text(errors='replace').split(BEGIN)[1:]
    failures = [summary(one) for one in reports if takes_part(one)]
    print(len(failures), len(reports) - len(failures))
    for line in failures:
        print('failed:', line)


if __name__ == '__main__':
    main(sys.argv[1])
