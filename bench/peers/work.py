"""What peers are asked to do: one name for each row that has peers. Used on both sides, so it imports nothing."""

from __future__ import annotations

__all__ = [
    "BATCH_2MIB",
    "BATCH_64KIB",
    "CALLS",
    "GET_2MIB",
    "GET_64KIB",
    "HELD_BYTES",
    "HELD_KEYS",
    "KEYS_PER_S",
    "LOCAL_2MIB",
    "LOCAL_2MIB_ONE",
    "LONGEST",
    "LOOKUP",
    "LOOKUP_KEYS",
    "MOVED_BYTES",
    "ON_ONE_HOST",
    "OVER_TCP",
    "PREFIX",
    "PUT_2MIB",
    "PUT_64KIB",
    "SINGLES",
    "TCP_2MIB",
    "TCP_4KIB",
    "TCP_64KIB",
]

GET_2MIB = "get_2mib"  # GiB/s: BATCH_2MIB held blocks into the caller's memory
PUT_2MIB = "put_2mib"
GET_64KIB = "get_64kib"  # GiB/s: BATCH_64KIB of them
PUT_64KIB = "put_64kib"
LOOKUP = "lookup"  # us for LOOKUP_KEYS keys, all held, median of CALLS
KEYS_PER_S = "keys_per_s"  # one client, LOOKUP_KEYS a call, half of them held
TCP_2MIB = "tcp_2mib"  # GiB/s: extents from another process's memory into distinct memory, over loopback
TCP_64KIB = "tcp_64kib"
TCP_4KIB = "tcp_4kib"  # extents/s
LOCAL_2MIB = "local_2mib"  # GiB/s, the same on one host by whatever way: a batch
LOCAL_2MIB_ONE = "local_2mib_one"
LONGEST = "longest_prefix"  # us for a prefix of PREFIX blocks, all held

BATCH_2MIB = 32
BATCH_64KIB = 256
HELD_BYTES = 512 << 20
HELD_KEYS = 256_000
LOOKUP_KEYS = 1_024
PREFIX = 128
CALLS = 50
MOVED_BYTES = 256 << 20  # that extents are drawn from
SINGLES = 16  # reads of one extent, whose median is a figure
OVER_TCP = {TCP_2MIB: (32, 2 << 20), TCP_64KIB: (256, 64 << 10), TCP_4KIB: (1_000, 4 << 10)}  # how many, how long
ON_ONE_HOST = {LOCAL_2MIB_ONE: (1, 2 << 20), LOCAL_2MIB: (32, 2 << 20)}
