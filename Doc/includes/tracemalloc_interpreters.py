"""Trace four interpreters at once and check that no byte is missing."""

import gc
import io
import json
import linecache
import os
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import _interpreters


# Workloads: each returns the data to be traced.

def parse_json():
    people = [{'id': i, 'tags': [str(i), 'odd' if i % 2 else 'even']}
              for i in range(2000)]
    return json.loads(json.dumps(people))


def build_graph():
    class Node:
        def __init__(self, parent):
            self.parent = parent
            self.children = []

    nodes = [Node(None)]
    for i in range(1, 3000):
        node = Node(nodes[i // 2])
        node.parent.children.append(node)
        nodes.append(node)
    return nodes


def build_strings():
    words = [format(i, 'b') for i in range(4000)]
    text = ' '.join(words)
    return words, text, text.upper()


# Runs in each of the other interpreters.

def worker(workload, ready, go, report):
    gate = io.FileIO(go, closefd=False)
    byte = bytearray(1)
    tracemalloc.start()
    data = globals()[workload]()
    gc.collect()
    gc.disable()

    # Until measure() opens the gate, nothing is allocated or freed here, so
    # the copied traces remain true.  Even looking up an attribute may free
    # something: a name that drops out of a cache.
    get_traces, write, wait = tracemalloc._get_traces, os.write, gate.readinto
    traces = get_traces()
    write(ready, b'.')
    wait(byte)

    with open(report, 'w', encoding='utf-8') as stream:
        json.dump(summary(traces), stream)


def summary(traces):
    stats = tracemalloc.Snapshot(traces, 1).statistics('lineno')
    return {'size': sum(size for domain, size, *rest in traces),
            'count': len(traces),
            'top': [(stat.traceback[0].filename, stat.traceback[0].lineno,
                     stat.size, stat.count) for stat in stats[:3]]}


# The rest runs in the main interpreter.

SCRIPT = """
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, directory)
import tracemalloc_interpreters
tracemalloc_interpreters.worker(workload, ready, go, report)
"""


def run(interp, workload, ready, go):
    reader, writer = os.pipe()
    error = _interpreters.exec(interp, SCRIPT, shared={
        'directory': os.path.dirname(__file__),
        'workload': workload, 'ready': ready, 'go': go, 'report': writer})
    if error is not None:
        os.close(writer)
        os.write(ready, b'!')   # measure() may be waiting for it
    with open(reader, encoding='utf-8') as stream:
        return json.load(stream) if error is None else error.formatted


def measure(workloads):
    tracemalloc.start()
    data = [bytes(size) for size in range(500)]
    ready_reader, ready = os.pipe()
    go_reader, go = os.pipe()
    byte = bytearray(1)
    with (io.FileIO(ready_reader) as gate,
          ThreadPoolExecutor(len(workloads)) as pool):
        results = [pool.submit(run, interp, workload, ready, go_reader)
                   for interp, workload in workloads.items()]
        for _ in results:
            gate.readinto(byte)
        gc.collect()
        gc.disable()

        # All others stand still.  Copy the traces of this interpreter, and
        # read the sum over all interpreters at the same point.
        get_traces = tracemalloc._get_traces
        get_traced_memory = tracemalloc.get_traced_memory
        traces = get_traces()
        current, peak = get_traced_memory()
        gc.enable()
        os.write(go, b'.' * len(results))
    for fd in ready, go_reader, go:
        os.close(fd)
    return [summary(traces)] + [r.result() for r in results], current, peak


def row(text, size, count=''):
    print(f'{text:<54.54}{size:>11,}{count:>8}'.rstrip())


def main():
    workloads = {_interpreters.create('isolated'): workload for workload in
                 ('parse_json', 'build_graph', 'build_strings')}
    results, current, peak = measure(workloads)
    names = ['main interpreter']
    for interp, workload in workloads.items():
        gil = 'no'
        if sys._is_gil_enabled():
            gil = _interpreters.get_config(interp).gil
        names.append(f'interpreter {interp}, {gil} GIL, {workload}()')
        _interpreters.destroy(interp)

    total = 0
    print(f"{'':<54}{'bytes':>11}{'blocks':>8}")
    for name, result in zip(names, results):
        if isinstance(result, str):
            sys.exit(f'{name} failed: {result}')
        total += result['size']
        row(name, result['size'], result['count'])
        for filename, lineno, size, count in result['top']:
            where = 'line' if filename == __file__ else (
                os.path.basename(filename))
            line = linecache.getline(filename, lineno).strip()
            row(f'  {where:>12} {lineno:<4} {line}', size, count)
    row('sum over all traces', total)
    row('get_traced_memory(): current', current)
    row('get_traced_memory(): peak', peak)
    if total != current:
        sys.exit(f'The traces add up to {total} bytes, not to {current}.')


if __name__ == '__main__':
    main()
