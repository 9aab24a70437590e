"""json: nested records to text and back, compact and indented."""

import json


def record(number):
    return {
        'id': number,
        'name': f'record {number}',
        'price': number / 7,
        'tags': ['tag%d' % (number % k) for k in range(2, 7)],
        'nested': {'flag': number % 2 == 0, 'nothing': None,
                   'matrix': [[number, i] for i in range(4)]},
    }


def main(n):
    records = [record(number) for number in range(160 * n)]
    text = json.dumps(records)
    loaded = json.loads(text)
    # The indenting encoder is the one written in Python.
    pretty = json.dumps(loaded[:48 * n], indent=2, sort_keys=True)
    upper = json.loads(pretty, object_hook=dict,
                       parse_float=lambda text: text.upper())
    return text, loaded, upper
