package millstream.vectors;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.record.internal.CompressionType;
import org.apache.kafka.common.record.internal.ControlRecordType;
import org.apache.kafka.common.record.internal.DefaultRecordBatch;
import org.apache.kafka.common.record.internal.EndTransactionMarker;
import org.apache.kafka.common.record.internal.MemoryRecords;
import org.apache.kafka.common.record.internal.MemoryRecordsBuilder;
import org.apache.kafka.common.record.internal.RecordBatch;

/** Writes java-*.bin with kafka-clients, each with a .json file that describes its records. */
public final class Generate {
    private static final long T = 1_760_000_000_000L;
    private static final int VALUE_BYTES_PLAIN_MAX = 1024;

    private record Rec(long timestamp, byte[] key, byte[] value, Header... headers) {}

    /** The header fields of a batch. If an append time is given, the timestamp type is LogAppendTime. */
    private record Shape(
            CompressionType codec, long baseOffset, Long appendTime, long producerId, short producerEpoch,
            int baseSequence, boolean transactional, int leaderEpoch) {
        static Shape plain(CompressionType codec) {
            return new Shape(codec, 0, null, -1, (short) -1, -1, false, -1);
        }

        Shape from(long offset, int epoch) {
            return new Shape(codec, offset, appendTime, producerId, producerEpoch, baseSequence, transactional, epoch);
        }

        Shape appendedAt(long time) {
            return new Shape(codec, baseOffset, time, producerId, producerEpoch, baseSequence, transactional, leaderEpoch);
        }

        Shape producer(long id, int epoch, int sequence, boolean transaction) {
            return new Shape(codec, baseOffset, appendTime, id, (short) epoch, sequence, transaction, leaderEpoch);
        }
    }

    private final Path out;
    private final ObjectMapper json = new ObjectMapper();

    private Generate(Path out) {
        this.out = out;
    }

    public static void main(String[] args) throws IOException {
        new Generate(Path.of(args[0])).all();
    }

    private void all() throws IOException {
        for (CompressionType codec : CompressionType.values()) {
            List<Rec> mixed = mixed();
            accepted("java-" + codec.name, Shape.plain(codec), mixed);
            accepted("java-" + codec.name + "-one", Shape.plain(codec), List.of(new Rec(T, null, bytes("v"))));
            accepted("java-" + codec.name + "-blocks", Shape.plain(codec), blocks());
        }
        CompressionType none = CompressionType.NONE;
        accepted("java-one-all-null", Shape.plain(none), List.of(new Rec(T, null, null)));
        accepted("java-one-all-empty", Shape.plain(none),
                List.of(new Rec(0, bytes(""), bytes(""), header("", bytes("")))));
        accepted("java-tombstones", Shape.plain(none), List.of(
                new Rec(T, bytes("a"), null), new Rec(T + 1, bytes("b"), null, header("why", bytes("gone")))));
        accepted("java-headers", Shape.plain(CompressionType.ZSTD), List.of(
                new Rec(T, bytes("k"), bytes("v"),
                        header("id", bytes("1")), header("id", bytes("2")), header("id", null), header("id", bytes("1"))),
                new Rec(T, bytes("k"), bytes("no headers")),
                new Rec(T, bytes("k"), bytes("not ASCII"), header("größe-鍵-🗝", new byte[] {0, (byte) 0xff}))));
        List<Rec> many = new ArrayList<>();
        for (int i = 0; i < 66; i++) {
            many.add(new Rec(T + i, null, new byte[] {(byte) i}));
        }
        accepted("java-many", Shape.plain(CompressionType.LZ4), many);
        accepted("java-timestamps-descending", Shape.plain(none), List.of(
                new Rec(T, bytes("a"), bytes("1")), new Rec(T - 1, bytes("b"), bytes("2")),
                new Rec(T - 86_400_000L, bytes("c"), bytes("3")), new Rec(1, bytes("d"), bytes("4")),
                new Rec(0, bytes("e"), bytes("5"))));
        accepted("java-timestamps-extreme", Shape.plain(none), List.of(
                new Rec(0, null, bytes("0")), new Rec(Long.MAX_VALUE, null, bytes("max")), new Rec(1, null, bytes("1"))));
        accepted("java-timestamp-none", Shape.plain(none), List.of(new Rec(-1, null, bytes("v")), new Rec(T, null, bytes("w"))));
        accepted("java-log-append-time", Shape.plain(CompressionType.GZIP).from(5, 2).appendedAt(T + 5_000), mixed());
        accepted("java-idempotent", Shape.plain(CompressionType.SNAPPY).producer(4711, 3, 99, false), mixed());
        accepted("java-idempotent-extreme", Shape.plain(none).producer(Long.MAX_VALUE, Short.MAX_VALUE, Integer.MAX_VALUE, false), mixed());
        accepted("java-transactional", Shape.plain(CompressionType.LZ4).producer(12, 0, 0, true), mixed());
        accepted("java-from-a-log", Shape.plain(none).from(5_000_000_000L, 17).producer(4711, 3, 100, false), mixed());

        refused("java-refused-control", "control", MemoryRecords.withEndTransactionMarker(
                0, T, 0, 4711, (short) 3, new EndTransactionMarker(ControlRecordType.COMMIT, 1)).batches().iterator().next());
        ByteBuffer empty = ByteBuffer.allocate(DefaultRecordBatch.RECORD_BATCH_OVERHEAD);
        DefaultRecordBatch.writeEmptyHeader(empty, RecordBatch.MAGIC_VALUE_V2, 4711, (short) 3, 0, 0, 4, 0,
                TimestampType.CREATE_TIME, T, false, false);
        empty.flip();
        refused("java-refused-empty", "count", MemoryRecords.readableRecords(empty).batches().iterator().next());
        MemoryRecordsBuilder gaps = builder(Shape.plain(none));
        gaps.appendWithOffset(0, T, bytes("k"), bytes("v"));
        gaps.appendWithOffset(4, T, bytes("k"), bytes("w"));
        refused("java-refused-gaps", "count", gaps.build().batches().iterator().next());
        MemoryRecordsBuilder magic1 = new MemoryRecordsBuilder(ByteBuffer.allocate(256), RecordBatch.MAGIC_VALUE_V1,
                Compression.NONE, TimestampType.CREATE_TIME, 0, T, -1, (short) -1, -1, false, false, -1, 256);
        magic1.append(T, bytes("a key that is longer than a header"), bytes("v"));
        refused("java-refused-magic-1", "magic", magic1.build().batches().iterator().next());
    }

