"""confluent-kafka, which is librdkafka."""

import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic

from scenarios import CODECS, run, same, unique, until


def producer(address, **settings):
    return Producer({"bootstrap.servers": address, **{key.replace("_", "."): value for key, value in settings.items()}})


def consumer(address, group, **settings):
    conf = {"bootstrap.servers": address, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    return Consumer({**conf, **{key.replace("_", "."): value for key, value in settings.items()}})


def send(to, topic, values, **fields):
    failed = []
    for value in values:
        to.produce(topic, value=value, on_delivery=lambda error, _: failed.append(error) if error else None, **fields)
        to.poll(0)
    same((to.flush(60), failed), (0, []))


def read(of, count, seconds=60):
    """Reads as many records."""
    records = []

    def all_there():
        for record in of.consume(500, 0.2):
            if record.error():
                raise KafkaException(record.error())
            records.append(record)
        return len(records) >= count

    until(f"{count} records", all_there, seconds)
    return records


def produce_consume(address):
    topic = unique("t")
    send(producer(address), topic, [str(n) for n in range(1000)])
    reader = consumer(address, unique("g"))
    reader.subscribe([topic])
    same([record.value().decode() for record in read(reader, 1000)], [str(n) for n in range(1000)])
    reader.close()


def codecs(address):
    for codec in CODECS:
        topic = unique(codec)
        values = [f"{codec} {n} {'x' * 200}" for n in range(200)]
        send(producer(address, compression_type=codec), topic, values)
        reader = consumer(address, unique("g"), check_crcs=True)
        reader.subscribe([topic])
        same([record.value().decode() for record in read(reader, 200)], values)
        reader.close()


def nulls_headers(address):
    topic = unique("t")
    to = producer(address)
    to.produce(topic, key=None, value=None, headers=[("a", b"1"), ("a", None), ("b", b"")])
    to.produce(topic, key=b"", value=b"")
    to.produce(topic, key=b"k", value=b"v", timestamp=1234567890123)
    same(to.flush(60), 0)
    reader = consumer(address, unique("g"))
    reader.subscribe([topic])
    first, second, third = read(reader, 3)
    same((first.key(), first.value(), first.headers()), (None, None, [("a", b"1"), ("a", None), ("b", b"")]))
    same((second.key(), second.value(), third.timestamp()[1]), (b"", b"", 1234567890123))
    reader.close()


def groups_of(address, **settings):
    topic, group = unique("t"), unique("g")
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(topic, 4, 1)])[topic].result()
    first, second = consumer(address, group, **settings), consumer(address, group, **settings)
    first.subscribe([topic])
    until("the first member has all", lambda: first.poll(0.1) or len(first.assignment()) == 4)
    second.subscribe([topic])

    def shared():
        first.poll(0.1)
        second.poll(0.1)
        return (len(first.assignment()), len(second.assignment())) == (2, 2)

    until("both members have two", shared)
    first.close()
    until("the second member has all", lambda: second.poll(0.1) or len(second.assignment()) == 4)
    second.close()


def group(address):
    groups_of(address, partition_assignment_strategy="range", session_timeout_ms=6000)
    groups_of(address, partition_assignment_strategy="cooperative-sticky", session_timeout_ms=6000)


def consumer_protocol(address):
    groups_of(address, group_protocol="consumer")


def commit_resume(address):
    topic, group = unique("t"), unique("g")
    send(producer(address), topic, [str(n) for n in range(10)])
    reader = consumer(address, group)
    reader.subscribe([topic])
    read(reader, 10)
    reader.commit(offsets=[TopicPartition(topic, 0, 4, "note")], asynchronous=False)
    stored = reader.committed([TopicPartition(topic, 0)])[0]
    same((stored.offset, stored.metadata), (4, "note"))
    reader.close()
    reader = consumer(address, group)
    reader.subscribe([topic])
    same([record.offset() for record in read(reader, 6)], list(range(4, 10)))
    reader.close()


def seek_time(address):
    topic = unique("t")
    to = producer(address)
    for n in range(10):
        to.produce(topic, value=str(n), timestamp=1_700_000_000_000 + n * 1000)
    same(to.flush(60), 0)
    reader = consumer(address, unique("g"))
    found = reader.offsets_for_times([TopicPartition(topic, 0, 1_700_000_003_500)], timeout=30)[0]
    same(found.offset, 4)
    same(reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=30), (0, 10))
    reader.assign([found])
    same(read(reader, 6)[0].value(), b"4")
    reader.close()


