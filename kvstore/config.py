"""Settings: one TOML file, `KVSTORE_SECTION_KEY` variables over it, flags over both. Alone reads the environment.

Rules
- Frozen sections. `[cluster]` is what every node of a cluster must agree on; all else is a node's own business.
- A value that is not allowed is refused at start: where it was said, the key, the value, what is allowed.
- A key that nothing reads is refused too, so that a slip of the pen is not a silent default.
- Sizes are whole bytes or text such as "512MiB". None as a default: decided at start from what the machine has.
"""

from __future__ import annotations

import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final

from kvstore.allowed import GIB, MIB, Read, human
from kvstore.errors import Misconfigured
from kvstore.event_settings import EventsConfig
from kvstore.members import Alone, Listed, parse_members
from kvstore.security import SecurityConfig
from kvstore.setting_rules import BY_TYPE, RULES

SHM_DIR: Final = Path("/dev/shm")  # noqa: S108 - shared memory is what is meant
CONFIG_VARIABLE: Final = "KVSTORE_CONFIG"  # the file, for those who cannot give a flag
SOCKET_BYTES_MAX: Final = 107 - len(".lanes")  # sun_path, of those that lie beside it, too
ADDRESS_VARIABLE: Final = "KVSTORE_ADDRESS"  # store-admin's node; no setting of the node's own


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Which nodes there are, and what every one of them must agree on.

    secret_file: 32 bytes, 0600, from which the seeds of keys are made, and by which nodes know each other. None:
    DATA_DIR/secret, made at the first start.
    family_blocks: a chain's first so many blocks name its family when no label is given.
    members: standalone; HOST:PORT,... of every node's framed door, the same list everywhere; or
    etcd://HOST:PORT[,HOST:PORT]/PREFIX, etcds:// with TLS.
    address: HOST:PORT where other nodes reach this one's framed door. None: node.address, as it is bound.
    host: what this node's machine is called; nodes that say the same die together, so replicas count once. None: the
    machine's own identity.
    etcd_user, etcd_password_file: for an etcd that asks. etcd_ca, etcd_certificate, etcd_private_key: PEM, for etcds.
    etcd_ttl_s: how long etcd lists a node that it does not hear of. join_ms: how long a starting node waits for etcd.
    ping_ms: how often a node asks each other whether it lives; more seldom where that were more than
    pings_per_second_max. dead_after_ms: without an answer a node is dead.
    directory_width: nodes that keep one namespace's claims; the same everywhere. claims_max: that this node keeps for
    others. holders_max: named for a block. settle_ms: how long a node that came is not asked yet. grace_ms: how long
    the claims that a dead node kept are not moved. announce_ms: how long what came or went waits for more of it.
    digest_ms: how often homes are compared with what is held. hedge_ms: how long a lookup waits for a home before it
    asks the second one. locate_ms_max: and for all of them. far_bytes_per_s: taken for the speed of a fetch from
    another node until it was measured. replica_window_s: a family that is got from other nodes twice within it is
    copied here; 0: never. leases_per_block_max: of other nodes, of one block at one time; beyond it they are sent to
    others that have it.
    """

    secret_file: Path | None = None
    family_blocks: int = 4
    members: str = "standalone"
    address: str | None = None
    host: str | None = None
    etcd_user: str | None = None
    etcd_password_file: Path | None = None
    etcd_ca: Path | None = None
    etcd_certificate: Path | None = None
    etcd_private_key: Path | None = None
    etcd_ttl_s: int = 10
    join_ms: int = 30_000
    ping_ms: int = 500
    dead_after_ms: int = 2_000
    pings_per_second_max: int = 500
    directory_width: int = 16
    claims_max: int = 16 << 20
    holders_max: int = 4
    settle_ms: int = 2_000
    grace_ms: int = 30_000
    announce_ms: int = 20
    digest_ms: int = 30_000
    hedge_ms: int = 50
    locate_ms_max: int = 500
    far_bytes_per_s: int = 1 << 30
    replica_window_s: int = 60
    leases_per_block_max: int = 64


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """name: names the segments. None: made from the data directory's path, so that two directories are two nodes.
    data_dir: None: /var/lib/kvstore for root, else $XDG_DATA_HOME/kvstore or ~/.local/share/kvstore.
    socket: the framed door's. None: $XDG_RUNTIME_DIR/kvstore.sock where that is, else DATA_DIR/kvstore.sock.
    address: HOST:PORT where clients of other machines come to the framed door; port 0: any free one; "none": nowhere.
    """

    name: str | None = None
    data_dir: Path | None = None
    socket: Path | None = None
    address: str = "127.0.0.1:7400"


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """The memory tier.

    bytes: None: what the segment has already, else min(1 GiB, half of the free shared memory).
    slab_bytes: given to one size class at a time; the largest block. None: min(64 MiB, an eighth), a power of two.
    directory: a tmpfs or hugetlbfs.
    keep: whether blocks stay in shared memory after the node was stopped, for its next start.
    """

    bytes: int | None = None
    slab_bytes: int | None = None
    policy: str = "leaf_lru"
    directory: Path = SHM_DIR
    keep: bool = True


@dataclass(frozen=True, slots=True)
class FileConfig:
    """The file tier.

    directory: None: DATA_DIR/files. bytes: None: 10 GiB, or half of the free disk if that is less; allocated in full.
    shrink: take half of what the disk has where `bytes` does not fit, instead of refusing to start.
    slab_bytes: None: as large as leaves eight of them and less than a tenth over, at most 64 MiB and room for headers.
    The largest block is a slab less 4 KiB.
    engine: auto takes io_uring where the machine lets it, else threads. depth: requests in the kernel at once.
    pending_max: those behind them; deadline_ms: of each batch. direct: past the page cache, where the disk can.
    register_memory: pins the memory tier for io_uring, where the memlock limit lets it.
    admission: reuse writes what shows that it will be read again, or costs nothing else its place; always writes all.
    write_behind_bytes_max: how much of the coldest memory is kept written. checkpoint_ms: how often the index is.
    """

    enabled: bool = True
    directory: Path | None = None
    bytes: int | None = None
    shrink: bool = False
    slab_bytes: int | None = None
    policy: str = "leaf_lru"
    engine: str = "auto"
    depth: int = 32
    pending_max: int = 65_536
    deadline_ms: int = 10_000
    direct: bool = True
    register_memory: bool = True
    admission: str = "reuse"
    ghost_keys_max: int = 65_536
    write_behind_bytes_max: int = 256 * MIB
    checkpoint_ms: int = 200


@dataclass(frozen=True, slots=True)
class ObjectConfig:
    """The object tier.

    url: s3://BUCKET/PREFIX, gs://, az://, file:///DIRECTORY. None: the directory DATA_DIR/objects. "none": off.
    options: NAME=VALUE in the provider's own words, such as endpoint=http://host:9000, access_key_id, region.
    bytes_max: for all that lies under the URL. None: of a directory 32 GiB, or a quarter of the free disk if that is
    less; of a bucket no limit. sweep_ms: how often that is looked after; a writer at the limit asks for it at once.
    timeout_ms: of one request, its retries included. concurrency: requests at once.
    write_bytes_max: copies of blocks on their way there. blocks_max: how many blocks are known to lie there.
    probe_again_ms: how long a chain of which nothing was found is not looked for again.
    flush_ms: how long a node that stops may write what lies in no pack yet: for one whose disk does not stay.
    """

    url: str | None = None
    options: tuple[str, ...] = ()
    bytes_max: int | None = None
    sweep_ms: int = 60_000
    timeout_ms: int = 10_000
    retries: int = 2
    concurrency: int = 16
    write_bytes_max: int = 128 * MIB
    blocks_max: int = 262_144
    probe_again_ms: int = 30_000
    flush_ms: int = 0


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """ARCHITECTURE.md, 6, says what is answered when each is reached. pinned_bytes_max None: a quarter of memory;
    held_bytes_max None: half of it.
    """

    keys_per_call_max: int = 65_536
    frame_bytes_max: int = 8 * MIB
    window_bytes: int = 256 * MIB
    reserve_lapse_ms: int = 30_000
    lease_ms_max: int = 60_000
    hold_wait_ms_max: int = 10_000
    connections_max: int = 1_024
    door_spin_us_max: int = 100
    holds_per_connection_max: int = 65_536
    namespaces_max: int = 4_096
    parked_max: int = 4_096
    families_max: int = 1_000
    events_max: int = 65_536
    pinned_bytes_max: int | None = None
    held_bytes_max: int | None = None
    moving_bytes_max: int = GIB


@dataclass(frozen=True, slots=True)
class GrpcConfig:
    """The door for any language. A Unix socket (0600) beside the framed one is always there, for operators.

    address: HOST:PORT; port 0: any free one; "none": no TCP door.
    message_bytes_max: every gRPC library's own default; raising it means that clients must raise theirs.
    streams_max: Put and Get calls at once; each has at most one block and one message in memory.
    calls_max: calls of any kind at once over TCP, each with at most one message in memory; operators have a door of
    their own. Where there are several tenants, each has a share of these two (kvstore/node/shares.py).
    window_bytes: held at once for one Get.
    call_ms_max: the longest that one call may take, whatever its caller says. Watch has no end.
    """

    address: str = "127.0.0.1:7401"
    message_bytes_max: int = 4 * MIB
    streams_max: int = 64
    calls_max: int = 256
    window_bytes: int = 32 * MIB
    call_ms_max: int = 600_000


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """/metrics for Prometheus.

    address: HOST:PORT; port 0: any free one; "none": no endpoint.
    families_told_max: the families asked for most that have labels of their own.
    """

    address: str = "127.0.0.1:9464"
    families_told_max: int = 100


@dataclass(frozen=True, slots=True)
class TransferConfig:
    """How peers reach this node's bytes, and it theirs. Shared memory is always there, beside the framed door's socket.

    address: HOST:PORT of TCP, as peers are told it; port 0: any free one; "none": this node only connects. Beyond
    loopback it needs TLS.
    certificate, private_key: PEM files. Both or neither. peer_ca: by whom peers are believed, those that come, which
    are asked for a certificate then, and those that this node connects to. Where none of the three is given they are
    `[security]`'s certificate, private_key and client_ca.
    lanes: connections to each peer. workers: threads that move bytes, of each transport.
    rdma: auto uses RDMA where the machine has it; on does not start without; none does not.
    rdma_address: as `address`, of RDMA's control connection. Beyond loopback it needs TLS, or rdma_trusted_network:
    what RDMA moves is never encrypted, so that TLS decides who may ask for it, and no more.
    rdma_devices: by name, in this order; none named: all whose port is active. rdma_rails: near takes those of the
    NICs near the memory, and others while none of them works; all takes all. rdma_cached_bytes_max: of callers'
    arrays that stay registered, and so are held, for 10 s after the call, in case that they come again; 0: none do.
    Of those who hand over device memory, which are clients:
    device_ways: how NICs may get at it, the best that works: dma_buf, peermem, or staged, which is by no NIC but
    through pinned memory. device_caller_synchronizes: by NICs also where the driver does not promise that synchronous
    copies are over when they say so; the caller then waits for its streams itself. staging_bytes_max: pinned memory,
    in buffers of staging_buffer_bytes; staging_ahead_max: of them, what one transfer may have. lent_bytes_max: of
    device memory that is put and that no NIC reaches, host copies for the node to read.
    """

    address: str = "127.0.0.1:0"
    certificate: Path | None = None
    private_key: Path | None = None
    peer_ca: Path | None = None
    lanes: int = 2
    workers: int = 1
    rdma: str = "auto"
    rdma_address: str = "127.0.0.1:0"
    rdma_devices: tuple[str, ...] = ()
    rdma_trusted_network: bool = False
    rdma_rails: str = "near"
    rdma_cached_bytes_max: int = 256 * MIB
    device_ways: tuple[str, ...] = ("dma_buf", "peermem", "staged")
    device_caller_synchronizes: bool = False
    staging_bytes_max: int = 64 * MIB
    staging_buffer_bytes: int = 2 * MIB
    staging_ahead_max: int = 4
    lent_bytes_max: int = GIB


@dataclass(frozen=True, slots=True)
class Config:
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    file: FileConfig = field(default_factory=FileConfig)
    object: ObjectConfig = field(default_factory=ObjectConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    grpc: GrpcConfig = field(default_factory=GrpcConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)


SECTIONS: Final = types.MappingProxyType({section.name: section for section in fields(Config)})

# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """One value as somebody wrote it. `where`: a file, a variable or a flag, for the message."""

    where: str
    value: object


def load(
    path: Path | None = None,
    flags: Mapping[str, Said] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The settings of this process; raises Misconfigured. `flags` by "section.key"."""
    environ = os.environ if environ is None else environ
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    said = _from_file(path) if path is not None else {}
    said.update(_from_environment(environ))
    said.update(flags or {})
    return assemble(said)


