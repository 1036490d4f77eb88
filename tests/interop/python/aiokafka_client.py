"""aiokafka."""

import asyncio

import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError, ProducerFenced

from scenarios import CODECS, run, same, unique


async def send(address, topic, values, **settings):
    async with AIOKafkaProducer(bootstrap_servers=address, **settings) as to:
        for sent in [await to.send(topic, value) for value in values]:
            await sent


def consumer(address, group, *topics, **settings):
    return AIOKafkaConsumer(
        *topics, bootstrap_servers=address, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False, **settings
    )


async def read(of, count, seconds=60):
    async def all_there():
        records = []
        while len(records) < count:
            for of_partition in (await of.getmany(timeout_ms=500)).values():
                records.extend(of_partition)
        return records

    return await asyncio.wait_for(all_there(), seconds)


async def produce_consume(address):
    topic, values = unique("t"), [str(n).encode() for n in range(1000)]
    await send(address, topic, values)
    async with consumer(address, unique("g"), topic) as reader:
        same([record.value for record in await read(reader, 1000)], values)


async def codecs(address):
    for codec in CODECS:
        topic, values = unique(codec), [f"{codec} {n} {'x' * 200}".encode() for n in range(200)]
        await send(address, topic, values, compression_type=None if codec == "none" else codec)
        async with consumer(address, unique("g"), topic) as reader:
            same([record.value for record in await read(reader, 200)], values)


async def nulls_headers(address):
    topic = unique("t")
    async with AIOKafkaProducer(bootstrap_servers=address) as to:
        await to.send_and_wait(topic, value=None, key=b"k", headers=[("a", b"1"), ("b", b"")])
    async with consumer(address, unique("g"), topic) as reader:
        (record,) = await read(reader, 1)
        same((record.key, record.value, list(record.headers)), (b"k", None, [("a", b"1"), ("b", b"")]))


async def group(address):
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    for assignor in (RangePartitionAssignor, StickyPartitionAssignor):
        topic, group = unique("t"), unique("g")
        await client.create_topics([NewTopic(topic, num_partitions=4, replication_factor=1)])
        settings = {"partition_assignment_strategy": [assignor], "session_timeout_ms": 6000, "heartbeat_interval_ms": 500}
        first, second = consumer(address, group, topic, **settings), consumer(address, group, topic, **settings)
        await first.start()
        await second.start()
        await counted([first, second], [2, 2])
        await first.stop()
        await counted([second], [4])
        await second.stop()
    await client.close()


async def counted(members, counts):
    """Waits until the members have as many partitions."""
    async def shared():
        while [len(member.assignment()) for member in members] != counts:
            await asyncio.sleep(0.05)

    await asyncio.wait_for(shared(), 60)


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
    topic, group = unique("t"), unique("g")
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    await client.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1)])
    same(topic in await client.list_topics(), True)
    await client.create_partitions({topic: NewPartitions(3)})
    same(len((await client.describe_topics([topic]))[0]["partitions"]), 3)
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": "3600000"})
    await client.alter_configs([resource])
    (described,) = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": None})])
    same(described.resources[0][4][0][:2], ("retention.ms", "3600000"))
    same(len((await client.describe_cluster())["brokers"]), 1)
    async with AIOKafkaProducer(bootstrap_servers=address) as to:
        await to.send_and_wait(topic, b"a", partition=0)
    async with consumer(address, group, topic) as reader:
        await read(reader, 1)
        await reader.commit()
        same(len((await client.describe_consumer_groups([group]))[0].groups[0][5]), 1)
    same(group in [name for name, _ in await client.list_consumer_groups()], True)
    same((await client.list_consumer_group_offsets(group))[TopicPartition(topic, 0)].offset, 1)
    await client.delete_topics([topic])
    same(topic in await client.list_topics(), False)
    await client.close()


