"""proof.py [run|summary|list]: run by scripts/proof.sh.

Each step leaves build/proof/STEP.json with the source it is of, without
documents and those tests of the series that it does not run, and a key of what
the step does.  A step is not done again while both are the present ones.  The
table also shows results of an older source, and says so.  A failure that a
step's baseline has too, as a rule stock, or which scripts/proof-explained.txt
explains, is in order.  Several runs may be at work at the same time: none
begins a step that another one is at.

'summary' also writes the results to scripts/proof-results.json, for the whole
takes longer than a machine may last.  Those are shown in the table where
build/proof has none, but count as done only if KEPT=1 asks for that.
"""

import datetime
import fnmatch
import json
import os
import platform
import re
import shutil
import signal
import sys
import time
import traceback

import proof_steps
from proof_builds import (
    PROOF, ROOT, TREE, Failed, NotRun, git, locked, output, source_id, write)

EXPLAINED = ROOT / 'scripts' / 'proof-explained.txt'
SUMMARY = PROOF / 'summary.md'
RESULT = ROOT / 'PROOF.md'
KEPT = ROOT / 'scripts' / 'proof-results.json'
SHOWN = 10          # failures of a step that are printed at once

# Of a step, in the table.
PASS, FAIL, EXPLAINS = 'pass', 'FAIL', 'pass, explained'
REFERENCE, NOT_RUN, NOT_DONE = 'reference', 'not run', 'not done'
OUTDATED = 'out of date'
NO_RESULT = NOT_DONE, OUTDATED


def die(sentence):
    print(f'error: {sentence}', file=sys.stderr)
    sys.exit(1)


def asked(variable):
    return os.environ.get(variable, '') not in ('', '0')


# --- Explanations ---------------------------------------------------------

class Explanation:
    def __init__(self, step, test, reason):
        self.step = step
        self.test = test
        self.reason = reason
        self.used = False

    def fits(self, step, failure):
        return (fnmatch.fnmatchcase(step, self.step)
                and fnmatch.fnmatchcase(failure, self.test))