def assemble(said: Mapping[str, Said]) -> Config:
    """Pure: from what was said, by "section.key", to checked settings."""
    chosen: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}
    for key, one in said.items():
        section, _, name = key.partition(".")
        read = _reader(section, name)
        if read is None:
            raise Misconfigured(f"{one.where}: {key}: not a setting; allowed: {', '.join(_keys(section))}")
        try:
            chosen[section][name] = read(one.value)
        except ValueError as error:
            raise Misconfigured(f"{one.where}: {key} = {one.value!r}: must be {error}") from None
    sections = {
        "cluster": ClusterConfig,
        "node": NodeConfig,
        "memory": MemoryConfig,
        "file": FileConfig,
        "object": ObjectConfig,
        "limits": LimitsConfig,
        "grpc": GrpcConfig,
        "metrics": MetricsConfig,
        "events": EventsConfig,
        "transfer": TransferConfig,
        "security": SecurityConfig,
    }
    assert sections.keys() == SECTIONS.keys()
    config = Config(**{name: make(**chosen[name]) for name, make in sections.items()})
    _check_relations(config)
    return config


def _check_relations(config: Config) -> None:
    """Limits that only make sense together."""
    memory = config.memory
    if memory.bytes is not None and memory.slab_bytes is not None and memory.slab_bytes > memory.bytes // 2:
        raise Misconfigured(
            f"memory.slab_bytes = {human(memory.slab_bytes)}: must be at most half of memory.bytes, "
            f"{human(memory.bytes)}: a tier of one slab can serve one block size only"
        )
    if config.limits.keys_per_call_max * 32 + 4_096 > config.limits.frame_bytes_max:
        raise Misconfigured(
            f"limits.keys_per_call_max = {config.limits.keys_per_call_max}: at 32 bytes a key does not fit "
            f"limits.frame_bytes_max, {human(config.limits.frame_bytes_max)}"
        )
    _check_cluster(config)


