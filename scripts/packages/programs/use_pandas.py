"""pandas: a table read, grouped, joined and written."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import io

import pandas


def main(n):
    text = 'name,day,price\n' + ''.join(
        f'name{i % 13},2024-01-{i % 28 + 1:02},{i / 7}\n'
        for i in range(300 * n))
    table = pandas.read_csv(io.StringIO(text), parse_dates=['day'])
    groups = table.groupby('name').price.agg(['sum', 'max'])
    joined = table.merge(groups, on='name').set_index('day').sort_index()
    return table, groups, joined, joined.to_csv(), str(groups)
