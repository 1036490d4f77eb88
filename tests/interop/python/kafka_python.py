"""kafka-python."""

import queue
import threading
import time

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import KafkaError, ProducerFencedError
from kafka.structs import OffsetAndMetadata

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


def read(of, count, seconds=60):
    records = []

    def all_there():
        for of_partition in of.poll(200).values():
            records.extend(of_partition)
        return len(records) >= count

    until(f"{count} records", all_there, seconds)
    return records


def produce_consume(address):
    topic, values = unique("t"), [str(n).encode() for n in range(1000)]
    send(address, topic, values)
    reader = consumer(address, unique("g"), topic)
    same([record.value for record in read(reader, 1000)], values)
    reader.close()


def codecs(address):
    for codec in CODECS:
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


class Member(threading.Thread):
    """A member of a group, with a thread of its own. An answer to a join that comes between two calls of `poll` is lost to the
    client, so these calls follow one another at once."""

    def __init__(self, *of, **settings):
        super().__init__(daemon=True)
        self.consumer, self.left = consumer(*of, **settings), threading.Event()
        self.start()

    def run(self):
        while not self.left.is_set():
            self.consumer.poll(1000)
        self.consumer.close()

    def count(self):
        return len(self.consumer.assignment())

    def leave(self):
        self.left.set()
        self.join(60)


def group(address):
    client = KafkaAdminClient(bootstrap_servers=address)
    for assignor in (RangePartitionAssignor, CooperativeStickyAssignor):
        topic, group = unique("t"), unique("g")
        client.create_topics([NewTopic(topic, num_partitions=4, replication_factor=1)])
        settings = {"partition_assignment_strategy": [assignor], "session_timeout_ms": 6000, "heartbeat_interval_ms": 500}
        first, second = [Member(address, group, topic, **settings) for _ in range(2)]
        until("both members have two", lambda: (first.count(), second.count()) == (2, 2))
        first.leave()
        until("the second member has all", lambda: second.count() == 4)
        second.leave()


def commit_resume(address):
    topic, group = unique("t"), unique("g")
    send(address, topic, [str(n).encode() for n in range(10)])
    reader = consumer(address, group, topic)
    records = read(reader, 10)
    partition = TopicPartition(topic, 0)
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


def transactions(address):
    topic, copy, group = unique("t"), unique("copy"), unique("g")
    send(address, topic, [str(n).encode() for n in range(10)])
    to = KafkaProducer(bootstrap_servers=address, transactional_id=unique("tx"))
    to.init_transactions()
    for n, end in enumerate([to.commit_transaction, to.abort_transaction, to.commit_transaction]):
        to.begin_transaction()
        for m in range(10):
            to.send(copy, f"{n}-{m}".encode())
        end()
    reader = consumer(address, unique("g"), copy, isolation_level="read_committed")
    same([record.value.decode() for record in read(reader, 20)], [f"{n}-{m}" for n in (0, 2) for m in range(10)])
    reader.close()
    # Consume, transform, produce.
    reader, partition = consumer(address, group, topic), TopicPartition(topic, 0)
    read(reader, 10)
    to.begin_transaction()
    to.send(copy, b"done")
    to.send_offsets_to_transaction({partition: OffsetAndMetadata(10, "", -1)}, reader.group_metadata())
    to.commit_transaction()
    same(reader.committed(partition), 10)
    reader.close()
    to.close()
    # A producer with the same id fences this one.
    older, newer = [KafkaProducer(bootstrap_servers=address, transactional_id="fence") for _ in range(2)]
    older.init_transactions()
    newer.init_transactions()
    older.begin_transaction()
    try:
        older.send(copy, b"zombie").get(60)
        older.commit_transaction()
        raise AssertionError("the old producer is not fenced")
    except ProducerFencedError:
        pass


def large(address):
    topic, value = unique("t"), b"x" * 900_000
    send(address, topic, [value] * 10)
    reader = consumer(address, unique("g"), topic, max_partition_fetch_bytes=100_000)
    same([len(record.value) for record in read(reader, 10)], [900_000] * 10)
    reader.close()


