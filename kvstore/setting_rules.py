"""What each setting may be. Pure; kvstore.config reads them."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kvstore.allowed import (
    GIB,
    MIB,
    Read,
    a_path,
    a_text,
    address,
    boolean,
    count,
    matching,
    multiple_of,
    one_address,
    one_of,
    power_of_two,
    size,
    tuple_of,
    zmq_address,
)
from kvstore.members import members

__all__ = ["BY_TYPE", "POLICIES", "RULES"]

POLICIES: Final = ("leaf_lru", "s3_fifo")
WAYS: Final = ("dma_buf", "peermem", "staged")  # as transfer.devices.Way

BY_TYPE: Final[Mapping[object, Read]] = types.MappingProxyType(
    {
        bool: boolean,
        Path: a_path,
        str: a_text,
        tuple[str, ...]: tuple_of(a_text, "a list of texts"),
        tuple[int, ...]: tuple_of(count(0, 2**32 - 1), "a list of numbers"),
    }
)

RULES: Final[Mapping[str, Read]] = types.MappingProxyType(
    {
        "cluster.family_blocks": count(1, 1_024, "blocks"),
        "cluster.members": members,
        "cluster.address": one_address,
        "cluster.etcd_ttl_s": count(2, 3_600, "seconds"),
        "cluster.join_ms": count(1, 3_600_000, "milliseconds"),
        "cluster.ping_ms": count(10, 60_000, "milliseconds"),
        "cluster.dead_after_ms": count(100, 600_000, "milliseconds"),
        "cluster.pings_per_second_max": count(1, 1_000_000),
        "cluster.directory_width": count(1, 4_096, "nodes"),
        "cluster.claims_max": count(1_024, 1 << 28, "claims"),
        "cluster.holders_max": count(1, 255, "nodes"),
        "cluster.settle_ms": count(0, 600_000, "milliseconds"),
        "cluster.grace_ms": count(0, 86_400_000, "milliseconds"),
        "cluster.announce_ms": count(1, 60_000, "milliseconds"),
        "cluster.digest_ms": count(100, 86_400_000, "milliseconds"),
        "cluster.hedge_ms": count(1, 60_000, "milliseconds"),
        "cluster.locate_ms_max": count(1, 60_000, "milliseconds"),
        "cluster.far_bytes_per_s": size(1 << 20),
        "cluster.host": matching(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", "1 to 64 letters, digits, dots, dashes, colons"),
        "cluster.replica_window_s": count(0, 86_400, "seconds"),
        "cluster.leases_per_block_max": count(1, 1_000_000),
        "node.name": matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, dots, dashes, underscores"),
        "node.address": address,
        "memory.bytes": size(256 << 10),
        "memory.slab_bytes": power_of_two(size(64 << 10, 64 * MIB)),
        "memory.policy": one_of(POLICIES),
        "file.bytes": size(1 * MIB),
        "file.slab_bytes": multiple_of(4096, size(64 << 10, GIB)),
        "file.policy": one_of(POLICIES),
        "file.engine": one_of(("auto", "io_uring", "threads")),
        "file.depth": count(1, 1_024, "requests"),
        "file.pending_max": count(1, 1 << 24, "requests"),
        "file.deadline_ms": count(1, 3_600_000, "milliseconds"),
        "file.admission": one_of(("reuse", "always")),
        "file.ghost_keys_max": count(1, 1 << 24, "keys"),
        "file.write_behind_bytes_max": size(1 * MIB),
        "file.checkpoint_ms": count(1, 3_600_000, "milliseconds"),
        "object.url": matching(
            r"none|[a-z0-9]+://\S+", "a URL such as s3://bucket/prefix or file:///directory, or none"
        ),
        "object.options": tuple_of(matching(r"[A-Za-z0-9_]+=.*", "NAME=VALUE"), "a list of options"),
        "object.bytes_max": size(1 * MIB),
        "object.sweep_ms": count(10, 86_400_000, "milliseconds"),
        "object.timeout_ms": count(1, 3_600_000, "milliseconds"),
        "object.retries": count(0, 100),
        "object.concurrency": count(1, 1_024, "requests"),
        "object.write_bytes_max": size(1 * MIB),
        "object.blocks_max": count(1, 1 << 28, "blocks"),
        "object.probe_again_ms": count(10, 86_400_000, "milliseconds"),
        "object.flush_ms": count(0, 3_600_000, "milliseconds"),
        "limits.keys_per_call_max": count(1, 1 << 20),
        "limits.frame_bytes_max": size(64 << 10, GIB),
        "limits.window_bytes": size(1 << 16, 1 << 40),
        "limits.reserve_lapse_ms": count(1, 3_600_000, "milliseconds"),
        "limits.lease_ms_max": count(1, 3_600_000, "milliseconds"),
        "limits.hold_wait_ms_max": count(0, 600_000, "milliseconds"),
        "limits.connections_max": count(1, 65_536),
        "limits.door_spin_us_max": count(0, 10_000),
        "limits.holds_per_connection_max": count(1, 1 << 24),
        "limits.namespaces_max": count(1, 1 << 20),
        "limits.parked_max": count(0, 1 << 20),
        "limits.families_max": count(1, 1 << 20),
        "limits.events_max": count(1, 1 << 24),
        "limits.pinned_bytes_max": size(0),
        "limits.held_bytes_max": size(1),
        "limits.moving_bytes_max": size(1 << 16),
        "grpc.address": address,
        "grpc.message_bytes_max": size(64 << 10, 1 << 30),
        "grpc.streams_max": count(1, 65_536),
        "grpc.calls_max": count(1, 65_536),
        "grpc.window_bytes": size(1 << 16, 1 << 40),
        "metrics.address": address,
        "metrics.families_told_max": count(0, 10_000),
        "events.zmq": zmq_address,
        "events.replay": zmq_address,
        "events.topic": matching(r"[^\x00-\x1f]{0,255}", "at most 255 printable characters"),
        "events.form": one_of(("maps", "arrays")),
        "events.buffer_steps": count(1, 1 << 24, "batches"),
        "events.buffer_bytes_max": size(64 << 10),
        "grpc.call_ms_max": count(1, 86_400_000, "milliseconds"),
        "transfer.address": address,
        "transfer.lanes": count(1, 64, "connections"),
        "transfer.workers": count(1, 64, "threads"),
        "transfer.rdma": one_of(("auto", "on", "none")),
        "transfer.rdma_address": address,
        "transfer.rdma_rails": one_of(("near", "all")),
        "transfer.rdma_cached_bytes_max": size(0, 1 << 50),
        "transfer.device_ways": tuple_of(one_of(WAYS), f"a list of {', '.join(WAYS)}"),
        "transfer.staging_bytes_max": size(64 << 10),
        "transfer.staging_buffer_bytes": multiple_of(4096, size(64 << 10, GIB)),
        "transfer.staging_ahead_max": count(1, 1_024, "buffers"),
        "transfer.lent_bytes_max": size(4096),
    }
)