def admin(address):
    topic = unique("t")
    client = AdminClient({"bootstrap.servers": address})
    client.create_topics([NewTopic(topic, 2, 1, config={"retention.ms": "3600000"})])[topic].result()
    client.create_partitions([NewPartitions(topic, 3)])[topic].result()
    same(len(client.list_topics(topic, timeout=30).topics[topic].partitions), 3)
    resource = ConfigResource("topic", topic)
    same(client.describe_configs([resource])[resource].result()["retention.ms"].value, "3600000")
    same(len(client.describe_cluster().result().nodes), 1)
    send(producer(address), topic, ["a"], partition=0)
    group = unique("g")
    reader = consumer(address, group)
    reader.subscribe([topic])
    read(reader, 1)
    reader.commit(asynchronous=False)
    described = client.describe_consumer_groups([group])[group].result()
    same(len(described.members), 1)
    reader.close()
    same(group in [one.group_id for one in client.list_consumer_groups().result().valid], True)
    client.delete_consumer_groups([group])[group].result()
    client.delete_records([TopicPartition(topic, 0, 1)])
    client.delete_topics([topic])[topic].result()
    until("the topic is gone", lambda: topic not in client.list_topics(timeout=30).topics)


def transactions(address):
    topic, copy, group = unique("t"), unique("copy"), unique("g")
    send(producer(address), topic, [str(n) for n in range(10)])
    to = producer(address, transactional_id=unique("tx"))
    to.init_transactions()
    for n, end in enumerate([to.commit_transaction, to.abort_transaction, to.commit_transaction]):
        to.begin_transaction()
        for m in range(10):
            to.produce(copy, value=f"{n}-{m}")
        end()
    reader = consumer(address, unique("g"))
    reader.subscribe([copy])
    same([record.value().decode() for record in read(reader, 20)], [f"{n}-{m}" for n in (0, 2) for m in range(10)])
    reader.close()
    # Consume, transform, produce.
    reader = consumer(address, group)
    reader.subscribe([topic])
    read(reader, 10)
    to.begin_transaction()
    to.produce(copy, value="done")
    to.send_offsets_to_transaction([TopicPartition(topic, 0, 10)], reader.consumer_group_metadata())
    to.commit_transaction()
    same(reader.committed([TopicPartition(topic, 0)])[0].offset, 10)
    # A producer with the same id fences this one.
    other = producer(address, transactional_id="fence")
    other.init_transactions()
    newer = producer(address, transactional_id="fence")
    newer.init_transactions()
    other.begin_transaction()
    other.produce(copy, value="zombie")
    try:
        other.commit_transaction()
        raise AssertionError("the old producer is not fenced")
    except KafkaException as error:
        same(error.args[0].fatal(), True)
    reader.close()


def large(address):
    topic = unique("t")
    value = "x" * 900_000
    send(producer(address, message_max_bytes=1_000_000), topic, [value] * 20)
    reader = consumer(address, unique("g"), fetch_message_max_bytes=100_000)
    reader.subscribe([topic])
    same([len(record.value()) for record in read(reader, 20)], [900_000] * 20)
    reader.close()


def many_topics(address):
    names = [unique("many") for _ in range(100)]
    client = AdminClient({"bootstrap.servers": address})
    for created in client.create_topics([NewTopic(name, 1, 1) for name in names]).values():
        created.result()
    to = producer(address)
    for name in names:
        to.produce(name, value=name)
    same(to.flush(60), 0)
    reader = consumer(address, unique("g"))
    reader.subscribe(names)
    same(sorted(record.value().decode() for record in read(reader, 100)), sorted(names))
    reader.close()


