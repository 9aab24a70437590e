"""orjson: records to text and back, and what it refuses."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import datetime

import orjson


def main(n):
    records = [{'id': i, 'name': f'name {i}', 'price': i / 7,
                'day': datetime.date(2024, 1, i % 28 + 1),
                'nested': [{'flag': not i % 2, 'nothing': None}] * 3}
               for i in range(300 * n)]
    text = orjson.dumps(records, option=orjson.OPT_INDENT_2)
    loaded = orjson.loads(text)
    other = orjson.dumps([{1, 2, i} for i in range(50)], default=sorted)
    messages = []
    for wrong in b'[1,', b'{"a" 1}', b'\xff':
        try:
            orjson.loads(wrong)
        except orjson.JSONDecodeError as error:
            messages.append(error.msg)
    return records, text, loaded, other, messages