def _check_cluster(config: Config) -> None:
    cluster, at = config.cluster, parse_members(config.cluster.members)
    unread: tuple[str, ...]
    if isinstance(at, Alone):
        unread = ("address", "etcd_user", "etcd_password_file", "etcd_ca", "etcd_certificate", "etcd_private_key")
    elif isinstance(at, Listed):
        unread = ("etcd_user", "etcd_password_file", "etcd_ca", "etcd_certificate", "etcd_private_key")
    else:
        unread = () if at.tls else ("etcd_ca", "etcd_certificate", "etcd_private_key")
    for name in unread:
        if getattr(cluster, name) is not None:
            raise Misconfigured(f"cluster.{name}: is not read with cluster.members = {cluster.members!r}")
    for one, other in (("etcd_user", "etcd_password_file"), ("etcd_certificate", "etcd_private_key")):
        if (getattr(cluster, one) is None) != (getattr(cluster, other) is None):
            raise Misconfigured(f"cluster.{one} and cluster.{other}: both or neither")
    if not isinstance(at, Alone) and config.node.address == "none":
        raise Misconfigured(
            "node.address = 'none': other nodes come there; give it an address, or cluster.members none"
        )
    if 2 * cluster.ping_ms > cluster.dead_after_ms:
        raise Misconfigured(
            f"cluster.dead_after_ms = {cluster.dead_after_ms}: must be at least twice cluster.ping_ms, "
            f"{cluster.ping_ms}: one lost message is no death"
        )


