"""sqlite3: a database in memory, Python functions inside of queries."""

import sqlite3


class Longest:
    """Aggregate: the longest text."""

    def __init__(self):
        self.text = ''

    def step(self, text):
        if len(text) > len(self.text):
            self.text = text

    def finalize(self):
        return self.text


def as_dict(cursor, row):
    return {column[0]: value
            for column, value in zip(cursor.description, row)}


def fill(db, count):
    db.execute('create table orders (id integer primary key,'
               ' customer text, amount real, note text)')
    db.executemany(
        'insert into orders (customer, amount, note) values (?, ?, ?)',
        ((f'customer {i % 17}', i / 3, 'x' * (i % 40))
         for i in range(count)))


def main(n):
    db = sqlite3.connect(':memory:')
    db.create_function('initials', 1, lambda text: text[:2].upper())
    db.create_aggregate('longest', 1, Longest)
    fill(db, 400 * n)
    groups = db.execute('select initials(customer), customer, sum(amount),'
                        ' longest(note) from orders group by customer')
    kept = groups.fetchall()
    db.row_factory = as_dict
    kept += db.execute('select * from orders order by amount desc')
    db.row_factory = sqlite3.Row
    for row in db.execute('select id, note from orders where amount > 50'):
        kept.append((row['id'], row['note'].encode()))
    db.close()
    return kept
