import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.stream.Stream;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.state.Stores;

/** Kafka Streams counts words exactly once. */
public final class StreamsWordCount {
    private static final int LINES = 5000;

    public static void main(String[] arguments) {
        Interop.run(arguments,
            Map.of("streams-wordcount", StreamsWordCount::wordCount, "kill-streams", StreamsWordCount::wordCount));
    }

    private static void wordCount(String address) throws Exception {
        String input = Interop.unique("lines"), output = Interop.unique("counts");
        Interop.create(address, input, 2);
        Interop.create(address, output, 2);
        List<ProducerRecord<String, String>> lines = new ArrayList<>();
        Map<String, Long> expected = new HashMap<>();
        for (int n = 0; n < LINES; n++) {
            String line = "all w" + n % 97 + " line" + n / 500;
            lines.add(new ProducerRecord<>(input, n % 2, null, line));
            for (String word : line.split(" ")) expected.merge(word, 1L, Long::sum);
        }
        Path folder = Files.createTempDirectory("interop");
        KafkaStreams streams = new KafkaStreams(topology(input, output), settings(address, folder));
        try {
            streams.setUncaughtExceptionHandler(error -> {
                System.out.println("a thread is replaced: " + error);
                return StreamThreadExceptionResponse.REPLACE_THREAD;
            });
            streams.start();
            try (KafkaProducer<String, String> producer = Interop.producer(address, "enable.idempotence", "true")) {
                Interop.send(producer, lines, 2);
            }
            check(address, output, expected);
        } finally {
            streams.close(Duration.ofSeconds(15));
            try (Stream<Path> files = Files.walk(folder)) {
                for (Path file : files.sorted(Comparator.reverseOrder()).toArray(Path[]::new)) Files.deleteIfExists(file);
            }
        }
    }

    private static Topology topology(String input, String output) {
        StreamsBuilder builder = new StreamsBuilder();
        builder.<String, String>stream(input)
            .flatMapValues(line -> List.of(line.split(" ")))
            .groupBy((key, word) -> word)
            .count(Materialized.as(Stores.inMemoryKeyValueStore("counts")))
            .toStream()
            .mapValues(count -> "" + count)
            .to(output);
        return builder.build();
    }

    private static Properties settings(String address, Path folder) {
        Properties settings = new Properties();
        settings.putAll(Interop.settings(address, "application.id", Interop.unique("word-count"),
            "processing.guarantee", "exactly_once_v2", "group.protocol", "classic", "num.stream.threads", "2",
            "statestore.cache.max.bytes", "0", "commit.interval.ms", "100", "consumer.session.timeout.ms", "6000",
            "state.dir", folder.toString(), "default.key.serde", Serdes.StringSerde.class.getName(),
            "default.value.serde", Serdes.StringSerde.class.getName()));
        return settings;
    }

    /** The count of each word rises by one from one to the expected number. */
    private static void check(String address, String output, Map<String, Long> expected) throws Exception {
        Map<String, Long> found = new HashMap<>();
        try (KafkaConsumer<String, String> reader =
            Interop.consumer(address, Interop.unique("g"), "isolation.level", "read_committed")) {
            reader.assign(List.of(new TopicPartition(output, 0), new TopicPartition(output, 1)));
            try {
                Interop.until("the counts", 170, () -> {
                    read(reader, found);
                    return found.equals(expected);
                });
            } catch (AssertionError error) {
                long sum = found.values().stream().mapToLong(Long::longValue).sum();
                throw new AssertionError(error.getMessage() + ", " + sum + " of " + 3 * LINES + " words are counted");
            }
            // Nothing follows.
            for (int n = 0; n < 10; n++) read(reader, found);
            Interop.same(found, expected);
        }
    }

    private static void read(KafkaConsumer<String, String> reader, Map<String, Long> found) {
        for (ConsumerRecord<String, String> record : reader.poll(Duration.ofMillis(200))) {
            long count = Long.parseLong(record.value()), before = found.getOrDefault(record.key(), 0L);
            if (count != before + 1) {
                throw new AssertionError(record.key() + " is " + count + " after " + before + " at " + record.topic() + "-"
                    + record.partition() + " " + record.offset());
            }
            found.put(record.key(), count);
        }
    }
}
