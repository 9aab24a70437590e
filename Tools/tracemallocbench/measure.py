"""Make one kind of measurement, again for each line of input.

    python measure.py KIND '{"parameter": ...}'

Prints a line of JSON for each; for the first line it only says that it has
started, as no other build may be selected before.  This is a file of its own
because stock looks up the line of each frame in time linear in the length of
its code, so that a long module at the bottom of the stack would make all
tracebacks expensive.
"""

import json
import sys
from importlib import import_module

# Only the module that is needed: what others import would stay in the heap.
kind = sys.argv[1]
module = import_module({'shape': 'shapes', 'pair': 'pairs'}.get(
    kind, 'workloads'))

turns = module.KINDS[kind](**json.loads(sys.argv[2]))
sys.stdin.readline()
print('null', flush=True)
for _ in sys.stdin:
    print(json.dumps(next(turns)), flush=True)
