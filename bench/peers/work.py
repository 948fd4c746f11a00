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
    "LONGEST",
    "LOOKUP",
    "LOOKUP_KEYS",
    "PREFIX",
    "PUT_2MIB",
    "PUT_64KIB",
]

GET_2MIB = "get_2mib"  # GiB/s: BATCH_2MIB held blocks into the caller's memory
PUT_2MIB = "put_2mib"
GET_64KIB = "get_64kib"  # GiB/s: BATCH_64KIB of them
PUT_64KIB = "put_64kib"
LOOKUP = "lookup"  # us for LOOKUP_KEYS keys, all held, median of CALLS
KEYS_PER_S = "keys_per_s"  # one client, LOOKUP_KEYS a call, half of them held
LONGEST = "longest_prefix"  # us for a prefix of PREFIX blocks, all held

BATCH_2MIB = 32
BATCH_64KIB = 256
HELD_BYTES = 512 << 20
HELD_KEYS = 256_000
LOOKUP_KEYS = 1_024
PREFIX = 128
CALLS = 50