    private static List<Rec> mixed() {
        return List.of(
                new Rec(T, bytes("key-1"), bytes("value-1 value-1 value-1 value-1")),
                new Rec(T + 3, null, bytes("no key")),
                new Rec(T + 1, bytes("key-2"), null),
                new Rec(T + 4, bytes(""), bytes("")),
                new Rec(T + 5, bytes("key-3"), bytes("{\"headers\":true}"),
                        header("trace", new byte[] {0, 1, (byte) 0xfe, (byte) 0xff}), header("trace", bytes("again")),
                        header("null", null), header("empty", bytes(""))),
                new Rec(T + 2, null, null));
    }

    /** Small after compression, but larger than several 32 KiB blocks of Snappy and one 64 KiB block of LZ4. */
    private static List<Rec> blocks() {
        byte[] long1 = new byte[35_000];
        Arrays.fill(long1, (byte) 'a');
        byte[] long2 = new byte[35_000];
        Arrays.fill(long2, (byte) 'b');
        return List.of(new Rec(T, bytes("1"), long1), new Rec(T + 1, bytes("2"), long2), new Rec(T + 2, bytes("3"), bytes("end")));
    }

    private static MemoryRecordsBuilder builder(Shape s) {
        int size = 128 * 1024;
        return new MemoryRecordsBuilder(
                ByteBuffer.allocate(size), RecordBatch.MAGIC_VALUE_V2, Compression.of(s.codec).build(),
                s.appendTime == null ? TimestampType.CREATE_TIME : TimestampType.LOG_APPEND_TIME, s.baseOffset,
                s.appendTime == null ? RecordBatch.NO_TIMESTAMP : s.appendTime, s.producerId, s.producerEpoch,
                s.baseSequence, s.transactional, false, s.leaderEpoch, size);
    }

    private void accepted(String name, Shape s, List<Rec> records) throws IOException {
        if (s.codec == CompressionType.NONE && name.endsWith("-blocks")) {
            return;
        }
        MemoryRecordsBuilder builder = builder(s);
        for (Rec r : records) {
            builder.append(r.timestamp, r.key, r.value, r.headers);
        }
        RecordBatch batch = builder.build().batches().iterator().next();
        ObjectNode top = json.createObjectNode();
        top.put("codec", s.codec.name);
        top.put("base_offset", s.baseOffset);
        top.put("leader_epoch", s.leaderEpoch);
        top.put("log_append_time_ms", s.appendTime);
        top.put("producer_id", s.producerId);
        top.put("producer_epoch", s.producerEpoch);
        top.put("base_sequence", s.baseSequence);
        top.put("transactional", s.transactional);
        List<String> lines = new ArrayList<>();
        int delta = 0;
        for (Rec r : records) {
            ObjectNode node = json.createObjectNode();
            node.put("offset_delta", delta++);
            node.put("timestamp_ms", s.appendTime == null ? r.timestamp : s.appendTime);
            put(node, "key", r.key);
            put(node, "value", r.value);
            for (Header h : r.headers) {
                ObjectNode header = node.withArray("headers").addObject();
                header.put("name", h.key());
                put(header, "value", h.value());
            }
            lines.add(node.toString());
        }
        // One record per line.
        String text = top.toString();
        text = text.substring(0, text.length() - 1) + ",\"records\":[\n" + String.join(",\n", lines) + "\n]}";
        write(name, text, batch);
    }

    private void refused(String name, String error, RecordBatch batch) throws IOException {
        ObjectNode top = json.createObjectNode();
        top.put("refused", error);
        write(name, top.toString(), batch);
    }

    private void write(String name, String text, RecordBatch batch) throws IOException {
        ByteBuffer buffer = ByteBuffer.allocate(batch.sizeInBytes());
        batch.writeTo(buffer);
        Files.write(out.resolve(name + ".bin"), buffer.array());
        Files.writeString(out.resolve(name + ".json"), text + "\n");
    }

    /** Writes base64, or, for a long run of one byte, that byte and its number of repetitions. */
    private static void put(ObjectNode node, String name, byte[] value) {
        if (value == null || value.length <= VALUE_BYTES_PLAIN_MAX) {
            node.put(name, value);
        } else {
            node.putObject(name).put("byte", value[0]).put("times", value.length);
        }
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static Header header(String name, byte[] value) {
        return new RecordHeader(name, value);
    }
}
