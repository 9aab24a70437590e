"""re: compile patterns, search, split and substitute in a log."""

import re

PATTERNS = [
    r'(?P<month>[A-Z][a-z]{2}) +(?P<day>\d+) (?P<time>\d\d:\d\d:\d\d)',
    r'\b(?:\d{1,3}\.){3}\d{1,3}\b',
    r'user=(?P<user>\w+)(?:,\s*group=(\w+))?',
    r'(?i)error|warning|failed(?=\s)',
    r'"([^"\\]*(?:\\.[^"\\]*)*)"',
]
LINE = ('Nov {day:2} 12:{minute:02}:07 host{day} app[{pid}]: user=u{pid}, '
        'group=g{day} from 10.0.{day}.{minute} said "a \\"b\\" c" failed \n')


def log(lines):
    return ''.join(LINE.format(day=i % 28 + 1, minute=i % 60, pid=i * 37)
                   for i in range(lines))


def main(n):
    text = log(90 * n)
    found = []
    for _ in range(max(1, n // 2)):
        # As with a cold cache, so that the compiler works as well.
        re.purge()
        compiled = [re.compile(pattern) for pattern in PATTERNS]
    for pattern in compiled:
        found.append([match.groupdict() or match.group()
                      for match in pattern.finditer(text)])
    swapped = compiled[0].sub(lambda m: m['day'] + ' ' + m['month'], text)
    words = re.split(r'[\s,:=]+', swapped)
    return found, words
