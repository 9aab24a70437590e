"""logging: records through a tree of loggers, filters and formatters."""

import io
import logging


class Odd(logging.Filter):
    def filter(self, record):
        return record.args[0] % 2 == 1


def configure(stream):
    root = logging.Logger('root', logging.DEBUG)
    manager = logging.Manager(root)
    formatter = logging.Formatter(
        '%(levelname)-8s %(name)s:%(funcName)s:%(lineno)d %(message)s')
    everything = logging.StreamHandler(stream)
    everything.setFormatter(formatter)
    odd = logging.StreamHandler(stream)
    odd.setFormatter(logging.Formatter('{name}: {message}', style='{'))
    odd.addFilter(Odd())
    root.addHandler(everything)
    manager.getLogger('app.db').addHandler(odd)
    manager.getLogger('app.quiet').setLevel(logging.ERROR)
    return manager


def main(n):
    stream = io.StringIO()
    manager = configure(stream)
    names = ['app', 'app.db', 'app.db.pool', 'app.quiet', 'web']
    loggers = [manager.getLogger(name) for name in names]
    for number in range(12 * n):
        for logger in loggers:
            logger.info('number %d of %s', number, {'name': logger.name})
        try:
            number / 0
        except ZeroDivisionError:
            loggers[0].exception('failed at %d', number)
    return stream, loggers