def _section_types() -> dict[str, type]:
    return typing.get_type_hints(Config)


def _reader(section: str, name: str) -> Read | None:
    made = _section_types().get(section)
    hint = typing.get_type_hints(made).get(name) if made is not None else None
    if hint is None:
        return None
    rule = RULES.get(f"{section}.{name}")
    if rule is not None:
        return rule
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    plain = kinds[0] if typing.get_origin(hint) in {types.UnionType, typing.Union} else hint
    return BY_TYPE[plain]


def _keys(section: str) -> list[str]:
    made = _section_types().get(section)
    if made is None:
        return [f"[{name}]" for name in SECTIONS]
    return [f"{section}.{name}" for name in typing.get_type_hints(made)]


def _from_file(path: Path) -> dict[str, Said]:
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{path}: not TOML: {error}") from error
    said: dict[str, Said] = {}
    for section, table in document.items():
        if not isinstance(table, dict) or section not in SECTIONS:
            raise Misconfigured(f"{path}: {section}: not a section; allowed: {', '.join(_keys(''))}")
        said.update({f"{section}.{name}": Said(str(path), value) for name, value in table.items()})
    return said


# What Kubernetes puts into every pod beside a service that is called kvstore.
_OF_KUBERNETES: Final = re.compile(r"KVSTORE_(?:.*_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.*)?|PORT(?:_.*)?)")


