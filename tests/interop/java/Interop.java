import java.io.InputStream;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ListOffsetsResult.ListOffsetsResultInfo;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.errors.TimeoutException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.header.Header;

/**
 * Kafka's own client. It is compiled with version 2.8.2, and the same classes run with newer versions. What 2.8.2 lacks
 * is done by names of settings and by reflection.
 */
public final class Interop {
    /** The exit code of a scenario that a client cannot do. */
    static final int SKIPPED = 77;

    /** The client lacks what the scenario needs. */
    static final class Skipped extends Exception {
        Skipped(String message) {
            super(message);
        }
    }

    interface Scenario {
        void run(String address) throws Exception;
    }

    interface Check {
        boolean isTrue() throws Exception;
    }

    public static void main(String[] arguments) {
        run(arguments, Map.ofEntries(
            Map.entry("produce-consume", Interop::produceConsume), Map.entry("codecs", Interop::codecs),
            Map.entry("nulls-headers", Interop::nullsHeaders), Map.entry("group", Interop::group),
            Map.entry("consumer-protocol", Interop::consumerProtocol), Map.entry("commit-resume", Interop::commitResume),
            Map.entry("seek-time", Interop::seekTime), Map.entry("admin", Interop::admin),
            Map.entry("transactions", Interop::transactions), Map.entry("large", Interop::large),
            Map.entry("many-topics", Interop::manyTopics), Map.entry("kill", Interop::kill),
            Map.entry("disconnects", Interop::kill), Map.entry("kill-transactions", Interop::killTransactions),
            Map.entry("kill-consumer-protocol", Interop::killConsumerProtocol)));
    }

    /** Runs the scenario that the arguments name, and ends the process. */
    static void run(String[] arguments, Map<String, Scenario> scenarios) {
        Scenario scenario = scenarios.get(arguments[1]);
        int code = scenario == null ? SKIPPED : 0;
        try {
            if (scenario != null) scenario.run(arguments[0]);
        } catch (Skipped reason) {
            System.out.println(reason.getMessage());
            code = SKIPPED;
        } catch (Throwable error) {
            error.printStackTrace();
            code = 1;
        }
        // Also when threads of the client still run.
        System.exit(code);
    }

    /** Whether the client is of this version or a newer one. Its class that tells the version moved in 4.4. */
    static boolean isVersion(int major, int minor) throws Exception {
        Properties properties = new Properties();
        try (InputStream file = Interop.class.getResourceAsStream("/kafka/kafka-version.properties")) {
            properties.load(file);
        }
        String[] parts = properties.getProperty("version").split("\\.");
        int found = Integer.parseInt(parts[0]);
        return found > major || found == major && Integer.parseInt(parts[1]) >= minor;
    }

    static String unique(String name) {
        return name + "-" + UUID.randomUUID().toString().substring(0, 8);
    }

    static void until(String what, long seconds, Check check) throws Exception {
        long limit = System.nanoTime() + seconds * 1_000_000_000;
        while (!check.isTrue()) {
            if (System.nanoTime() > limit) throw new AssertionError("not within " + seconds + " s: " + what);
            Thread.sleep(5);
        }
    }

    static void same(Object found, Object expected) {
        if (!expected.equals(found)) throw new AssertionError("found " + cut(found) + ", expected " + cut(expected));
    }

    private static String cut(Object value) {
        String text = String.valueOf(value);
        return text.substring(0, Math.min(text.length(), 300));
    }

    static Map<String, Object> settings(String address, String... more) {
        Map<String, Object> settings = new HashMap<>(Map.of("bootstrap.servers", address));
        for (int n = 0; n < more.length; n += 2) settings.put(more[n], more[n + 1]);
        return settings;
    }

    static KafkaProducer<String, String> producer(String address, String... more) {
        Map<String, Object> settings = settings(address, more);
        settings.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        settings.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        return new KafkaProducer<>(settings);
    }

