"""Make one kind of measurement, again for each line of input.

    python measure.py KIND '{"parameter": ...}'

Prints a line of JSON for each.  This is a file of its own because stock looks
up the line of each frame in time linear in the length of its code, so that a
long module at the bottom of the stack would make all tracebacks expensive.
"""

import json
import sys

import workloads

turns = workloads.KINDS[sys.argv[1]](**json.loads(sys.argv[2]))
for _ in sys.stdin:
    print(json.dumps(next(turns)), flush=True)
