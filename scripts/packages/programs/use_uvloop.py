"""uvloop: tasks, queues, timers and a connection in its loop."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import asyncio

import uvloop


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
    writer.close()


async def pass_on(source, target):
    while (one := await source.get()) is not None:
        await target.put([one, str(one)])
    await target.put(None)


async def work(n):
    server = await asyncio.start_server(echo, '127.0.0.1', 0)
    reader, writer = await asyncio.open_connection(
        *server.sockets[0].getsockname())
    kept = []
    for i in range(30 * n):
        writer.write(b'line %d\n' % i)
        kept.append(await reader.readline())
    writer.close()
    await writer.wait_closed()
    server.close()
    first, last = asyncio.Queue(), asyncio.Queue()
    task = asyncio.create_task(pass_on(first, last))
    for i in [*range(100 * n), None]:
        await first.put(i)
    kept += [await last.get() for _ in range(100 * n + 1)]
    await task
    await asyncio.sleep(0.01)
    return kept


def main(n):
    return uvloop.run(work(n))