def compacted(address):
    """Records that were replaced are gone after a while, and readers pass the holes that they leave."""
    topic, rounds = unique("t"), 40
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(topic, 1, 1, config={"cleanup.policy": "compact"})])[topic].result()
    to = producer(address)
    for n in range(rounds):
        for key in range(100):
            to.produce(topic, key=str(key), value=f"{n} {'x' * 1000}")
        same(to.flush(60), 0)

    def read_all():
        reader = consumer(address, unique("g"), enable_partition_eof=True)
        reader.assign([TopicPartition(topic, 0, 0)])
        records = []
        while not (records and records[-1].error()):
            records.extend(reader.consume(500, 5))
        reader.close()
        return records[:-1]

    until("records are compacted", lambda: len(read_all()) < rounds * 100 // 2)
    records = read_all()
    offsets = [record.offset() for record in records]
    same(offsets, sorted(set(offsets)))
    last = {record.key(): record.value().split()[0] for record in records}
    same(last, {str(key).encode(): str(rounds - 1).encode() for key in range(100)})


def kill(address):
    """The server is killed again and again meanwhile."""
    topic, count = unique("t"), 4000
    to = producer(address, enable_idempotence=True, message_timeout_ms=120_000, linger_ms=5)
    failed = []
    for n in range(count):
        to.produce(topic, value=str(n), partition=0 if n else -1, on_delivery=lambda error, _: failed.append(error) if error else None)
        to.poll(0.002)
    same((to.flush(120), failed), (0, []))
    reader = consumer(address, unique("g"), session_timeout_ms=6000)
    reader.subscribe([topic])
    values = []

    def all_there():
        for record in reader.consume(500, 0.2):
            if not record.error():
                values.append(record.value().decode())
        return len(values) >= count

    until(f"{count} records", all_there, 120)
    same(values, [str(n) for n in range(count)])


def kill_consumer_protocol(address):
    kill_transactions(address, group_protocol="consumer")


def kill_transactions(address, **group_settings):
    """The server is killed again and again while records are copied exactly once."""
    topic, copy, group, count = unique("t"), unique("copy"), unique("g"), 1000
    to = producer(address, enable_idempotence=True, message_timeout_ms=120_000)
    for n in range(count):
        to.produce(topic, value=str(n))
    same(to.flush(120), 0)
    # By default, librdkafka waits for up to ten seconds until it connects again, so a short session would end meanwhile.
    reader = consumer(address, group, reconnect_backoff_max_ms=1000, **group_settings)
    reader.subscribe([topic])
    settings = {"transaction_timeout_ms": 20_000, "message_timeout_ms": 19_000, "reconnect_backoff_max_ms": 1000}
    writer = producer(address, transactional_id=unique("tx"), **settings)
    retried(writer.init_transactions)
    limit, done = time.time() + 150, 0
    while done < count:
        if time.time() > limit:
            raise AssertionError(f"{done} of {count} records are copied")
        records = [record for record in reader.consume(10, 0.5) if not record.error()]
        if not records:
            continue
        try:
            writer.begin_transaction()
            for record in records:
                writer.produce(copy, value=record.value())
            next_offset = TopicPartition(topic, 0, records[-1].offset() + 1)
            writer.send_offsets_to_transaction([next_offset], reader.consumer_group_metadata(), 10)
            retried(writer.commit_transaction)
            done = records[-1].offset() + 1
            time.sleep(0.05)
        except KafkaException as error:
            if error.args[0].fatal():
                writer = producer(address, transactional_id=unique("tx"), **settings)
                retried(writer.init_transactions)
            else:
                retried(writer.abort_transaction)
            # Read again from what is committed.
            retried(lambda: rewind(reader, topic))
    copied = consumer(address, unique("g"), isolation_level="read_committed")
    copied.subscribe([copy])
    values = []

    def all_there():
        values.extend(record.value().decode() for record in copied.consume(500, 0.2) if not record.error())
        return len(values) >= count

    until(f"{count} copies", all_there, 60)
    same(values, [str(n) for n in range(count)])


def rewind(reader, topic):
    stored = reader.committed([TopicPartition(topic, 0)], timeout=5)[0]
    reader.seek(TopicPartition(topic, 0, max(stored.offset, 0)))


def retried(call):
    limit = time.time() + 60
    while True:
        try:
            return call()
        except KafkaException as error:
            if not error.args[0].retriable() and error.args[0].code() not in (-185, -195, -187, -172) or time.time() > limit:
                raise
            time.sleep(0.2)


run({
    "produce-consume": produce_consume, "codecs": codecs, "nulls-headers": nulls_headers, "group": group,
    "consumer-protocol": consumer_protocol, "commit-resume": commit_resume, "seek-time": seek_time, "admin": admin,
    "transactions": transactions, "large": large, "many-topics": many_topics, "kill": kill,
    "disconnects": kill, "compacted": compacted,
    "kill-transactions": kill_transactions, "kill-consumer-protocol": kill_consumer_protocol,
})
