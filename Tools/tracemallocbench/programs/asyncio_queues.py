"""asyncio: producers and consumers, queues, locks, timeouts and gather."""

import asyncio


async def produce(queue, numbers):
    for number in numbers:
        await queue.put({'number': number, 'text': str(number)})
    await queue.put(None)


async def consume(queue, lock, results):
    while (item := await queue.get()) is not None:
        async with lock:
            results.append(item)
        if item['number'] % 8 == 0:
            await asyncio.sleep(0)


async def quick(number):
    await asyncio.sleep(0)
    return [number]


async def pipelines(n):
    results = []
    lock = asyncio.Lock()
    async with asyncio.TaskGroup() as group:
        for start in range(4):
            queue = asyncio.Queue(maxsize=5)
            numbers = range(start, 300 * n, 4)
            group.create_task(produce(queue, numbers))
            group.create_task(consume(queue, lock, results))
    gathered = await asyncio.gather(*(quick(i) for i in range(100 * n)))
    for number in range(20 * n):
        async with asyncio.timeout(60):
            gathered.append(await quick(number))
    return results, gathered


def main(n):
    return asyncio.run(pipelines(n))
