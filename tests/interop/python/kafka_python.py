"""kafka-python."""

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from scenarios import CODECS, run, same, unique, until


def consumer(address, group, *topics, **settings):
    return KafkaConsumer(
        *topics, bootstrap_servers=address, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False, **settings
    )


def send(address, topic, values, **settings):
    to = KafkaProducer(bootstrap_servers=address, **settings)
    sent = [to.send(topic, value) for value in values]
    to.flush(60)
    for one in sent:
        one.get(60)
    to.close()


def read(of, count):
    records = []

    def all_there():
        for of_partition in of.poll(200).values():
            records.extend(of_partition)
        return len(records) >= count

    until(f"{count} records", all_there)
    return records


def produce_consume(address):
    topic, values = unique("t"), [str(n).encode() for n in range(1000)]
    send(address, topic, values)
    reader = consumer(address, unique("g"), topic)
    same([record.value for record in read(reader, 1000)], values)
    reader.close()


def codecs(address):
    for codec in CODECS:
        if codec in ("snappy", "lz4", "zstd"):
            # These need further packages.
            continue
        topic, values = unique(codec), [f"{codec} {n} {'x' * 200}".encode() for n in range(200)]
        send(address, topic, values, compression_type=None if codec == "none" else codec)
        reader = consumer(address, unique("g"), topic)
        same([record.value for record in read(reader, 200)], values)
        reader.close()


def nulls_headers(address):
    topic = unique("t")
    to = KafkaProducer(bootstrap_servers=address)
    to.send(topic, key=b"", value=None, headers=[("a", b"1"), ("b", b"")]).get(60)
    to.send(topic, key=b"k", value=b"v", timestamp_ms=1234567890123).get(60)
    to.close()
    reader = consumer(address, unique("g"), topic)
    first, second = read(reader, 2)
    same((first.key, first.value, [tuple(header) for header in first.headers]), (b"", None, [("a", b"1"), ("b", b"")]))
    same((second.key, second.timestamp), (b"k", 1234567890123))
    reader.close()


def group(address):
    topic, group = unique("t"), unique("g")
    client = KafkaAdminClient(bootstrap_servers=address)
    client.create_topics([NewTopic(topic, num_partitions=4, replication_factor=1)])
    first, second = consumer(address, group, topic), consumer(address, group, topic)

    def shared():
        first.poll(100)
        second.poll(100)
        return (len(first.assignment()), len(second.assignment())) == (2, 2)

    until("both members have two", shared)
    first.close()
    until("the second member has all", lambda: second.poll(100) or len(second.assignment()) == 4)
    second.close()


def commit_resume(address):
    topic, group = unique("t"), unique("g")
    send(address, topic, [str(n).encode() for n in range(10)])
    reader = consumer(address, group, topic)
    records = read(reader, 10)
    partition = TopicPartition(topic, 0)
    from kafka.structs import OffsetAndMetadata
    reader.commit({partition: OffsetAndMetadata(4, "note", -1)})
    same((reader.committed(partition), len(records)), (4, 10))
    reader.close()
    reader = consumer(address, group, topic)
    same([record.offset for record in read(reader, 6)], list(range(4, 10)))
    reader.close()


def seek_time(address):
    topic, partition = unique("t"), None
    to = KafkaProducer(bootstrap_servers=address)
    for n in range(10):
        to.send(topic, str(n).encode(), timestamp_ms=1_700_000_000_000 + n * 1000)
    to.flush(60)
    to.close()
    partition = TopicPartition(topic, 0)
    reader = consumer(address, unique("g"))
    reader.assign([partition])
    same(reader.offsets_for_times({partition: 1_700_000_003_500})[partition].offset, 4)
    same((reader.beginning_offsets([partition])[partition], reader.end_offsets([partition])[partition]), (0, 10))
    reader.seek(partition, 4)
    same(read(reader, 6)[0].value, b"4")
    reader.close()


def admin(address):
    topic = unique("t")
    client = KafkaAdminClient(bootstrap_servers=address)
    client.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1)])
    same(topic in client.list_topics(), True)
    client.delete_topics([topic])
    until("the topic is gone", lambda: topic not in client.list_topics())


def large(address):
    topic, value = unique("t"), b"x" * 900_000
    send(address, topic, [value] * 10)
    reader = consumer(address, unique("g"), topic, max_partition_fetch_bytes=100_000)
    same([len(record.value) for record in read(reader, 10)], [900_000] * 10)
    reader.close()


run({
    "produce-consume": produce_consume, "codecs": codecs, "nulls-headers": nulls_headers, "group": group,
    "commit-resume": commit_resume, "seek-time": seek_time, "admin": admin, "large": large,
})
