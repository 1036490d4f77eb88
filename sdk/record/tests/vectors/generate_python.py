#!/usr/bin/env python3
"""Writes python-*.bin with kafka-python, each with a .json file that describes its records.

    pip install -r requirements.txt && python3 generate_python.py FOLDER
"""

import base64
import json
import pathlib
import sys

from kafka.record.default_records import DefaultRecordBatchBuilder

T = 1_760_000_000_000
VALUE_BYTES_PLAIN_MAX = 1024
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

# (timestamp, key, value, headers)
MIXED = [
    (T, b"key-1", b"value-1 " * 20, []),
    (T + 3, None, b"no key", []),
    (T + 1, b"key-2", None, []),
    (T + 4, b"", b"", []),
    (T + 5, b"key-3", b'{"headers":true}' * 10,
     [("trace", b"\x00\x01\xfe\xff"), ("trace", b"again"), ("null", None), ("empty", b""), ("größe-鍵-🗝", b"1")]),
    (T + 2, None, None, []),
]
# Small after compression, but larger than several 32 KiB blocks of Snappy and one 64 KiB block of LZ4.
BLOCKS = [(T, b"1", b"a" * 35_000, []), (T + 1, b"2", b"b" * 35_000, []), (T + 2, b"3", b"end", [])]


def packed(value):
    """Returns base64, or, for a long run of one byte, that byte and its number of repetitions."""
    if value is None:
        return None
    if len(value) > VALUE_BYTES_PLAIN_MAX:
        return {"byte": value[0], "times": len(value)}
    return base64.b64encode(value).decode()


def write(folder, name, records, codec="none", written_codec=None, producer=(-1, -1, -1), transactional=False):
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=CODECS[codec], is_transactional=transactional, producer_id=producer[0],
        producer_epoch=producer[1], base_sequence=producer[2], batch_size=1 << 20)
    for index, (timestamp, key, value, headers) in enumerate(records):
        assert builder.append(index, timestamp, key, value, headers) is not None
    (folder / f"{name}.bin").write_bytes(builder.build())
    expected = {
        "codec": written_codec or codec,
        "base_offset": 0,
        "leader_epoch": 0,
        "log_append_time_ms": None,
        "producer_id": producer[0],
        "producer_epoch": producer[1],
        "base_sequence": producer[2],
        "transactional": transactional,
    }
    lines = []
    for index, (timestamp, key, value, headers) in enumerate(records):
        record = {"offset_delta": index, "timestamp_ms": timestamp, "key": packed(key), "value": packed(value)}
        if headers:
            record["headers"] = [{"name": name, "value": packed(value)} for name, value in headers]
        lines.append(compact(record))
    # One record per line.
    text = compact(expected)[:-1] + ',"records":[\n' + ",\n".join(lines) + "\n]}\n"
    (folder / f"{name}.json").write_text(text)


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main():
    folder = pathlib.Path(sys.argv[1])
    for codec in CODECS:
        write(folder, f"python-{codec}", MIXED, codec)
        if codec != "none":
            write(folder, f"python-{codec}-blocks", BLOCKS, codec)
    # A batch that compression would not shrink is sent uncompressed, whatever codec was requested.
    write(folder, "python-gzip-not-smaller", [(T, None, b"v", [])], "gzip", written_codec="none")
    write(folder, "python-one-all-null", [(T, None, None, [])])
    write(folder, "python-timestamps-descending", [(T - i * 1000, b"k%d" % i, b"v", []) for i in range(4)])
    write(folder, "python-idempotent", MIXED, "zstd", producer=(4711, 3, 99))
    write(folder, "python-transactional", MIXED, "gzip", producer=(12, 0, 0), transactional=True)
    write(folder, "python-many", [(T + i, None, bytes([i]), []) for i in range(66)], "gzip")


if __name__ == "__main__":
    main()
