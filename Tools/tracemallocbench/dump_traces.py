"""Print the traces that are alive when a program has ended.

    python dump_traces.py FRAMES PROGRAM
    python dump_traces.py FRAMES --command (-m MODULE | PROGRAM) [ARGUMENT...]

The program, a module with main(n) or a script, is loaded and run while
tracemalloc keeps FRAMES frames.  As a command it is what python would run as
__main__, and what it writes goes nowhere.  Then, for a line of input, a line
of JSON comes out: the different tracebacks, and for each different trace
[domain, size, index of its traceback, total_nframe, how many there are].
"""

import gc
import sys

import _tracemalloc
from loading import load


def run(path, frames):
    _tracemalloc.start(frames)
    module = load(path)
    kept = module.main(2) if hasattr(module, 'main') else module
    return collect(kept)


# CPython 3.13's tracemalloc keeps the filename of any code that it has seen.
# It need not: so that nothing depends on it, they are kept here.
filenames = []


def keep_filename(event, args):
    if event == 'compile':
        filenames.append(args[1])
    elif event == 'exec':
        filenames.append(args[0].co_filename)


def run_command(words, frames):
    as_module = words[0] == '-m'
    sys.argv = words[as_module:]
    # What python makes the first entry: the current folder, or the script's.
    sys.path[0] = '' if as_module else words[0].rpartition('/')[0]
    # Not the objects of this module, which a program may replace.
    sys.modules['__main__'] = type(sys)('__main__')
    sys.addaudithook(keep_filename)
    _tracemalloc.start(frames)
    import runpy
    kept, code = None, 0
    try:
        if as_module:
            kept = runpy.run_module(words[1], None, '__main__', True)
        else:
            kept = runpy.run_path(words[0], None, '__main__')
    except SystemExit as exc:
        code = exc.code
    if code:
        _tracemalloc.stop()
        raise RuntimeError(f'exit status {code}')
    return collect(kept)


def collect(kept):
    # It keeps names alive, and which ones depends on their addresses.
    sys._clear_type_cache()
    gc.collect()
    traces = _tracemalloc._get_traces()
    _tracemalloc.stop()
    del kept
    return traces


def dump(traces):
    # Not at the top: the program's own imports are to be traced.
    import json
    from collections import Counter
    indices = {}
    counts = Counter()
    for domain, size, traceback, total in traces:
        index = indices.setdefault(traceback, len(indices))
        counts[domain, size, index, total] += 1
    return json.dumps({'tracebacks': list(indices),
                       'traces': [[*key, n] for key, n in counts.items()]})


def main():
    frames = int(sys.argv[1])
    sys.stdin.readline()
    if sys.argv[2] != '--command':
        print(dump(run(sys.argv[2], frames)), flush=True)
        return

    import posix
    out = posix.dup(1)
    null = posix.open('/dev/null', posix.O_RDWR)
    for fd in 0, 1:
        posix.dup2(null, fd)
    line = dump(run_command(sys.argv[3:], frames))
    # What it did to sys.stdout is its own affair.
    with open(out, 'w', encoding='ascii') as file:
        print(line, file=file)
    # The program's exit handlers and threads have nothing to do any more.
    posix._exit(0)


main()