async def transactions(address):
    topic, copy, group = unique("t"), unique("copy"), unique("g")
    await send(address, topic, [str(n).encode() for n in range(10)])
    async with AIOKafkaProducer(bootstrap_servers=address, transactional_id=unique("tx")) as to:
        for n in range(3):
            try:
                async with to.transaction():
                    for m in range(10):
                        await to.send(copy, f"{n}-{m}".encode())
                    if n == 1:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
        async with consumer(address, unique("g"), copy, isolation_level="read_committed") as reader:
            same([record.value.decode() for record in await read(reader, 20)], [f"{n}-{m}" for n in (0, 2) for m in range(10)])
        # Consume, transform, produce.
        partition = TopicPartition(topic, 0)
        async with consumer(address, group, topic) as reader:
            await read(reader, 10)
            async with to.transaction():
                await to.send(copy, b"done")
                await to.send_offsets_to_transaction({partition: 10}, group)
            same(await reader.committed(partition), 10)
    # A producer with the same id fences this one.
    older, newer = [AIOKafkaProducer(bootstrap_servers=address, transactional_id="fence") for _ in range(2)]
    await older.start()
    await newer.start()
    await older.begin_transaction()
    try:
        await older.send_and_wait(copy, b"zombie")
        await older.commit_transaction()
        raise AssertionError("the old producer is not fenced")
    except ProducerFenced:
        pass
    await newer.stop()


async def large(address):
    topic, value = unique("t"), b"x" * 900_000
    await send(address, topic, [value] * 10)
    async with consumer(address, unique("g"), topic, max_partition_fetch_bytes=100_000) as reader:
        same([len(record.value) for record in await read(reader, 10)], [900_000] * 10)


async def many_topics(address):
    names = [unique("many") for _ in range(100)]
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    await client.create_topics([NewTopic(name, num_partitions=1, replication_factor=1) for name in names])
    await client.close()
    async with AIOKafkaProducer(bootstrap_servers=address) as to:
        for sent in [await to.send(name, name.encode()) for name in names]:
            await sent
    async with consumer(address, unique("g"), *names) as reader:
        same(sorted(record.value.decode() for record in await read(reader, 100)), sorted(names))


async def kill(address):
    """The server is killed, or the connections are cut, again and again meanwhile."""
    topic, count = unique("t"), 4000
    async with AIOKafkaProducer(bootstrap_servers=address, enable_idempotence=True, linger_ms=5) as to:
        sent = []
        for n in range(count):
            sent.append(await to.send(topic, str(n).encode()))
            await asyncio.sleep(0.002)
        for one in sent:
            await one
    async with consumer(address, unique("g"), topic, session_timeout_ms=6000) as reader:
        same([record.value.decode() for record in await read(reader, count, 120)], [str(n) for n in range(count)])


async def kill_transactions(address):
    """The server is killed again and again while records are copied exactly once."""
    topic, copy, group, count = unique("t"), unique("copy"), unique("g"), 1000
    await send(address, topic, [str(n).encode() for n in range(count)])
    partition = TopicPartition(topic, 0)
    writer, limit, done = None, time.time() + 150, 0
    # Assigned by hand: this client does not wait for an open transaction when it asks for the group's offsets (KIP-447), so a
    # member that joins again while its transaction is open reads from the offsets of before.
    reader = consumer(address, group)
    reader.assign([partition])
    await reader.start()
    while done < count:
        if time.time() > limit:
            raise AssertionError(f"{done} of {count} records are copied")
        try:
            if writer is None:
                writer = AIOKafkaProducer(bootstrap_servers=address, transactional_id=group, transaction_timeout_ms=20_000)
                await writer.start()
                # Read again from what is committed.
                reader.seek(partition, await reader.committed(partition) or 0)
            records = (await reader.getmany(timeout_ms=500, max_records=10)).get(partition)
            if not records:
                continue
            async with writer.transaction():
                for record in records:
                    await writer.send(copy, record.value)
                await writer.send_offsets_to_transaction({partition: records[-1].offset + 1}, group)
            done = records[-1].offset + 1
            await asyncio.sleep(0.1)
        except KafkaError as error:
            print(repr(error))
            # The next one has the same id, and fences it.
            writer = None
    async with consumer(address, unique("g"), copy, isolation_level="read_committed") as copied:
        same([record.value.decode() for record in await read(copied, count)], [str(n) for n in range(count)])


def sync(scenario):
    return lambda address: asyncio.run(scenario(address))


run({
    "produce-consume": sync(produce_consume), "codecs": sync(codecs), "nulls-headers": sync(nulls_headers), "group": sync(group),
    "commit-resume": sync(commit_resume), "seek-time": sync(seek_time), "admin": sync(admin), "transactions": sync(transactions),
    "large": sync(large), "many-topics": sync(many_topics), "kill": sync(kill), "disconnects": sync(kill),
    "kill-transactions": sync(kill_transactions),
})
