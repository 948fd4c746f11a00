"""Native core of kvstore. Import it through kvstore.native only."""

from collections.abc import Sequence
import enum
from typing import Annotated, Any, TypeAlias

import numpy
from numpy.typing import NDArray


LEAF_BYTES: int = 4096

STREAM_BYTES_MIN: int = 16384

def kernels() -> str:
    """Which routines this CPU runs."""

def xxh3_64(data: object) -> int:
    """XXH3-64, seed 0, of any contiguous buffer."""

def part_checksum(data: object) -> int:
    """XXH3-64 over the XXH3-64s of the buffer's 4 KiB leaves."""

def part_checksums(data: object, part_bytes: Sequence[int]) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,))]:
    """One checksum a part of each block in the buffer, in order."""

def leaf_digests(data: object) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,))]:
    """XXH3-64 of each 4 KiB leaf; the last may be short."""

def combine_leaves(leaves: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int:
    """A part's checksum from its leaves' digests."""

def copy_bytes(to: object, source: object) -> None:
    """Copies, past the caches where that is faster."""

def copy_parts(to: Sequence[object], source: Sequence[object], part_bytes: Sequence[int]) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,))]:
    """
    Copies a list of buffers over a list of buffers in one pass; the checksum of each part as it was stored.
    """

def copy_blocks(kind: str, to: object, source: object, block_bytes: int, blocks: Sequence[int]) -> int:
    """One batch of bench/copy.py."""

BLOCK_TOKENS_MAX: int = 65536

ENGINE_HASH_BYTES_MAX: int = 64

EXTRAS_BYTES_MAX: int = 4096

EXTRAS_PER_BLOCK_MAX: int = 128

EXTRA_LORA: int = 1

EXTRA_SALT: int = 2

EXTRA_MULTIMODAL: int = 3

EXTRA_EMBEDS: int = 4

def sha256(data: object) -> bytes:
    """SHA-256 of any contiguous buffer."""

def hmac_sha256(secret: object, message: object) -> bytes: ...

def keys_chain(seed: object, tokens: object, block_tokens: int, extras: Sequence[object]) -> Annotated[NDArray[numpy.uint8], dict(shape=(None, 32))]:
    """
    Keys of all full blocks. extras: rows of (kind, first token, end token, value).
    """

def keys_chain_encoded(seed: object, tokens: object, block_tokens: int, extras: Sequence[object]) -> Annotated[NDArray[numpy.uint8], dict(shape=(None, 32))]:
    """
    The same with extras encoded by the caller: rows of (block, bytes), ascending.
    """

def keys_chain_hashes(seed: object, hashes: Sequence[object]) -> Annotated[NDArray[numpy.uint8], dict(shape=(None, 32))]:
    """
    Keys of blocks that the engine has hashed itself, one bytes object a block.
    """

class IoEngine:
    """Batches of buffers to and from a row of equal files."""

    def __init__(self, kind: str, files: Sequence[int], file_bytes: int, regions: Sequence[Any], depth: int, pending_max: int, register_memory: bool) -> None: ...

    def submit(self, write: bool, offsets: list[int], buffers: list[Any], deadline_ns: int, background: bool) -> int:
        """
        A batch's number, or 0 if too many requests wait. A buffer may be a tuple of them: one extent, in order.
        """

    def reap(self) -> list[tuple[int, list[int] | None]]:
        """
        Ended batches with an errno a request, or None where all went well. Their buffers are quiet.
        """

    def cancel(self, batch: int) -> None: ...

    def close(self, limit_ns: int = 10000000000) -> bool:
        """
        Cancels what waits, and waits for what runs. False: a device did not answer within the limit; what it was asked for is not answered, and its memory is kept until the process ends. Keep the files open.
        """

    def features(self) -> dict[str, bool | str]: ...

    def stats(self) -> dict[str, int]: ...

    @property
    def event_fd(self) -> int: ...

def uring_refused() -> str | None:
    """Why io_uring cannot be used here, or None."""

