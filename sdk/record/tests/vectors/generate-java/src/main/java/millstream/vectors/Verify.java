package millstream.vectors;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.record.internal.MemoryRecords;
import org.apache.kafka.common.record.internal.MutableRecordBatch;
import org.apache.kafka.common.record.internal.Record;
import org.apache.kafka.common.utils.internals.BufferSupplier;
import org.apache.kafka.common.utils.internals.CloseableIterator;

/** Reads every .bin file of a folder with kafka-clients and compares it with the .json file of the same name. */
public final class Verify {
    private static int failures;

    public static void main(String[] args) throws IOException {
        ObjectMapper json = new ObjectMapper();
        List<Path> files;
        try (Stream<Path> all = Files.list(Path.of(args[0]))) {
            files = all.filter(path -> path.toString().endsWith(".bin")).sorted().toList();
        }
        int batches = 0;
        int records = 0;
        Map<String, Integer> byCodec = new TreeMap<>();
        for (Path file : files) {
            String name = file.getFileName().toString();
            JsonNode want = json.readTree(Path.of(file.toString().replaceAll("\\.bin$", ".json")).toFile());
            if (want.has("refused")) {
                System.out.println(name + ": skipped, because no producer sends such a batch");
                continue;
            }
            int failuresBefore = failures;
            MutableRecordBatch batch = null;
            int count = 0;
            try {
                Iterator<MutableRecordBatch> read = MemoryRecords
                        .readableRecords(ByteBuffer.wrap(Files.readAllBytes(file))).batches().iterator();
                batch = read.next();
                same(name, "batches after the first", false, read.hasNext());
                count = batch(name, want, batch);
            } catch (RuntimeException e) {
                failures++;
                System.out.println(name + ": " + e);
            }
            batches++;
            records += count;
            byCodec.merge(want.get("codec").asText(), 1, Integer::sum);
            System.out.printf("%s: %s, %d records, %d bytes, codec %s%n", name, failures == failuresBefore ? "ok" : "FAILED",
                    count, Files.size(file), batch == null ? "?" : batch.compressionType().name);
        }
        System.out.printf("%d batches %s, %d records, %d failures%n", batches, byCodec, records, failures);
        if (failures > 0 || batches == 0) {
            System.exit(1);
        }
    }

    private static int batch(String name, JsonNode want, MutableRecordBatch batch) {
        batch.ensureValid();
        same(name, "magic", (byte) 2, batch.magic());
        same(name, "codec", want.get("codec").asText(), batch.compressionType().name);
        long base = want.get("base_offset").asLong();
        JsonNode records = want.get("records");
        same(name, "base offset", base, batch.baseOffset());
        same(name, "last offset", base + records.size() - 1, batch.lastOffset());
        same(name, "leader epoch", want.get("leader_epoch").asInt(), batch.partitionLeaderEpoch());
        same(name, "producer id", want.get("producer_id").asLong(), batch.producerId());
        same(name, "producer epoch", (short) want.get("producer_epoch").asInt(), batch.producerEpoch());
        same(name, "base sequence", want.get("base_sequence").asInt(), batch.baseSequence());
        same(name, "transactional", want.get("transactional").asBoolean(), batch.isTransactional());
        same(name, "control", false, batch.isControlBatch());
        JsonNode appended = want.get("log_append_time_ms");
        same(name, "timestamp type", appended.isNull() ? TimestampType.CREATE_TIME : TimestampType.LOG_APPEND_TIME,
                batch.timestampType());
        same(name, "count", records.size(), batch.countOrNull());
        long max = Long.MIN_VALUE;
        for (JsonNode record : records) {
            max = Math.max(max, record.get("timestamp_ms").asLong());
        }
        same(name, "max timestamp", max, batch.maxTimestamp());
        List<Record> read = new ArrayList<>();
        batch.iterator().forEachRemaining(read::add);
        compare(name, base, records, read);
        List<Record> streamed = new ArrayList<>();
        try (CloseableIterator<Record> stream = batch.streamingIterator(BufferSupplier.NO_CACHING)) {
            stream.forEachRemaining(streamed::add);
        }
        compare(name + " (streamed)", base, records, streamed);
        return read.size();
    }

    private static void compare(String name, long base, JsonNode want, List<Record> read) {
        same(name, "records read", want.size(), read.size());
        for (int i = 0; i < Math.min(want.size(), read.size()); i++) {
            JsonNode node = want.get(i);
            Record record = read.get(i);
            String at = "record " + i + "'s ";
            record.ensureValid();
            same(name, at + "offset", base + node.get("offset_delta").asLong(), record.offset());
            same(name, at + "timestamp", node.get("timestamp_ms").asLong(), record.timestamp());
            bytes(name, at + "key", node.get("key"), array(record.key()));
            bytes(name, at + "value", node.get("value"), array(record.value()));
            JsonNode headers = node.path("headers");
            same(name, at + "headers", headers.size(), record.headers().length);
            for (int h = 0; h < Math.min(headers.size(), record.headers().length); h++) {
                Header header = record.headers()[h];
                same(name, at + "header name", headers.get(h).get("name").asText(), header.key());
                bytes(name, at + "header value", headers.get(h).get("value"), header.value());
            }
        }
    }

    private static byte[] array(ByteBuffer buffer) {
        if (buffer == null) {
            return null;
        }
        byte[] array = new byte[buffer.remaining()];
        buffer.duplicate().get(array);
        return array;
    }

    private static void bytes(String name, String what, JsonNode want, byte[] found) {
        try {
            byte[] expected = null;
            if (want.isObject()) {
                expected = new byte[want.get("times").asInt()];
                Arrays.fill(expected, (byte) want.get("byte").asInt());
            } else if (!want.isNull()) {
                expected = want.binaryValue();
            }
            if (!Arrays.equals(expected, found)) {
                same(name, what, Arrays.toString(expected), Arrays.toString(found));
            }
        } catch (IOException e) {
            throw new IllegalArgumentException(e);
        }
    }

    private static void same(String name, String what, Object want, Object found) {
        if (!Objects.equals(want, found)) {
            failures++;
            System.out.printf("%s: %s: expected %s, found %s%n", name, what, want, found);
        }
    }

    private Verify() {}
}
