"""aiokafka."""

import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from scenarios import run, same, unique


async def send(address, topic, values, **settings):
    async with AIOKafkaProducer(bootstrap_servers=address, **settings) as to:
        for sent in [await to.send(topic, value) for value in values]:
            await sent


def consumer(address, group, *topics, **settings):
    return AIOKafkaConsumer(
        *topics, bootstrap_servers=address, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False, **settings
    )


async def read(of, count):
    async def all_there():
        records = []
        while len(records) < count:
            for of_partition in (await of.getmany(timeout_ms=500)).values():
                records.extend(of_partition)
        return records

    return await asyncio.wait_for(all_there(), 60)


async def produce_consume(address):
    topic, values = unique("t"), [str(n).encode() for n in range(1000)]
    await send(address, topic, values)
    async with consumer(address, unique("g"), topic) as reader:
        same([record.value for record in await read(reader, 1000)], values)


async def codecs(address):
    for codec in (None, "gzip"):
        topic, values = unique("t"), [f"{codec} {n} {'x' * 200}".encode() for n in range(200)]
        await send(address, topic, values, compression_type=codec)
        async with consumer(address, unique("g"), topic) as reader:
            same([record.value for record in await read(reader, 200)], values)


async def nulls_headers(address):
    topic = unique("t")
    async with AIOKafkaProducer(bootstrap_servers=address) as to:
        await to.send_and_wait(topic, value=None, key=b"k", headers=[("a", b"1"), ("b", b"")])
    async with consumer(address, unique("g"), topic) as reader:
        (record,) = await read(reader, 1)
        same((record.key, record.value, list(record.headers)), (b"k", None, [("a", b"1"), ("b", b"")]))


async def commit_resume(address):
    topic, group = unique("t"), unique("g")
    await send(address, topic, [str(n).encode() for n in range(10)])
    partition = TopicPartition(topic, 0)
    async with consumer(address, group, topic) as reader:
        await read(reader, 10)
        await reader.commit({partition: 4})
    async with consumer(address, group, topic) as reader:
        same([record.offset for record in await read(reader, 6)], list(range(4, 10)))


async def seek_time(address):
    topic = unique("t")
    async with AIOKafkaProducer(bootstrap_servers=address) as to:
        for n in range(10):
            await to.send_and_wait(topic, str(n).encode(), timestamp_ms=1_700_000_000_000 + n * 1000)
    partition = TopicPartition(topic, 0)
    async with consumer(address, None) as reader:
        reader.assign([partition])
        same((await reader.offsets_for_times({partition: 1_700_000_003_500}))[partition].offset, 4)


async def admin(address):
    topic = unique("t")
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    await client.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1)])
    same(topic in await client.list_topics(), True)
    await client.delete_topics([topic])
    await client.close()


async def transactions(address):
    topic = unique("t")
    async with AIOKafkaProducer(bootstrap_servers=address, transactional_id=unique("tx")) as to:
        async with to.transaction():
            await to.send(topic, b"committed")
        try:
            async with to.transaction():
                await to.send(topic, b"aborted")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        async with to.transaction():
            await to.send(topic, b"committed too")
    async with consumer(address, unique("g"), topic, isolation_level="read_committed") as reader:
        same([record.value for record in await read(reader, 2)], [b"committed", b"committed too"])


def sync(scenario):
    return lambda address: asyncio.run(scenario(address))


run({
    "produce-consume": sync(produce_consume), "codecs": sync(codecs), "nulls-headers": sync(nulls_headers),
    "commit-resume": sync(commit_resume), "seek-time": sync(seek_time), "admin": sync(admin),
    "transactions": sync(transactions),
})