def many_topics(address):
    names = [unique("many") for _ in range(100)]
    client = KafkaAdminClient(bootstrap_servers=address)
    client.create_topics([NewTopic(name, num_partitions=1, replication_factor=1) for name in names])
    to = KafkaProducer(bootstrap_servers=address)
    sent = [to.send(name, name.encode()) for name in names]
    for one in sent:
        one.get(60)
    to.close()
    reader = consumer(address, unique("g"), *names)
    same(sorted(record.value.decode() for record in read(reader, 100)), sorted(names))
    reader.close()


def kill(address):
    """The server is killed, or the connections are cut, again and again meanwhile."""
    topic, count = unique("t"), 4000
    to = KafkaProducer(bootstrap_servers=address, enable_idempotence=True, delivery_timeout_ms=120_000, linger_ms=5)
    sent = []
    for n in range(count):
        sent.append(to.send(topic, str(n).encode()))
        time.sleep(0.002)
    for one in sent:
        one.get(120)
    reader = consumer(address, unique("g"), topic, session_timeout_ms=6000)
    same([record.value.decode() for record in read(reader, count, 120)], [str(n) for n in range(count)])


class Lost(KafkaError):
    """The client forgot a request."""


def in_time(call, *arguments):
    """Calls a method of a producer's transaction. If a connection ends in the moment in which the client looks for a node,
    it forgets the request, and the method never returns."""
    outcome = queue.SimpleQueue()

    def called():
        try:
            outcome.put((call(*arguments), None))
        except Exception as error:
            outcome.put((None, error))
    threading.Thread(target=called, daemon=True).start()
    try:
        result, error = outcome.get(timeout=10)
    except queue.Empty:
        raise Lost(call.__name__) from None
    if error:
        raise error
    return result


def kill_transactions(address):
    """The server is killed again and again while records are copied exactly once."""
    topic, copy, group, count = unique("t"), unique("copy"), unique("g"), 1000
    send(address, topic, [str(n).encode() for n in range(count)])
    # With this isolation level, the offsets of an open transaction are waited for.
    settings = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 300, "isolation_level": "read_committed"}
    reader, partition = consumer(address, group, topic, **settings), TopicPartition(topic, 0)
    writer, is_behind, limit, done = None, False, time.time() + 150, 0
    while done < count:
        if time.time() > limit:
            raise AssertionError(f"{done} of {count} records are copied")
        try:
            if writer is None:
                writer = KafkaProducer(bootstrap_servers=address, transactional_id=group, transaction_timeout_ms=20_000)
                in_time(writer.init_transactions)
            if is_behind:
                # What is committed is read again. It is known once the transaction has ended.
                if reader.assignment():
                    reader.seek(partition, reader.committed(partition) or 0)
                is_behind = False
            records = reader.poll(500, max_records=10).get(partition)
            if not records:
                continue
            writer.begin_transaction()
            for record in records:
                writer.send(copy, record.value)
            next_offset = {partition: OffsetAndMetadata(records[-1].offset + 1, "", -1)}
            in_time(writer.send_offsets_to_transaction, next_offset, reader.group_metadata())
            in_time(writer.commit_transaction)
            done = records[-1].offset + 1
            time.sleep(0.05)
        except KafkaError as error:
            print(repr(error))
            try:
                if writer is None or isinstance(error, Lost):
                    raise error
                in_time(writer.abort_transaction)
            except KafkaError:
                # The next one has the same id, and fences it.
                writer = None
            is_behind = True
    copied = consumer(address, unique("g"), copy, isolation_level="read_committed")
    same([record.value.decode() for record in read(copied, count)], [str(n) for n in range(count)])


run({
    "produce-consume": produce_consume, "codecs": codecs, "nulls-headers": nulls_headers, "group": group,
    "commit-resume": commit_resume, "seek-time": seek_time, "admin": admin, "transactions": transactions, "large": large,
    "many-topics": many_topics, "kill": kill, "disconnects": kill, "kill-transactions": kill_transactions,
})
