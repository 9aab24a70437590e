"""aiohttp: a server and its client in one loop."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import asyncio

from aiohttp import ClientSession, web


async def answer(request):
    data = await request.json()
    return web.json_response({'sum': sum(data), 'items': [data] * 3})


async def talk(n):
    application = web.Application()
    application.router.add_post('/sum', answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, '127.0.0.1', 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    kept = []
    async with ClientSession() as session:
        for i in range(10 * n):
            async with session.post(f'http://127.0.0.1:{port}/sum',
                                    json=list(range(i))) as response:
                kept.append(await response.json())
    await runner.cleanup()
    return kept


def main(n):
    return asyncio.run(talk(n))