def _from_environment(environ: Mapping[str, str]) -> dict[str, Said]:
    said: dict[str, Said] = {}
    for variable in sorted(environ):
        section, _, name = variable.removeprefix("KVSTORE_").lower().partition("_")
        if not variable.startswith("KVSTORE_") or variable in {CONFIG_VARIABLE, ADDRESS_VARIABLE}:
            continue
        if _reader(section, name) is None and _OF_KUBERNETES.fullmatch(variable):
            continue
        said[f"{section}.{name}"] = Said(variable, environ[variable])
    return said


def notify_socket(environ: Mapping[str, str] | None = None) -> str | None:
    """Where systemd is told that a service is ready (sd_notify(3)); "@NAME" is abstract. None: nobody asked."""
    environ = os.environ if environ is None else environ
    return environ.get("NOTIFY_SOCKET") or None


# ---- places ---------------------------------------------------------------------------------------------------------


def transfer_of(config: Config) -> TransferConfig:
    """`[transfer]`, with the files of `[security]` where it names none of its own."""
    told, security = config.transfer, config.security
    if (told.certificate, told.private_key, told.peer_ca) != (None, None, None):
        return told
    return replace(told, certificate=security.certificate, private_key=security.private_key, peer_ca=security.client_ca)


def tcp_addresses(config: Config) -> tuple[str, ...]:
    """Where the doors of a node listen by TCP."""
    told = (config.node.address, config.grpc.address, config.metrics.address)
    return tuple(address for address in told if address != "none")


def data_dir(config: Config, environ: Mapping[str, str] | None = None) -> Path:
    environ = os.environ if environ is None else environ
    if config.node.data_dir is not None:
        return config.node.data_dir.absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/kvstore")
    base = environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "kvstore"


def socket_path(config: Config, environ: Mapping[str, str] | None = None) -> Path:
    """Where the framed door listens. Raises Misconfigured for a path that no socket can have."""
    environ = os.environ if environ is None else environ
    runtime = environ.get("XDG_RUNTIME_DIR")
    if config.node.socket is not None:
        path = config.node.socket.absolute()
    elif runtime and Path(runtime).is_dir():
        path = Path(runtime) / "kvstore.sock"
    else:
        path = data_dir(config, environ) / "kvstore.sock"
    if len(os.fsencode(path)) > SOCKET_BYTES_MAX:
        raise Misconfigured(f"node.socket = {str(path)!r}: must be at most {SOCKET_BYTES_MAX} bytes long")
    return path
