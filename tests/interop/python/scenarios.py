"""What all programs of this folder have in common: a program is called with an address and the name of a scenario."""

import sys
import time
import uuid

# The exit code of a scenario that a client cannot do.
SKIPPED = 77

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


class Skipped(Exception):
    """The client lacks what the scenario needs."""


def unique(name):
    return f"{name}-{uuid.uuid4().hex[:8]}"


def until(what, done, seconds=60):
    """Calls `done` until it is true."""
    limit = time.time() + seconds
    while not done():
        if time.time() > limit:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def same(found, expected):
    if found != expected:
        raise AssertionError(f"found {str(found)[:300]}, expected {str(expected)[:300]}")


def run(scenarios):
    address, name = sys.argv[1:3]
    if name not in scenarios:
        sys.exit(SKIPPED)
    try:
        scenarios[name](address)
    except Skipped as reason:
        print(reason)
        sys.exit(SKIPPED)
