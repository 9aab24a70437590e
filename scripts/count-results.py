"""count-results.py XML LOG STATUS [again]: count one run of regrtest.

XML is what --junit-xml wrote, LOG the output, STATUS the exit status.  Prints
'passed failed skipped' and then lines 'failed: NAME'.  With 'again', files
that failed are left out of the count and printed as lines 'again: FILE', for
they are going to be run once more.

The XML alone does not tell everything: a file whose worker crashed or was
killed, or which was skipped as a whole, is not in it, and a failed subtest
leaves a testcase without name and result.  So the lists of files at the end
of the log and the exit status are held against it; with an exit status other
than 0 it is never 'nothing failed, nothing to run again'.
"""

import os
import re
import sys
import xml.etree.ElementTree as ET

LISTS = {
    'failed': r'(\d+) tests? failed:',
    'env': r'(\d+) tests? altered the execution environment \(env changed\):',
    'skipped': r'(\d+) tests? skipped(?: \(resource denied\))?:',
    'nothing': r'(\d+) tests? run no tests:',
    'omitted': r'(\d+) tests? omitted:',
}


def file_lists(log):
    """The names of files in each list of regrtest's last summary."""
    lists = {kind: [] for kind in LISTS}
    current = None
    for line in log.rpartition('== Tests result:')[2].splitlines():
        if line.startswith('    ') and current is not None:
            current += line.split()
            continue
        current = None
        for kind, pattern in LISTS.items():
            if re.fullmatch(pattern, line.rstrip()):
                current = lists[kind]
    return lists


def outcome(case):
    if case.get('result') is None:
        return 'failed'                      # a subtest has failed
    tags = {child.tag for child in case}
    if tags & {'failure', 'error', 'outcome'}:
        return 'failed'                      # outcome: an unexpected success
    return 'skipped' if 'skipped' in tags else 'passed'


def of(name, files):
    return any(f'.{file}.' in f'.{name}.' for file in files)


def cases(xml, left_out):
    """Counts, names of the failed tests, and how many failures have none."""
    count = {'passed': 0, 'failed': 0, 'skipped': 0}
    names = []
    unnamed = 0
    suites = []
    if os.path.exists(xml):
        suites = ET.parse(xml).getroot().findall('testsuite')
    for suite in suites:
        bad = 0
        for case in suite.findall('testcase'):
            what, name = outcome(case), case.get('name')
            bad += what == 'failed'
            if name is None:
                unnamed += 1
            elif not of(name, left_out):
                count[what] += 1
                if what == 'failed':
                    names.append(name)
        if not bad:
            # Failures that belong to no test: setUpClass, setUpModule.
            unnamed += (int(suite.get('errors', 0))
                        + int(suite.get('failures', 0)))

    return count, names, unnamed


def main(xml, logfile, status, again):
    with open(logfile, encoding='utf-8', errors='replace') as file:
        log = file.read()
    lists = file_lists(log)
    left_out = lists['failed'] + lists['env'] if again else []

    count, names, unnamed = cases(xml, left_out)
    if unnamed and not left_out:
        count['failed'] += unnamed
        found = re.findall(r'^(?:FAIL|ERROR): .*?\(([\w.]+)\)', log, re.M)
        names += (sorted(set(found) - set(names))
                  or [f'{unnamed} in subtests or set-up'])

    def whole_file(file, text):
        count['failed'] += 1
        names.append(f'{file} ({text})')

    if not again:
        for file in lists['failed']:
            # Without a failed test in the XML: crashed, killed, not imported.
            if not any(of(name, [file]) for name in names):
                whole_file(file, 'the whole file')
        for file in lists['env']:
            whole_file(file, 'has altered the environment')
    for file in lists['nothing']:
        whole_file(file, 'has run no test')
    for file in lists['omitted']:
        whole_file(file, 'was not run')
    count['skipped'] += len(lists['skipped'])

    if status != 0 and count['failed'] == 0 and not left_out:
        count['failed'] = 1
        names.append(f'regrtest itself (exit status {status})')

    print(count['passed'], count['failed'], count['skipped'])
    for name in names:
        print('failed:', name)
    for file in left_out:
        print('again:', file)


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), 'again' in sys.argv[4:])