def check_slots(digest: bytes, shard: int, part_bytes: Sequence[int], keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], checksums: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu', writable=False)], pages: list[Any], bodies: list[Any], tails: list[Any]) -> bytes:
    """
    A verdict a slot: 0 good, 1 the header is damaged or another slot's, 2 the payload does not verify. Payload i is bodies[i] then tails[i].
    """

def whole_records(framed: bytes) -> tuple[bytes, int]:
    """
    Of rows that each come behind their length (4 bytes), the whole records end to end; and how many were damaged.
    """

def find_records(stretch: memoryview, offset: int, stride: int) -> list[tuple[int, int, int, bytes]]:
    """
    (header's offset, payload bytes, sequence, record) of the slots whose headers lie at every stride-th byte.
    """

class Dirty(enum.IntEnum):
    ALL = 0

    FRESH = 1

    LOST = 2

class SlotTable:
    """
    One tier's slots: native/core/slot_table.hpp says what each verb promises.
    """

    def __init__(self, bytes: int, slab_bytes: int = 67108864, header_bytes: int = 0, policy: str = 'leaf_lru', hash_seed: int = 11400714819323198485, meta: object | None = None) -> None: ...

    @staticmethod
    def meta_bytes(bytes: int, slab_bytes: int, header_bytes: int = 0) -> int: ...

    def add_namespace(self, ns: int, digest: bytes, shards: Sequence[Sequence[int]]) -> None:
        """shards: the parts' bytes of each."""

    def drop_namespace(self, ns: int) -> int: ...

    def reserve(self, owner: int, ns: int, shard: int, keys: NDArray[numpy.uint8], parent: bytes | None = None, metas: Sequence[bytes] = [], in_place: bool = False, now: int = 0, lapse_after: int = 30000000000, priority: int = 0, end: bool = False, expected_return_ms: int = 0, position: int = 0, from_below: bool = False) -> tuple[NDArray[numpy.uint8], NDArray[numpy.uint64], NDArray[numpy.uint64]]:
        """
        Statuses (0 granted, 1 held, 2 pending, 3 full, 4 too large), tickets, payload offsets.
        """

    def publish_part(self, owner: int, ticket: int, part: int, checksum: int) -> int: ...

    def seal(self, owner: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], checksums: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> NDArray[numpy.uint8]:
        """An outcome a ticket: 0 ok, 1 stale, 2 bad input."""

    def abort(self, owner: int, ticket: int) -> int: ...

    def hold(self, owner: int, ns: int, shard: int, keys: NDArray[numpy.uint8], kind: int = 0, following: bool = False, now: int = 0, lapse_after: int = 60000000000, priority: int = 0, end: bool = False, expected_return_ms: int = 0, open_max: int = 0) -> tuple[int, NDArray[numpy.uint64], NDArray[numpy.uint64], NDArray[numpy.uint32]]:
        """
        The hold (0: nothing is here), and tickets, payload offsets and parts ready of the run.
        """

    def hold_slots(self, owner: int, tickets: NDArray[numpy.uint64]) -> tuple[int, NDArray[numpy.uint64], NDArray[numpy.uint64], NDArray[numpy.uint32]]: ...

    def release(self, owner: int, hold: int) -> int: ...

    def owner_gone(self, owner: int) -> None: ...

    def expire(self, now: int) -> None: ...

    def next_expiry(self) -> int | None: ...

    def holds_of(self, owner: int) -> int: ...

    def retire(self, slot: int) -> int: ...

    def retire_keys(self, ns: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> int: ...

    def find(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> NDArray[numpy.uint32]:
        """The slot of each key, 2**32-1 where it is not sealed here."""

    def longest(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> int:
        """How many keys are sealed before the first that is not."""

    def longest_each(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], per_chain: int) -> NDArray[numpy.uint32]:
        """longest() of each of the chains, which lie one after the other."""

    def shards_of(self, ns: int, key: bytes) -> int: ...

    def info(self, slot: int) -> dict[str, object] | None: ...

    def sealed(self) -> NDArray[numpy.uint64]:
        """Tickets of all sealed slots of open namespaces."""

    def slots_end(self) -> int: ...

    def take_evicted(self) -> NDArray[numpy.uint64]:
        """Tickets evicted since the last call, in order."""

    def dirty_victims(self, bytes: int, which: Dirty = Dirty.ALL) -> NDArray[numpy.uint64]: ...

    def mark_clean(self, ticket: int) -> None: ...

    def mark_lost(self, ticket: int) -> None: ...

    def mark_passed(self, ticket: int) -> None: ...

    def mark_dirty(self, ticket: int) -> None: ...

    def record(self, ticket: int, checksums: NDArray[numpy.uint64]) -> bytes | None:
        """
        The slot record; of a reserved slot, the one it will have when sealed with these checksums.
        """

    def recover(self) -> int: ...

    def quarantine_left(self) -> bool: ...

    def former_clients_gone(self) -> None: ...

    def restore(self, rows: bytes, epochs: int = 0) -> int: ...

    def epochs(self) -> int: ...

    def drain_changes(self, max: int) -> tuple[bytes, NDArray[numpy.uint64]]:
        """
        Records of slots sealed or marked, and payload offsets freed, since the last call.
        """

    def stats(self) -> dict[str, int]: ...

    def check_integrity(self) -> None: ...

class Policy:
    """
    An eviction order alone. Ids are dense numbers below ids_max; a parent of 2**32-1 is none.
    """

    def __init__(self, name: str, ids_max: int) -> None: ...

    def added(self, ids: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], parents: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], ghosts: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], priority: int = 0, end: bool = False, return_touches: int = 0) -> None:
        """
        As recent as the last touched(). One that is there already is given its parent anew.
        """

    def touched(self, chain: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], priority: int = 0, end: bool = False, return_touches: int = 0) -> None:
        """
        One batch, in chain order; an empty one starts a batch for what is added next.
        """

    def removed(self, ids: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def victims(self, count: int, refused: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> NDArray[numpy.uint32]:
        """
        Up to count ids in the order they should go, none of them refused. Refused ones that were met are set aside until released().
        """

    def released(self, ids: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def check_integrity(self) -> None: ...

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> str: ...

    @property
    def memory_bytes(self) -> int: ...

    def __len__(self) -> int: ...

def namespace_word(digest: bytes) -> int: ...

def node_word(id: bytes) -> int: ...

def rendezvous(thing: bytes, nodes: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], width: int) -> NDArray[numpy.uint32]: ...

def homes_of(keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], nodes: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> tuple[NDArray[numpy.int32], NDArray[numpy.int32]]: ...

def claim_buckets(keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> NDArray[numpy.uint8]: ...

def claim_digests(ns_word: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], shards: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], tiers: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> NDArray[numpy.uint64]: ...

class ClaimTable:
    """
    What nodes say that they hold. See native/directory/claims.hpp, claims_desk.hpp.
    """

    def __init__(self, claims_max: int = 16777216, hash_seed: int = 11400714819323198485) -> None: ...

    def add_node(self) -> int: ...

    def name_node(self, node: int, id: bytes) -> None: ...

    def answer_until(self, until: int, view: int, holders_max: int) -> None: ...

    def answer(self, message: bytes) -> bytes | None: ...

    def drop_node(self, node: int) -> int: ...

    def set_named(self, node: int, named: bool) -> None: ...

    def apply(self, node: int, ns_word: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], shards: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], tiers: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> tuple[int, int, int, int, int]: ...

    def drop_namespace(self, node: int, ns_word: int) -> int: ...

    def begin(self, node: int, buckets: int) -> None: ...

    def end(self, node: int, buckets: int) -> int: ...

    def locate(self, ns_word: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], holders_max: int, spread: int) -> tuple[NDArray[numpy.uint8], NDArray[numpy.uint16], NDArray[numpy.uint64], NDArray[numpy.uint8]]: ...

    def digests(self, node: int) -> NDArray[numpy.uint64]: ...

    def claims_of(self, node: int) -> int: ...

    def evicted_of(self, node: int) -> int: ...

    def __len__(self) -> int: ...

    @property
    def claims_max(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    def check_integrity(self) -> None: ...

class TableConfig:
    """
    One tier's table: bytes of its medium, slabs, headers, eviction policy.
    """

    def __init__(self, bytes: int, slab_bytes: int = 67108864, header_bytes: int = 0, policy: str = 'leaf_lru', hash_seed: int = 11400714819323198485) -> None: ...

    @property
    def bytes(self) -> int: ...

    @property
    def slab_bytes(self) -> int: ...

    @property
    def header_bytes(self) -> int: ...

    @property
    def policy(self) -> str: ...

class Hint:
    """
    What a caller tells about the future of the blocks it touches; zero: nothing said.
    """

    def __init__(self, family: int = 0, session: int = 0, turn: int = 0, expected_return_ms: int = 0, priority: int = 0, end: bool = False, position: int = 0, from_below: bool = False) -> None: ...

    @property
    def family(self) -> int: ...

    @property
    def session(self) -> int: ...

    @property
    def turn(self) -> int: ...

    @property
    def expected_return_ms(self) -> int: ...

    @property
    def priority(self) -> int: ...

    @property
    def end(self) -> bool: ...

    @property
    def position(self) -> int: ...

    @property
    def from_below(self) -> bool: ...

class HoldKind(enum.IntEnum):
    LEASE = 0

    VIEW = 1

    PIN = 2

class NeedKind(enum.IntEnum):
    ALL = 0

    LAST = 1

    STATE = 2

class Tier(enum.IntEnum):
    NONE = 0

    MEMORY = 1

    FILE = 2

    OBJECT = 3

class Outcome(enum.IntEnum):
    OK = 0

    STALE = 1

    BAD_INPUT = 2

class ReserveStatus(enum.IntEnum):
    GRANTED = 0

    HELD = 1

    PENDING = 2

    FULL = 3

    TOO_LARGE = 4

class MovePath(enum.IntEnum):
    GET_MAPPED = 0

    GET_TRANSFERRED = 1

    GET_GRPC = 2

    PUT_MAPPED = 3

    PUT_TRANSFERRED = 4

    PUT_GRPC = 5

    HOLD_MEMORY = 6

    HOLD_PARKED = 7

class WorkKind(enum.IntEnum):
    PROMOTE = 0

    WRITE_BEHIND = 1

    CORRUPT = 2

    PROBE = 3

class PacksGone(enum.IntEnum):
    FORGOTTEN = 0

    SWEPT = 1

    LOST = 2

class EventKind(enum.IntEnum):
    STORED = 0

    REMOVED = 1

    CLEARED = 2

META_BYTES_MAX: int = 1024

Raw: TypeAlias = Annotated[bytes, bytes]

class SlotRows:
    """Slots as arrays, one row a slot; checksums are concatenated."""

    @property
    def tickets(self) -> NDArray[numpy.uint64]: ...

    @property
    def keys(self) -> NDArray[numpy.uint8]: ...

    @property
    def parents(self) -> NDArray[numpy.uint8]: ...

    @property
    def ns(self) -> NDArray[numpy.uint32]: ...

    @property
    def shards(self) -> NDArray[numpy.uint16]: ...

    @property
    def states(self) -> NDArray[numpy.uint8]: ...

    @property
    def clean(self) -> NDArray[numpy.bool_]: ...

    @property
    def wanted(self) -> NDArray[numpy.bool_]: ...

    @property
    def offsets(self) -> NDArray[numpy.uint64]: ...

    @property
    def bytes(self) -> NDArray[numpy.uint64]: ...

    @property
    def positions(self) -> NDArray[numpy.uint32]: ...

    @property
    def holds(self) -> NDArray[numpy.uint32]: ...

    @property
    def checksum_counts(self) -> NDArray[numpy.uint32]: ...

    @property
    def checksums(self) -> NDArray[numpy.uint64]: ...

    @property
    def metas(self, /) -> list[Raw]: ...

class Work:
    """What the mover is asked to do."""

    @property
    def kind(self) -> int: ...

    @property
    def ns(self) -> int: ...

    @property
    def shard(self) -> int: ...

    @property
    def wanted_now(self) -> bool: ...

    @property
    def keys(self) -> NDArray[numpy.uint8]: ...

    @property
    def tiers(self) -> bytes: ...

    @property
    def ticket(self) -> int: ...

    @property
    def position(self) -> int: ...

class Event:
    """What was stored or removed; sequence numbers have no gaps."""

    @property
    def sequence(self) -> int: ...

    @property
    def kind(self) -> int: ...

    @property
    def ns(self) -> int: ...

    @property
    def shard(self) -> int: ...

    @property
    def tier(self) -> int: ...

    @property
    def key(self) -> bytes: ...

    @property
    def parent(self) -> bytes: ...

    @property
    def meta(self) -> bytes: ...

class FetchDone:
    """How a fetch ended: the run that is held, in chain order."""

    @property
    def token(self) -> int: ...

    @property
    def status(self) -> int: ...

    @property
    def field(self) -> str: ...

    @property
    def limit(self) -> int: ...

    @property
    def hold(self) -> int: ...

    @property
    def lease(self) -> int: ...

    @property
    def window_full(self) -> bool: ...

    @property
    def tickets(self) -> NDArray[numpy.uint64]: ...

    @property
    def offsets(self) -> NDArray[numpy.uint64]: ...

    @property
    def parts_ready(self) -> NDArray[numpy.uint32]: ...

    @property
    def tiers(self) -> bytes: ...

    @property
    def checksums(self) -> NDArray[numpy.uint64]: ...

class NodeCore:
    """A node's state and rules; thread-safe. See native/core/node_core.hpp."""

    def __init__(self, memory: TableConfig, file: TableConfig | None, *, meta: int, meta_bytes: int, incarnation: int, window_bytes: int = 268435456, reserve_lapse_ns: int = 30000000000, lease_max_ns: int = 60000000000, promote_retry_ns: int = 10000000000, keys_per_call_max: int = 65536, holds_per_owner_max: int = 65536, namespaces_max: int = 4096, parked_max: int = 4096, works_max: int = 16384, families_max: int = 1000, events_max: int = 65536, event_meta_bytes_max: int = 16777216, pinned_bytes_max: int = 0, held_bytes_max: int = 0, answer_bytes_max: int = 8388608, free_share: float = 0.25) -> None: ...

    @staticmethod
    def meta_bytes(memory: TableConfig) -> int: ...

    @staticmethod
    def meta_usable(memory: TableConfig, meta: int, meta_bytes: int) -> bool: ...

    @property
    def incarnation(self) -> int: ...

    @property
    def former_incarnation(self) -> int: ...

    @property
    def recovered(self) -> int: ...

    @property
    def window_bytes(self) -> int: ...

    def new_owner(self) -> int: ...

    def open_namespace(self, digest: bytes, tenant: int, block_tokens: int, shards: Sequence[Sequence[int]]) -> int: ...

    def drop_namespace(self, ns: int) -> bool: ...

    def lookup(self, ns: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], needs: Sequence[tuple[int, int, int]]) -> tuple[int, int, bytes, int]: ...

    def find(self, tier: int, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> NDArray[numpy.bool_]: ...

    def reserve(self, tier: int, owner: int, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], parent: bytes, metas: Sequence[bytes], hint: Hint, in_place: bool, now: int) -> tuple[int, NDArray[numpy.uint8], NDArray[numpy.uint64], NDArray[numpy.uint64]]: ...

    def publish_part(self, owner: int, ticket: int, part: int, checksum: int) -> int: ...

    def seal(self, tier: int, owner: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], checksums: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], now: int, path: int = 6, elapsed_ns: int = 0) -> NDArray[numpy.uint8]: ...

    def abort(self, tier: int, owner: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def hold(self, tier: int, owner: int, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> tuple[int, SlotRows]: ...

    def hold_slots(self, tier: int, owner: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> tuple[int, SlotRows]: ...

    def release(self, tier: int, owner: int, hold: int) -> int: ...

    def fetch(self, token: int, owner: int, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], kind: int, following: bool, hint: Hint, now: int, deadline: int, lease: int, held_open: bool = False) -> None: ...

    @property
    def completion_fd(self) -> int: ...

    def take_completions(self) -> list[FetchDone]: ...

    def fetched(self, ns: int, hint: Hint, blocks_asked: int, blocks_by_tier: tuple[int, int, int, int], blocks_failed: int, path: int, bytes: int, elapsed_ns: int) -> None: ...

    def put_took(self, path: int, bytes: int, elapsed_ns: int) -> None: ...

    def report_corrupt(self, owner: int, ticket: int) -> None: ...

    def owner_gone(self, owner: int) -> None: ...

    def tick(self, now: int) -> None: ...

    def next_deadline(self) -> int | None: ...

    @property
    def work_fd(self) -> int: ...

    def take_work(self, max: int) -> list[Work]: ...

    def promoted(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], now: int) -> None: ...

    def info(self, tier: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> SlotRows: ...

    def scan(self, tier: int, after: int, max: int) -> tuple[SlotRows, int]: ...

    def retire(self, tier: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], corrupt: bool = False) -> int: ...

    def retire_keys(self, ns: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> int: ...

    def dirty_victims(self, tier: int, bytes: int, which: Dirty = Dirty.ALL) -> NDArray[numpy.uint64]: ...

    def mark_clean(self, tier: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def mark_lost(self, tier: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def mark_dirty(self, tier: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def mark_passed(self, tier: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def recheck_clean(self, packs_below: bool) -> int: ...

    def encode_headers(self, tier: int, tickets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], checksums: Annotated[NDArray[numpy.uint64], dict(order='C', device='cpu', writable=False)], pages: object) -> bool: ...

    def restore(self, rows: bytes, epochs: int = 0) -> int: ...

    def file_epochs(self) -> int: ...

    def drain_changes(self, max: int) -> tuple[bytes, NDArray[numpy.uint64]]: ...

    def stats(self, tier: int) -> dict[str, int]: ...

    def check_integrity(self, tier: int) -> None: ...

    def quarantine_left(self) -> bool: ...

    def former_clients(self) -> list[tuple[int, int]]: ...

    def failed_read(self, ns: int, tier: int, blocks: int) -> None: ...

    def moved(self, from_tier: int, to_tier: int, blocks: int) -> None: ...

    def events_since(self, sequence: int, max: int) -> tuple[list[Event], bool]: ...

    @property
    def event_sequence(self) -> int: ...

    def counters(self) -> dict[str, Any]: ...

    def set_object_tier(self, blocks_max: int) -> None: ...

    def object_answers(self, answers: bool) -> None: ...

    def object_known(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> None: ...

    def object_gone(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], why: PacksGone) -> None: ...

    @property
    def object_blocks(self) -> int: ...

    def forget_probes(self) -> None: ...

    def held(self, ns: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> tuple[NDArray[numpy.uint64], NDArray[numpy.uint8]]: ...

    def held_in(self, tier: int, ns: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> NDArray[numpy.uint64]: ...

    def scan_held(self, after: int, max: int, ns: int = -1) -> tuple[int, NDArray[numpy.uint8], NDArray[numpy.uint32], NDArray[numpy.uint64], NDArray[numpy.uint8]]: ...

    def changes_since(self, sequence: int, max: int) -> tuple[int, bool, NDArray[numpy.uint8], NDArray[numpy.uint32], NDArray[numpy.uint32]]: ...

    def begun_since(self, sequence: int, max: int) -> tuple[int, NDArray[numpy.uint8], NDArray[numpy.uint32]]: ...

    @property
    def begun_sequence(self) -> int: ...

    def watch(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)]) -> int: ...

    def unwatch(self, watch: int) -> None: ...

    @property
    def watch_fd(self) -> int: ...

    def take_woken(self) -> list[tuple[int, bool]]: ...

    def namespace_digest(self, ns: int) -> bytes | None: ...

    @property
    def namespaces_end(self) -> int: ...

class Status(enum.IntEnum):
    OK = 0

    STALE_NAMESPACE = 1

    REJECTED = 2

    BAD_INPUT = 3

    DENIED = 4

    UNAVAILABLE = 6

    LATE = 7

    CANCELLED = 8

class Request:
    """
    A rare verb that a connection asks for; gone: the connection has ended.
    """

    @property
    def owner(self) -> int: ...

    @property
    def request(self) -> int: ...

    @property
    def method(self) -> int: ...

    @property
    def trusted(self) -> bool: ...

    @property
    def unanswered(self) -> bool: ...

    @property
    def gone(self) -> bool: ...

    @property
    def remote(self) -> bool: ...

    @property
    def uid(self) -> int: ...

    @property
    def token(self) -> int: ...

    @property
    def names(self) -> list[str]: ...

    @property
    def body(self) -> bytes: ...

class Tls:
    """What one end of TLS shows and believes; see native/tcp/tls.hpp."""

    def __init__(self, certificate: str = '', key: str = '', ca: str = '') -> None: ...

class Door:
    """The framed socket; see native/door/server.hpp."""

    def __init__(self, core: NodeCore, listener: int, payload_fd: int, payload_bytes: int, *, trusted_uids: Sequence[int], allowed_uids: Sequence[int] = [], anonymous_over_tcp: bool = False, certified_over_tcp: bool = False, connections_max: int = 1024, frame_bytes_max: int = 8388608, queue_bytes_max: int = 67108864, requests_max: int = 4096, requests_per_connection_max: int = 64, hold_wait_ms_max: int = 10000, hello_ms_max: int = 5000, stall_ms_max: int = 30000, spin_us_max: int = 100) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def listen_tcp(self, listener: int, tls: Tls | None = None) -> None: ...

    def renew_tls(self, tls: Tls | None) -> None: ...

    def set_bearers(self, tokens: Sequence[tuple[bytes, int]], certificates: Sequence[tuple[str, int]] = []) -> None: ...

    def allow(self, owner: int, ns: int) -> bool: ...

    def disallow(self, ns: int) -> None: ...

    def trust_until(self, until: int) -> None: ...

    def answer_locates(self, owner: int, method: int, claims: ClaimTable) -> None: ...

    def set_draining(self, draining: bool) -> None: ...

    @property
    def request_fd(self) -> int: ...

    def take_requests(self, max: int) -> list[Request]: ...

    def answer(self, owner: int, request: int, body: bytes) -> bool: ...

    def answered(self, owner: int) -> None: ...

    def answer_error(self, owner: int, request: int, status: int, field: str, reason: str, limit: int = 0) -> bool: ...

    def stats(self) -> dict[str, int]: ...

class PutOutcome(enum.IntEnum):
    STORED = 0

    HELD = 1

    PENDING = 2

    FULL = 3

    TOO_LARGE = 4

    LAPSED = 5

class Result:
    """
    What came of a call; see native/door/session.hpp. A miss is a shorter number.
    """

    @property
    def token(self) -> int: ...

    @property
    def status(self) -> int: ...

    @property
    def field(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def limit(self) -> int: ...

    @property
    def blocks(self) -> int: ...

    @property
    def blocks_corrupt(self) -> int: ...

    @property
    def window_full(self) -> bool: ...

    @property
    def bytes(self) -> int: ...

    @property
    def fetch_s(self) -> float: ...

    @property
    def hold(self) -> int: ...

    @property
    def outcomes(self, /) -> Raw: ...

    @property
    def tiers(self, /) -> Raw: ...

    @property
    def tickets(self) -> list[int]: ...

    @property
    def offsets(self) -> list[int]: ...

    @property
    def parts_ready(self) -> list[int]: ...

    @property
    def body(self, /) -> Raw: ...

class SessionInfo:
    """What the node said in its HELLO."""

    @property
    def trusted(self) -> bool: ...

    @property
    def session(self) -> int: ...

    @property
    def incarnation(self) -> int: ...

    @property
    def payload_bytes(self) -> int: ...

    @property
    def window_bytes(self) -> int: ...

    @property
    def keys_per_call_max(self) -> int: ...

    @property
    def frame_bytes_max(self) -> int: ...

    @property
    def lease_ms_max(self) -> int: ...

    @property
    def hold_wait_ms_max(self) -> int: ...

    @property
    def reserve_lapse_ms(self) -> int: ...

    @property
    def holds_per_connection_max(self) -> int: ...

    @property
    def meta_bytes_max(self) -> int: ...

class Reservation:
    """Slots to be filled part by part; ended by seal or abort."""

    @property
    def result(self) -> Result: ...

    @property
    def granted(self) -> list[int]: ...

    def array(self, index: int) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]: ...

    def write(self, part: int, addresses: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], lengths: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Result: ...

    def publish(self, part: int, deadline_s: float) -> Result: ...

    def seal(self, deadline_s: float) -> Result: ...

    def abort(self) -> None: ...

class Session:
    """
    A client's connection to the door of its node; see native/door/session.hpp.
    """

    def __init__(self, path: str = '', token: bytes = ..., connect_s: float = 5.0, workers: int = 1, verify: bool = True, *, host: str = '', port: int = 0, tls: Tls | None = None) -> None:
        """
        To the Unix socket `path`, or by TCP to `host`, a name or an address, and `port`. With `tls` the node's certificate must be for `host`. ConnectionError: not reached; PermissionError: not let in.
        """

    @property
    def info(self) -> SessionInfo: ...

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...

    def describe(self, ns: int, shards: Sequence[Sequence[int]]) -> None: ...

    def array(self, offset: int, bytes: int) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,), writable=False)]: ...

    def flush(self) -> None: ...

    def fetched(self, ns: int, hint: Hint, blocks_asked: int, blocks_by_tier: tuple[int, int, int, int], blocks_failed: int, bytes: int, elapsed_ns: int) -> None: ...

    def tell_call(self, method: int, body: bytes) -> None: ...

    def release(self, holds: Sequence[int]) -> None: ...

    def corrupt(self, tickets: Sequence[int]) -> None: ...

    def quiet(self, session: int, incarnation: int) -> None: ...

    def lookup(self, ns: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], needs: Sequence[tuple[int, int, int]], deadline_s: float) -> Result: ...

    def put(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], addresses: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], lengths: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], hint: Hint, deadline_s: float, parent: bytes = ..., metas: Sequence[bytes] = []) -> Result: ...

    def fetch(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], addresses: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], lengths: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], hint: Hint, wait_s: float, deadline_s: float, lease_s: float = 0.0, first_part: int = 0, end_part: int | None = None) -> Result: ...

    def hold(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], hint: Hint, wait_s: float, deadline_s: float) -> Result: ...

    def view(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], hint: Hint, wait_s: float, deadline_s: float, following: bool = False) -> Result: ...

    def call(self, method: int, body: bytes, deadline_s: float) -> Result: ...

    def reserve(self, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], hint: Hint, deadline_s: float, parent: bytes = ..., metas: Sequence[bytes] = []) -> Reservation: ...

    def submit_lookup(self, token: int, ns: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], needs: Sequence[tuple[int, int, int]], deadline_s: float) -> None: ...

    def submit_put(self, token: int, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], addresses: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], lengths: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], hint: Hint, deadline_s: float, parent: bytes = ..., metas: Sequence[bytes] = []) -> None: ...

    def submit_fetch(self, token: int, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], addresses: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], lengths: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], hint: Hint, wait_s: float, deadline_s: float, lease_s: float = 0.0, first_part: int = 0, end_part: int | None = None) -> None: ...

    def submit_hold(self, token: int, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], hint: Hint, wait_s: float, deadline_s: float) -> None: ...

    def submit_view(self, token: int, ns: int, shard: int, keys: Annotated[NDArray[numpy.uint8], dict(shape=(None, 32), order='C', device='cpu', writable=False)], hint: Hint, wait_s: float, deadline_s: float, following: bool = False) -> None: ...

    def submit_call(self, token: int, method: int, body: bytes, deadline_s: float) -> None: ...

    def cancel(self, token: int) -> None: ...

    @property
    def completion_fd(self) -> int: ...

    def take_completions(self) -> list[Result]: ...
