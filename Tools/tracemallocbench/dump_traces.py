"""Print the traces that are alive when a program has ended.

    python dump_traces.py FRAMES PROGRAM

The program, a module with main(n) or a script, is loaded and run while
tracemalloc keeps FRAMES frames.  Then, for a line of input, a line of JSON
comes out: the different tracebacks, and for each different trace [domain,
size, index of its traceback, total_nframe, how many there are].
"""

import gc
import sys

import _tracemalloc
from loading import load


def run(path, frames):
    _tracemalloc.start(frames)
    module = load(path)
    kept = module.main(2) if hasattr(module, 'main') else module
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


sys.stdin.readline()
print(dump(run(sys.argv[2], int(sys.argv[1]))), flush=True)