def read_explanations():
    explanations = []
    if not EXPLAINED.exists():
        return explanations
    for number, line in enumerate(EXPLAINED.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith('#'):
            continue
        # What a failure is called may have a colon without a space, or one
        # that is written as a '?'.
        parts = [part.strip() for part in line.split(': ', 2)]
        if len(parts) != 3 or not all(parts):
            die(f'line {number} of scripts/proof-explained.txt is not '
                "'STEP: TEST: reason'.")
        explanations.append(Explanation(*parts))
    return explanations


# --- Results --------------------------------------------------------------

def read_kept():
    """The results of scripts/proof-results.json, by step."""
    if not KEPT.exists():
        return {}
    try:
        return {one['step']: one for one in json.loads(KEPT.read_text())}
    except (ValueError, KeyError, TypeError):
        die('scripts/proof-results.json cannot be read; restore it.')


class Proof:
    def __init__(self, steps):
        self.steps = steps
        self.by_name = {step.name: step for step in steps}
        self.explanations = read_explanations()
        self.kept = read_kept()
        self.source = source_id()
        self.sources = {}

    def source_of(self, step):
        # What runs stock alone does not depend on the series.
        if step.stock_only:
            return os.environ['PRISTINE_TREE']
        unused = step.unused()
        if unused not in self.sources:
            self.sources[unused] = source_id(unused)
        return self.sources[unused]

    def load_done_here(self, step):
        try:
            return json.loads((PROOF / f'{step.name}.json').read_text())
        except (OSError, ValueError):
            return None

    def load(self, step):
        """The step's result of whatever source and machine, or None."""
        here = self.load_done_here(step)
        kept = self.kept.get(step.name)
        if kept is None or here is None:
            return here or kept
        # The better one; the kept one may have been pulled since.
        def rank(stored):
            return (stored['source'] is not None
                    and stored['status'] != 'not run',
                    self.is_current(step, stored),
                    stored['key'] == step.key(), stored['date'])
        return max(here, kept, key=rank)

    def is_current(self, step, stored):
        return (stored['source'] == self.source_of(step)
                and stored['key'] == step.key())

    def current(self, step):
        """The step's result if it need not be done again, or None."""
        stored = (self.load(step) if asked('KEPT')
                  else self.load_done_here(step))
        if stored is not None and self.is_current(step, stored):
            return stored
        return None

    def failures_of(self, name):
        step = self.by_name.get(name)
        stored = self.load(step) if step is not None else None
        if (stored is None or stored['key'] != step.key()
                or stored.get('broken')):
            return None
        return stored['failures']

    def judge(self, step):
        """(verdict, [(failure, in order?, why)...]) of a step's result, of
        whatever source it is."""
        stored = self.load(step)
        if stored is None:
            return NOT_DONE, []
        if stored['key'] != step.key() or stored['source'] is None:
            return OUTDATED, []
        if stored['status'] == 'not run':
            return NOT_RUN, []
        baseline = self.failures_of(step.baseline) or []
        reasons = []
        for failure in stored['failures']:
            explanation = next((one for one in self.explanations
                                if one.fits(step.name, failure)), None)
            if explanation is not None:
                explanation.used = True
                reasons.append((failure, True, explanation.reason))
            elif covered(failure, baseline):
                reasons.append((failure, True, f'{step.baseline} has it, too'))
            else:
                reasons.append((failure, False, ''))
        if step.reference and not stored.get('broken'):
            return REFERENCE, reasons
        if not all(ok for _, ok, _ in reasons):
            return FAIL, reasons
        if stored['status'] == 'fail' and not reasons:
            return FAIL, reasons
        return (EXPLAINS if reasons else PASS), reasons


def covered(failure, baseline):
    """Is it among these, or in a file that crashed there as a whole?"""
    if failure in baseline:
        return True
    test = failure.split()[0]
    return any(f'.{name.split()[0]}.' in f'.{test}.' for name in baseline
               if name.endswith('(the whole file)'))


# --- Running --------------------------------------------------------------

def do_step(proof, step):
    """Do it and store the result, which is returned."""
    start = time.monotonic()
    key = step.key()
    stored = {'step': step.name, 'group': step.group, 'status': 'pass',
              'passed': 0, 'failed': 0, 'skipped': 0, 'failures': [],
              'note': ''}
    try:
        result = step.perform()
    except NotRun as reason:
        stored.update(status='not run', note=str(reason))
    except (Failed, OSError, UnicodeError) as error:
        text = str(error).replace(f'{ROOT}/', '')
        stored.update(status='fail', failed=1, failures=[text], broken=True)
    except Exception:
        # A mistake in the step itself must not keep the others from running.
        step.log.parent.mkdir(parents=True, exist_ok=True)
        with open(step.log, 'a') as file:
            traceback.print_exc(file=file)
        stored.update(status='fail', failed=1, broken=True, failures=[
            f'the step itself raised {sys.exc_info()[0].__name__}, '
            f'{step.where()}'])
    else:
        stored.update(status='fail' if result.failed else 'pass',
                      passed=result.passed, failed=result.failed,
                      skipped=result.skipped, note=result.note,
                      failures=sorted(set(result.failures)))
        if result.text:
            stored['text'] = result.text
    stored['seconds'] = round(time.monotonic() - start)
    stored.update(source=proof.source_of(step), key=key)
    # Nobody knows what the result is of.
    if (not step.stock_only
            and source_id(step.unused()) != proof.source_of(step)):
        stored.update(source=None, note='the source was changed meanwhile')
    if step.key() != key:
        stored.update(source=None, note='the step was changed meanwhile')
    stored['date'] = datetime.datetime.now().isoformat(' ', 'minutes')
    stored['machine'] = machine()
    write(PROOF / f'{step.name}.json', json.dumps(stored, indent=1) + '\n')
    return stored


def select(steps):
    only = os.environ.get('ONLY', '').split()
    if not only:
        return steps
    for pattern in only:
        if not any(matches(step, pattern) for step in steps):
            groups = ' '.join(dict.fromkeys(step.group for step in steps))
            die(f"ONLY={pattern} is neither a group ({groups}) nor a step; "
                "'make proof-list' names them all.")
    return [step for step in steps
            if any(matches(step, pattern) for pattern in only)]


def matches(step, pattern):
    return step.group == pattern or fnmatch.fnmatchcase(step.name, pattern)


def counts(stored):
    return (f'{stored["passed"]} passed, {stored["failed"]} failed, '
            f'{stored["skipped"]} skipped')


def clock(seconds):
    if seconds < 100:
        return f'{seconds} s'
    return f'{round(seconds / 60)} min'


def free_space():
    free = shutil.disk_usage(PROOF).free
    if free < 5 << 30:
        die(f'only {free >> 30} GB are free where build/ is, and 5 are '
            'needed; make room and run make proof again.')


def is_to_be_repeated(proof, step, stored):
    """What failed, and what of stock failed: it may have been the machine."""
    return asked('AGAIN') and (
        proof.judge(step)[0] == FAIL
        or (step.reference and stored['status'] == 'fail'))


def run_step(proof, step, head):
    """Do it unless that is done, and say how it went."""
    stored = proof.current(step)
    if (stored is not None and stored['status'] != 'not run'
            and not is_to_be_repeated(proof, step, stored)):
        print(f'{head}{proof.judge(step)[0]}, done before', flush=True)
        return
    free_space()
    print(head, end='', flush=True)
    if sys.stdout.isatty():
        print(flush=True)
    stored = do_step(proof, step)
    verdict, reasons = proof.judge(step)
    text = stored['note'] if verdict in (NOT_RUN, OUTDATED) else counts(stored)
    print(f'{verdict}: {text}, {clock(stored["seconds"])}', flush=True)
    if verdict == FAIL:
        open_ones = [failure for failure, ok, _ in reasons if not ok]
        for failure in open_ones[:SHOWN]:
            print(f'      failed: {failure}')
        if len(open_ones) > SHOWN:
            print(f'      and {len(open_ones) - SHOWN} more, in '
                  f'build/proof/{step.name}.json')
    write(SUMMARY, summary(proof))
    if verdict == OUTDATED and proof.source != source_id():
        die('the source in build/cpython was changed during a step; run '
            'make proof again when it is at rest.')


def run_all(proof):
    selected = select(proof.steps)
    total = len(selected)
    for number, step in enumerate(selected, 1):
        head = f'[{number}/{total}] {step.name}: {step.title} ... '
        with locked(f'step-{step.name}', wait=False) as mine:
            if mine:
                run_step(proof, step, head)
            else:
                print(f'{head}another make proof is at it', flush=True)
    verdicts = [proof.judge(step)[0] for step in selected]
    write(SUMMARY, summary(proof))
    print('build/proof/summary.md:',
          ', '.join(f'{verdicts.count(one)} {one}'
                    for one in dict.fromkeys(verdicts)))
    # A baseline may have come after what it is to be held against.
    return 1 if FAIL in verdicts else 0


# --- The table ------------------------------------------------------------

def compilers():
    found = []
    for name in 'gcc', 'clang':
        text = output([name, '--version'])
        if text:
            found.append(text.splitlines()[0])
    return '; '.join(found)


def machine():
    """What results depend on, other than the source."""
    try:
        with open('/proc/cpuinfo') as file:
            model = re.search(r'^model name\s*: (.*)$', file.read(), re.M)[1]
    except (OSError, TypeError):
        model = platform.machine()
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    # Without what the builder of the kernel has added.
    release = re.match(r'[\d.]*', platform.release())[0]
    return (f'{model}, {os.cpu_count()} processors, {memory / 2**30:.0f} GB, '
            f'{platform.system()} {release} '
            f'{platform.machine()}; {compilers()}')


def series():
    patches = git(TREE, 'rev-list', '--count', 'pristine..HEAD').strip()
    text = f'{patches} patches'
    if git(TREE, 'rev-parse', 'HEAD^{tree}').strip() != source_id(()):
        text += ' and changes that are not committed'
    return text


def cell(text):
    return str(text).replace('|', r'\|').replace('\n', ' ')


def code(text):
    return '`' + str(text).replace('`', "'") + '`'


def beside(proof, step, failure):
    if step.beside is None:
        return ''
    failures = proof.failures_of(step.beside)
    if failures is None:
        return ' Stock: not known.'
    return (' Stock fails, too.' if covered(failure, failures)
            else ' Stock passes or skips it.')


def age(proof, step, verdict, stored):
    """What follows a verdict that is not about the present source."""
    if verdict in NO_RESULT or proof.is_current(step, stored):
        return ''
    return ' (older)'


def head(proof, judged):
    verdicts = [verdict + age(proof, step, verdict, stored)
                for step, verdict, _, stored in judged]
    shown = [stored for _, verdict, _, stored in judged
             if verdict not in NO_RESULT]
    seconds = sum(stored['seconds'] for stored in shown)
    dates = {}
    for stored in shown:
        dates.setdefault(stored['machine'], []).append(stored['date'][:10])
    origins = []
    for where, when in dates.items():
        days = ' to '.join(dict.fromkeys([min(when), max(when)]))
        origins += [f'{len(when)} steps, {days}: {where}.', '']
    return [
        '# What `make proof` found', '',
        f'CPython {os.environ["VERSION"]}, {series()}, source tree '
        f'{proof.source[:12]}.', '',
        *origins,
        f'{len(judged)} steps, {clock(seconds)}: '
        + ', '.join(f'{verdicts.count(one)} {one}'
                    for one in dict.fromkeys(verdicts)) + '.', '',
        '*reference* is a result of stock, for others to be compared with; '
        '*explained* has failures that its reference has, too, or that are '
        'explained below.  *Older* is a result of another source than the '
        'present one; documents do not count, nor do those tests of '
        'the series that the step does not run.  *Out of date*: what the step '
        'runs has changed, so its result is not shown.  *Not done*: it was '
        'not run yet.  *Not run*: a tool is missing.', '',
    ]


def row(proof, step, verdict, stored):
    numbers = ['', '', '', '']
    note = ''
    shown = f'**{verdict}**' if verdict == FAIL else verdict
    shown += age(proof, step, verdict, stored)
    if verdict not in NO_RESULT:
        note = stored['note']
        if verdict != NOT_RUN:
            numbers = [stored['passed'], stored['failed'], stored['skipped'],
                       clock(stored['seconds'])]
    return '| ' + ' | '.join([cell(step.title), shown, *map(str, numbers),
                              cell(note)]) + ' |'


def tables(proof, judged):
    lines = []
    group = None
    for step, verdict, _, stored in judged:
        if step.group != group:
            group = step.group
            lines += ['', f'## {group.capitalize()}', '',
                      '| step | result | passed | failed | skipped | time '
                      '| |',
                      '| --- | --- | ---: | ---: | ---: | ---: | --- |']
        lines.append(row(proof, step, verdict, stored))
    return lines


def details(proof, judged):
    found = [(step, reasons) for step, _, reasons, _ in judged
             if reasons and not step.reference]
    lines = ['', '## Failures, one by one'] if found else []
    for step, reasons in found:
        lines += ['', f'{step.title} ({code(step.name)}):', '']
        for failure, ok, why in reasons:
            text = why if ok else '**not explained**'
            if not text.endswith(('.', '**')):
                text += '.'
            lines.append(f'- {code(failure)}: {text}'
                         f'{beside(proof, step, failure)}')
    return lines


def texts(proof, judged):
    lines = []
    for step, verdict, _, stored in judged:
        if stored is not None and verdict != OUTDATED:
            # Its headings go below those here.
            lines += ['', re.sub('^#', '##', stored.get('text', ''),
                                 flags=re.MULTILINE)]
    return lines


def unused(proof, judged):
    # One for a step that was not done may fit yet.
    found = [one for one in proof.explanations if not one.used and all(
        verdict not in (*NO_RESULT, NOT_RUN)
        for step, verdict, _, _ in judged
        if fnmatch.fnmatchcase(step.name, one.step))]
    lines = ['', '## Explanations that fit nothing', ''] if found else []
    return lines + [f'- {code(one.step)}: {code(one.test)}: {one.reason}'
                    for one in found]


def summary(proof):
    for explanation in proof.explanations:
        explanation.used = False
    judged = [(step, *proof.judge(step), proof.load(step))
              for step in proof.steps]
    lines = [line for part in (head, tables, details, unused, texts)
             for line in part(proof, judged)]
    text = re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)) + '\n'
    return text.replace(f'{ROOT}/', '')


def results_to_keep(proof):
    found = [proof.load(step) for step in proof.steps]
    return json.dumps([one for one in found
                       if one is not None and one['source'] is not None],
                      indent=1) + '\n'


def interrupt(number, frame):
    raise KeyboardInterrupt(number)


def main():
    what = sys.argv[1]
    PROOF.mkdir(parents=True, exist_ok=True)
    try:
        steps = proof_steps.all_steps()
        if what == 'list':
            for step in select(steps):
                print(f'{step.group:13} {step.name:38} {step.title}')
            return 0
        proof = Proof(steps)
        if what == 'summary':
            text = summary(proof)
            write(SUMMARY, text)
            # The logs are here alone.
            write(RESULT, re.sub(r'see build/proof/log/\S+', '', text))
            write(KEPT, results_to_keep(proof))
            print('PROOF.md and scripts/proof-results.json are written')
            return 0
        return run_all(proof)
    except Failed as error:
        die(f'{error}.')


if __name__ == '__main__':
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt as interrupted:
        print('\nerror: interrupted; make proof goes on with the step that '
              'was not finished.', file=sys.stderr)
        sys.exit(128 + interrupted.args[0])
