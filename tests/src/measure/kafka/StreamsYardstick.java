// Runs Kafka Streams with the topology of the benchmark's pipeline: filter, map, aggregate, exactly once.
//
// java StreamsYardstick.java BOOTSTRAP_SERVER STATE_FOLDER THREADS KEYS WARM_UP RECORDS
//
// Prints the records per second, from the moment that processing is allowed to the commit of the last record.

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.SplittableRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;

public class StreamsYardstick {
    static final String APPLICATION = "yardstick";
    static final int PARTITIONS = 4;
    static final int VALUE_BYTES = 100;
    static final long PATIENCE_NANOS = TimeUnit.MINUTES.toNanos(5);

    public static void main(String[] arguments) throws Exception {
        String server = arguments[0];
        long keys = Long.parseLong(arguments[3]);
        long warmUp = Long.parseLong(arguments[4]);
        long records = Long.parseLong(arguments[5]);
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", server));
                KafkaStreams streams = new KafkaStreams(topology(), settings(server, arguments[1], arguments[2]))) {
            admin.createTopics(List.of(topic("in"), topic("out"))).all().get();
            produce(server, keys, warmUp);
            streams.start();
            waitUntilCommitted(admin, streams, warmUp);
            // A paused instance keeps its tasks but processes nothing. A few records are already fetched.
            streams.pause();
            produce(server, keys, records);
            long begun = System.nanoTime();
            streams.resume();
            waitUntilCommitted(admin, streams, warmUp + records);
            System.out.printf("records_per_s=%.0f%n", records / ((System.nanoTime() - begun) / 1e9));
        }
    }

    static NewTopic topic(String name) {
        return new NewTopic(name, PARTITIONS, (short) 1);
    }

    static Properties settings(String server, String folder, String threads) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, APPLICATION);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, server);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, folder);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, threads);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        return settings;
    }

    static Topology topology() {
        StreamsBuilder builder = new StreamsBuilder();
        var bytes = Serdes.ByteArray();
        builder.stream("in", Consumed.with(bytes, bytes))
                .filter((key, value) -> value[0] % 2 == 0)
                .mapValues(StreamsYardstick::touched)
                .groupByKey(Grouped.with(bytes, bytes))
                .aggregate(() -> new byte[24], StreamsYardstick::add, Materialized.with(bytes, bytes))
                .toStream()
                .to("out", Produced.with(bytes, bytes));
        return builder.build();
    }

    static byte[] touched(byte[] value) {
        byte[] touched = value.clone();
        touched[touched.length - 1] ^= 1;
        return touched;
    }

    /** Counts records and sums their bytes. */
    static byte[] add(byte[] key, byte[] value, byte[] stats) {
        ByteBuffer before = ByteBuffer.wrap(stats).order(ByteOrder.LITTLE_ENDIAN);
        byte[] after = new byte[stats.length];
        ByteBuffer.wrap(after).order(ByteOrder.LITTLE_ENDIAN)
                .putLong(before.getLong(0) + 1)
                .putLong(before.getLong(8) + value.length);
        return after;
    }

    static void produce(String server, long keys, long records) {
        Map<String, Object> settings = Map.of("bootstrap.servers", server);
        var bytes = new ByteArraySerializer();
        SplittableRandom random = new SplittableRandom(records);
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings, bytes, bytes)) {
            for (long number = 0; number < records; number++) {
                byte[] value = new byte[VALUE_BYTES];
                value[0] = (byte) (random.nextInt(10) == 0 ? 'a' : 'b');
                byte[] key = String.format("%08d", random.nextLong(keys)).getBytes();
                producer.send(new ProducerRecord<>("in", key, value));
            }
        }
    }

    /** Waits until the input is processed. Its offsets count records, because it has no transactions and thus no gaps. */
    static void waitUntilCommitted(Admin admin, KafkaStreams streams, long records) throws Exception {
        long until = System.nanoTime() + PATIENCE_NANOS;
        while (true) {
            long committed = 0;
            for (var offset : admin.listConsumerGroupOffsets(APPLICATION).partitionsToOffsetAndMetadata().get().entrySet()) {
                if (offset.getKey().topic().equals("in") && offset.getValue() != null) {
                    committed += offset.getValue().offset();
                }
            }
            if (committed >= records) {
                return;
            }
            if (System.nanoTime() > until || streams.state() == KafkaStreams.State.ERROR) {
                throw new TimeoutException(committed + " of " + records + " records were processed, the state is " + streams.state());
            }
            Thread.sleep(5);
        }
    }
}