    static KafkaConsumer<String, String> consumer(String address, String group, String... more) {
        Map<String, Object> settings = settings(address, "group.id", group, "auto.offset.reset", "earliest",
            "enable.auto.commit", "false");
        settings.putAll(settings(address, more));
        settings.put("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        settings.put("value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        return new KafkaConsumer<>(settings);
    }

    static List<String> numbers(int count) {
        return IntStream.range(0, count).mapToObj(String::valueOf).collect(Collectors.toList());
    }

    static void send(KafkaProducer<String, String> producer, List<ProducerRecord<String, String>> records, int pause)
        throws Exception {
        List<Exception> failed = Collections.synchronizedList(new ArrayList<>());
        for (ProducerRecord<String, String> record : records) {
            producer.send(record, (sent, error) -> {
                if (error != null) failed.add(error);
            });
            if (pause > 0) Thread.sleep(pause);
        }
        producer.flush();
        same(failed, List.of());
    }

    /** Sends values to the first partition of a topic. */
    static void send(KafkaProducer<String, String> producer, String topic, List<String> values) throws Exception {
        send(producer, values.stream().map(value -> new ProducerRecord<String, String>(topic, 0, null, value))
            .collect(Collectors.toList()), 0);
    }

    static List<ConsumerRecord<String, String>> read(KafkaConsumer<String, String> reader, int count, long seconds)
        throws Exception {
        List<ConsumerRecord<String, String>> records = new ArrayList<>();
        until(count + " records", seconds, () -> {
            reader.poll(Duration.ofMillis(200)).forEach(records::add);
            return records.size() >= count;
        });
        return records;
    }

    static List<String> values(List<ConsumerRecord<String, String>> records) {
        return records.stream().map(ConsumerRecord::value).collect(Collectors.toList());
    }

    /** Reads the values of a topic from its begin with a group of its own. */
    static List<String> values(String address, String topic, int count, long seconds, String... more) throws Exception {
        try (KafkaConsumer<String, String> reader = consumer(address, unique("g"), more)) {
            reader.subscribe(List.of(topic));
            return values(read(reader, count, seconds));
        }
    }

    static void create(String address, String topic, int partitions) throws Exception {
        try (Admin admin = Admin.create(settings(address))) {
            admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1))).all().get();
        } catch (ExecutionException error) {
            // The server was killed before it answered.
            if (!(error.getCause() instanceof TopicExistsException)) throw error;
        }
    }

    private static void produceConsume(String address) throws Exception {
        for (boolean exists : new boolean[] {false, true}) {
            String topic = unique("t");
            if (exists) create(address, topic, 1);
            try (KafkaProducer<String, String> producer = producer(address)) {
                send(producer, topic, numbers(1000));
            }
            same(values(address, topic, 1000, 60), numbers(1000));
        }
    }

    private static void codecs(String address) throws Exception {
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            String topic = unique(codec);
            List<String> values = numbers(200).stream().map(n -> codec + n + "x".repeat(200)).collect(Collectors.toList());
            try (KafkaProducer<String, String> producer = producer(address, "compression.type", codec, "linger.ms", "50")) {
                send(producer, topic, values);
            }
            same(values(address, topic, 200, 60), values);
        }
    }

    private static void nullsHeaders(String address) throws Exception {
        String topic = unique("t");
        try (KafkaProducer<String, String> producer = producer(address)) {
            ProducerRecord<String, String> first = new ProducerRecord<>(topic, 0, null, null);
            first.headers().add("a", new byte[] {1}).add("a", null).add("b", new byte[0]);
            send(producer, List.of(first, new ProducerRecord<>(topic, 0, "", ""),
                new ProducerRecord<>(topic, 0, 1234567890123L, "k", "v")), 0);
        }
        try (KafkaConsumer<String, String> reader = consumer(address, unique("g"))) {
            reader.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> records = read(reader, 3, 60);
            same(records.get(0).key() == null && records.get(0).value() == null, true);
            Header[] headers = records.get(0).headers().toArray();
            same(List.of(headers[0].key(), headers[1].key(), headers[2].key()), List.of("a", "a", "b"));
            same(headers[0].value()[0] == 1 && headers[1].value() == null && headers[2].value().length == 0, true);
            same(List.of(records.get(1).key(), records.get(1).value()), List.of("", ""));
            same(records.get(2).timestamp(), 1234567890123L);
        }
    }

    private static void group(String address) throws Exception {
        for (String assignor : List.of("Range", "CooperativeSticky")) {
            groupOf(address, "session.timeout.ms", "6000", "heartbeat.interval.ms", "500",
                "partition.assignment.strategy", "org.apache.kafka.clients.consumer." + assignor + "Assignor");
        }
    }

    private static void consumerProtocol(String address) throws Exception {
        if (!isVersion(4, 0)) throw new Skipped("this version has no consumer protocol");
        groupOf(address, "group.protocol", "consumer");
    }

    private static void groupOf(String address, String... more) throws Exception {
        String topic = unique("t"), group = unique("g");
        create(address, topic, 4);
        KafkaConsumer<String, String> first = consumer(address, group, more), second = consumer(address, group, more);
        first.subscribe(List.of(topic));
        until("the first member has all", 60, () -> isAssigned(first, 4));
        second.subscribe(List.of(topic));
        until("both members have two", 60, () -> isAssigned(first, 2) & isAssigned(second, 2));
        first.close();
        until("the second member has all", 60, () -> isAssigned(second, 4));
        second.close();
    }

    private static boolean isAssigned(KafkaConsumer<String, String> member, int partitions) {
        member.poll(Duration.ofMillis(100));
        return member.assignment().size() == partitions;
    }

    private static void commitResume(String address) throws Exception {
        String topic = unique("t"), group = unique("g");
        TopicPartition partition = new TopicPartition(topic, 0);
        try (KafkaProducer<String, String> producer = producer(address)) {
            send(producer, topic, numbers(10));
        }
        try (KafkaConsumer<String, String> reader = consumer(address, group)) {
            reader.subscribe(List.of(topic));
            read(reader, 10, 60);
            reader.commitSync(Map.of(partition, new OffsetAndMetadata(4, "note")));
            OffsetAndMetadata stored = reader.committed(Set.of(partition)).get(partition);
            same(List.of(stored.offset(), stored.metadata()), List.of(4L, "note"));
        }
        try (KafkaConsumer<String, String> reader = consumer(address, group)) {
            reader.subscribe(List.of(topic));
            same(values(read(reader, 6, 60)), numbers(10).subList(4, 10));
        }
    }

    private static void seekTime(String address) throws Exception {
        String topic = unique("t");
        TopicPartition partition = new TopicPartition(topic, 0);
        try (KafkaProducer<String, String> producer = producer(address)) {
            for (int n = 0; n < 10; n++) {
                producer.send(new ProducerRecord<>(topic, 0, 1_700_000_000_000L + n * 1000, null, "" + n)).get();
            }
        }
        try (KafkaConsumer<String, String> reader = consumer(address, unique("g"))) {
            reader.assign(List.of(partition));
            same(reader.offsetsForTimes(Map.of(partition, 1_700_000_003_500L)).get(partition).offset(), 4L);
            same(reader.offsetsForTimes(Map.of(partition, 1_800_000_000_000L)).get(partition) == null, true);
            same(reader.beginningOffsets(List.of(partition)), Map.of(partition, 0L));
            same(reader.endOffsets(List.of(partition)), Map.of(partition, 10L));
            reader.seek(partition, 4);
            same(values(read(reader, 6, 60)), numbers(10).subList(4, 10));
        }
    }

    @SuppressWarnings("removal")
    private static void admin(String address) throws Exception {
        String topic = unique("t"), group = unique("g");
        TopicPartition partition = new TopicPartition(topic, 0);
        try (Admin admin = Admin.create(settings(address))) {
            NewTopic created = new NewTopic(topic, 2, (short) 1).configs(Map.of("retention.ms", "3600000"));
            same(admin.createTopics(List.of(created)).numPartitions(topic).get(), 2);
            try {
                admin.createTopics(List.of(created)).all().get();
                throw new AssertionError("a topic is created twice");
            } catch (ExecutionException error) {
                same(error.getCause().getClass(), TopicExistsException.class);
            }
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(3))).all().get();
            same(described(admin, topic).contains("partition=2"), true);
            ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
            same(setting(admin, resource, "retention.ms"), "3600000");
            admin.incrementalAlterConfigs(Map.of(resource, List.of(
                new AlterConfigOp(new ConfigEntry("retention.ms", null), AlterConfigOp.OpType.DELETE),
                new AlterConfigOp(new ConfigEntry("cleanup.policy", "compact"), AlterConfigOp.OpType.APPEND)))).all().get();
            same("3600000".equals(setting(admin, resource, "retention.ms")), false);
            same(Set.of(setting(admin, resource, "cleanup.policy").split(",")), Set.of("delete", "compact"));
            admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(
                new ConfigEntry("cleanup.policy", "compact"), AlterConfigOp.OpType.SUBTRACT)))).all().get();
            same(setting(admin, resource, "cleanup.policy"), "delete");
            same(admin.describeCluster().nodes().get().size(), 1);

            try (KafkaProducer<String, String> producer = producer(address)) {
                send(producer, topic, numbers(10));
            }
            try (KafkaConsumer<String, String> reader = consumer(address, group)) {
                reader.subscribe(List.of(topic));
                read(reader, 10, 60);
                reader.commitSync();
                same(admin.describeConsumerGroups(List.of(group)).all().get().get(group).members().size(), 1);
            }
            same(admin.listConsumerGroups().all().get().stream().anyMatch(one -> one.groupId().equals(group)), true);
            same(committed(admin, group, partition), 10L);
            admin.alterConsumerGroupOffsets(group, Map.of(partition, new OffsetAndMetadata(7))).all().get();
            same(committed(admin, group, partition), 7L);
            admin.deleteConsumerGroups(List.of(group)).all().get();

            RecordsToDelete before = RecordsToDelete.beforeOffset(4);
            same(admin.deleteRecords(Map.of(partition, before)).lowWatermarks().get(partition).get().lowWatermark(), 4L);
            same(offset(admin, partition, OffsetSpec.earliest()).offset(), 4L);
            same(offset(admin, partition, OffsetSpec.latest()).offset(), 10L);
            same(offset(admin, partition, OffsetSpec.forTimestamp(0)).offset(), 4L);
            admin.deleteTopics(List.of(topic)).all().get();
            until("the topic is gone", 60, () -> !admin.listTopics().names().get().contains(topic));
        }
    }

    /** The method of 2.8.2 is gone since 4.0, and the newer one came with 3.1. */
    private static String described(Admin admin, String topic) throws Exception {
        Object result = admin.describeTopics(List.of(topic));
        Object all = result.getClass().getMethod(isVersion(3, 1) ? "allTopicNames" : "all").invoke(result);
        return ((org.apache.kafka.common.KafkaFuture<?>) all).get().toString();
    }

    private static String setting(Admin admin, ConfigResource resource, String name) throws Exception {
        return admin.describeConfigs(List.of(resource)).all().get().get(resource).get(name).value();
    }

    private static long committed(Admin admin, String group, TopicPartition partition) throws Exception {
        return admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(partition).offset();
    }

    private static ListOffsetsResultInfo offset(Admin admin, TopicPartition partition, OffsetSpec of) throws Exception {
        return admin.listOffsets(Map.of(partition, of)).all().get().get(partition);
    }

    private static void transactions(String address) throws Exception {
        String topic = unique("t"), copy = unique("copy");
        TopicPartition partition = new TopicPartition(topic, 0);
        try (KafkaProducer<String, String> producer = producer(address)) {
            send(producer, topic, numbers(10));
        }
        KafkaProducer<String, String> writer = producer(address, "transactional.id", unique("tx"));
        writer.initTransactions();
        List<String> all = new ArrayList<>();
        for (int n = 0; n < 3; n++) {
            String name = n + "-";
            List<String> values = numbers(10).stream().map(m -> name + m).collect(Collectors.toList());
            writer.beginTransaction();
            send(writer, copy, values);
            if (n == 1) writer.abortTransaction();
            else writer.commitTransaction();
            all.addAll(values);
        }
        same(values(address, copy, 30, 60), all);
        all.removeIf(value -> value.startsWith("1-"));
        same(values(address, copy, 20, 60, "isolation.level", "read_committed"), all);
        // Consume, transform, produce.
        try (KafkaConsumer<String, String> reader = consumer(address, unique("g"))) {
            reader.subscribe(List.of(topic));
            read(reader, 10, 60);
            for (boolean commits : new boolean[] {false, true}) {
                writer.beginTransaction();
                send(writer, copy, List.of(commits ? "done" : "undone"));
                writer.sendOffsetsToTransaction(Map.of(partition, new OffsetAndMetadata(10)), reader.groupMetadata());
                if (commits) writer.commitTransaction();
                else writer.abortTransaction();
                OffsetAndMetadata stored = reader.committed(Set.of(partition)).get(partition);
                same(stored == null ? -1 : stored.offset(), commits ? 10L : -1);
            }
        }
        writer.close();
        // A producer with the same id fences the older one.
        String id = unique("fence");
        KafkaProducer<String, String> older = producer(address, "transactional.id", id);
        older.initTransactions();
        older.beginTransaction();
        send(older, copy, List.of("pending"));
        KafkaProducer<String, String> newer = producer(address, "transactional.id", id);
        newer.initTransactions();
        same(isFenced(older, copy), true);
        newer.beginTransaction();
        send(newer, copy, List.of("newer"));
        newer.commitTransaction();
        newer.close();
        all.addAll(List.of("done", "newer"));
        same(values(address, copy, 22, 60, "isolation.level", "read_committed"), all);
    }

    private static boolean isFenced(KafkaProducer<String, String> producer, String topic) {
        try {
            producer.send(new ProducerRecord<>(topic, 0, null, "zombie"));
            producer.commitTransaction();
            return false;
        } catch (ProducerFencedException fenced) {
            return true;
        } catch (KafkaException error) {
            // The epoch is too old. An abort tells whether that is so for good.
            try {
                producer.abortTransaction();
                return false;
            } catch (ProducerFencedException fenced) {
                return true;
            }
        }
    }

    private static void large(String address) throws Exception {
        String topic = unique("t");
        List<String> values = Collections.nCopies(20, "x".repeat(900_000));
        try (KafkaProducer<String, String> producer = producer(address)) {
            send(producer, topic, values);
        }
        same(values(address, topic, 20, 60, "max.partition.fetch.bytes", "100000"), values);
    }

    private static void manyTopics(String address) throws Exception {
        String prefix = unique("many");
        List<String> names = numbers(100).stream().map(n -> prefix + n).collect(Collectors.toList());
        try (Admin admin = Admin.create(settings(address))) {
            admin.createTopics(names.stream().map(name -> new NewTopic(name, 1, (short) 1)).collect(Collectors.toList()))
                .all().get();
        }
        try (KafkaProducer<String, String> producer = producer(address)) {
            send(producer, names.stream().map(name -> new ProducerRecord<String, String>(name, name))
                .collect(Collectors.toList()), 0);
        }
        try (KafkaConsumer<String, String> reader = consumer(address, unique("g"))) {
            reader.subscribe(Pattern.compile(prefix + ".*"));
            same(values(read(reader, 100, 60)).stream().sorted().collect(Collectors.toList()),
                names.stream().sorted().collect(Collectors.toList()));
        }
    }

    /** Meanwhile the server is killed, or the connections are cut, again and again. */
    private static void kill(String address) throws Exception {
        String topic = unique("t");
        try (KafkaProducer<String, String> producer = producer(address, "enable.idempotence", "true")) {
            send(producer, numbers(4000).stream().map(n -> new ProducerRecord<String, String>(topic, 0, null, n))
                .collect(Collectors.toList()), 2);
        }
        same(values(address, topic, 4000, 90, "session.timeout.ms", "6000"), numbers(4000));
    }

    private static void killTransactions(String address) throws Exception {
        copyUnderKills(address, "session.timeout.ms", "6000");
    }

    private static void killConsumerProtocol(String address) throws Exception {
        if (!isVersion(4, 0)) throw new Skipped("this version has no consumer protocol");
        copyUnderKills(address, "group.protocol", "consumer");
    }

    /** The server is killed again and again while records are copied exactly once. */
    private static void copyUnderKills(String address, String protocol, String value) throws Exception {
        String topic = unique("t"), copy = unique("copy");
        TopicPartition partition = new TopicPartition(topic, 0);
        int count = 2000;
        try (KafkaProducer<String, String> producer = producer(address, "enable.idempotence", "true")) {
            send(producer, topic, numbers(count));
        }
        KafkaConsumer<String, String> reader = consumer(address, unique("g"), protocol, value,
            "max.poll.records", "10", "isolation.level", "read_committed");
        reader.subscribe(List.of(topic));
        String id = unique("tx");
        KafkaProducer<String, String> writer = transactional(address, id);
        long limit = System.nanoTime() + 150_000_000_000L, done = 0;
        while (done < count) {
            if (System.nanoTime() > limit) throw new AssertionError(done + " of " + count + " records are copied");
            ConsumerRecords<String, String> records = reader.poll(Duration.ofMillis(500));
            if (records.isEmpty()) continue;
            try {
                writer.beginTransaction();
                long next = 0;
                for (ConsumerRecord<String, String> record : records) {
                    writer.send(new ProducerRecord<>(copy, 0, null, record.value()));
                    next = record.offset() + 1;
                }
                writer.sendOffsetsToTransaction(Map.of(partition, new OffsetAndMetadata(next)), reader.groupMetadata());
                writer.commitTransaction();
                done = next;
                Thread.sleep(20);
            } catch (KafkaException error) {
                try {
                    writer.abortTransaction();
                } catch (RuntimeException fatal) {
                    writer.close(Duration.ZERO);
                    writer = transactional(address, id);
                }
                // Read again from what is committed.
                OffsetAndMetadata stored = retried(() -> reader.committed(Set.of(partition))).get(partition);
                done = stored == null ? 0 : stored.offset();
                if (reader.assignment().contains(partition)) reader.seek(partition, done);
            }
        }
        same(values(address, copy, count, 60, "isolation.level", "read_committed"), numbers(count));
    }

    private static KafkaProducer<String, String> transactional(String address, String id) throws Exception {
        KafkaProducer<String, String> producer = producer(address, "transactional.id", id, "transaction.timeout.ms", "20000");
        retried(() -> {
            producer.initTransactions();
            return null;
        });
        return producer;
    }

    private static <T> T retried(java.util.concurrent.Callable<T> call) throws Exception {
        for (int n = 0; ; n++) {
            try {
                return call.call();
            } catch (TimeoutException error) {
                if (n == 2) throw error;
            }
        }
    }
}
