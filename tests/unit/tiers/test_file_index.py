"""The checkpoint of the index: rows come back, damage costs rows or the index and nothing else."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import lmdb
import pytest

from kvstore.tiers import index_dump
from kvstore.tiers.file_index import EPOCHS_AHEAD, FileIndex, LeftIndex, read_left_index, split_records

TIER_BYTES = 1 << 30


def record(offset: int, seed: int, payload: int = 4096, epoch: int = 0) -> bytes:
    """A whole slot record of one part (docs/format/slot.md), made here by the format's words."""
    import xxhash

    rng = random.Random(seed)
    sequence = epoch << 32 | 1
    fixed = bytearray(struct.pack("<IHHIHHHHIQQQ", 0x53564B01, 1, 0, 160, 0, 1, 0, 0, 0, sequence, offset, payload))
    fixed += rng.randbytes(96)
    fixed += bytes(8)
    body = bytes(fixed) + rng.randbytes(8)
    check = xxhash.xxh3_64_intdigest(body)
    return body[:144] + struct.pack("<Q", check) + body[152:]


def rows(count: int) -> list[bytes]:
    return [record(4096 + i * 8192, i) for i in range(count)]


def test_rows_come_back(tmp_path: Path) -> None:
    every = rows(1000)
    index = FileIndex(tmp_path / "index", TIER_BYTES)
    index.apply([], b"".join(every[:600]), 7)
    index.apply([4096, 4096 + 8192], b"".join(every[600:]), 9)
    index.close()
    assert read_left_index(tmp_path / "index") == LeftIndex(b"".join(every[2:]), 9)


def test_a_slot_that_was_freed_and_taken_again_is_there(tmp_path: Path) -> None:
    """In one transaction: what is freed goes first."""
    former, present = record(4096, 1), record(4096, 2)
    index = FileIndex(tmp_path / "index", TIER_BYTES, former)
    index.apply([4096], present, 5)
    index.close()
    assert read_left_index(tmp_path / "index") == LeftIndex(present, 5)


def test_what_a_killed_process_had_begun_is_in_nobodys_way(tmp_path: Path) -> None:
    half = tmp_path / "index.new"
    half.mkdir()
    (half / "data.mdb").write_bytes(b"half an index")
    FileIndex(tmp_path / "index", TIER_BYTES, rows(1)[0]).close()
    assert read_left_index(tmp_path / "index") == LeftIndex(rows(1)[0], 0)
    assert not half.exists()


def test_a_reader_that_died_has_told_nothing() -> None:
    framed = b"".join(struct.pack("<I", len(row)) + row for row in rows(3))
    epochs = bytes(range(index_dump.EPOCHS_BYTES))
    whole = index_dump.MAGIC + framed + index_dump.END + struct.pack("<Q", len(framed)) + epochs
    assert index_dump.unframe(whole) == (framed, epochs, True)
    for cut in range(len(whole)):
        assert index_dump.unframe(whole[:cut]) == (b"", bytes(len(epochs)), False), cut
    lost = index_dump.MAGIC + framed + index_dump.END + struct.pack("<Q", len(framed) - 1) + epochs
    assert not index_dump.unframe(lost)[2], "a row was lost on the way"
    assert not index_dump.unframe(b"X" + whole[1:])[2]


def test_a_fresh_index_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    every = rows(10)
    FileIndex(tmp_path / "index", TIER_BYTES, b"".join(every)).close()
    FileIndex(tmp_path / "index", TIER_BYTES, b"".join(every[:3])).close()
    assert read_left_index(tmp_path / "index") == LeftIndex(b"".join(every[:3]), 0)


def test_nothing_there_is_no_index(tmp_path: Path) -> None:
    assert read_left_index(tmp_path / "index") is None


def test_split_stops_at_what_cannot_be() -> None:
    every = rows(3)
    assert [row for _, row in split_records(b"".join(every))] == every
    assert [offset for offset, _ in split_records(b"".join(every))] == [4096, 12288, 20480]
    assert len(list(split_records(b"".join(every)[:-1]))) == 2
    assert list(split_records(bytes(1000))) == []
    short = bytearray(b"".join(every))
    struct.pack_into("<I", short, 8, 151)  # less than any record has
    assert list(split_records(bytes(short))) == []


def test_a_full_map_is_an_error_and_not_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.tiers.file_index.MAP_BYTES_MIN", 1 << 20)
    index = FileIndex(tmp_path / "index", 1 << 20)
    with pytest.raises(OSError, match="MDB_MAP_FULL"):
        index.apply([], b"".join(rows(20_000)), 2)
    index.apply([], b"".join(rows(10)), 3)
    index.close()


@pytest.mark.parametrize(("tier_bytes", "map_bytes"), [(1 << 20, 256 << 20), (16 << 30, 2 << 30), (1 << 40, 64 << 30)])
def test_the_index_of_a_large_tier_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier_bytes: int, map_bytes: int
) -> None:
    """An eighth of the tier, 1 KiB for the smallest slot and its header; of small ones and the largest, limits."""
    opened: list[int] = []
    really = lmdb.open
    monkeypatch.setattr(
        "kvstore.tiers.file_index.lmdb.open",
        lambda path, map_size, **rest: opened.append(map_size) or really(path, map_size=map_size, **rest),
    )
    FileIndex(tmp_path / "not" / "yet" / "index", tier_bytes).close()
    assert opened == [map_bytes]


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bits_cost_rows_or_the_index(tmp_path: Path, seed: int) -> None:
    """Whatever is altered in the file, this process lives, and every row that is handed on is one that was written."""
    every = rows(400)
    FileIndex(tmp_path / "index", TIER_BYTES, b"".join(every)).close()
    path = tmp_path / "index" / "data.mdb"
    raw = bytearray(path.read_bytes())
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 8, 200))):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    left = read_left_index(tmp_path / "index")
    if left is not None:
        assert {row for _, row in split_records(left.records)} <= set(every)
        assert sum(len(row) for _, row in split_records(left.records)) == len(left.records)
        assert left.epochs in {0, EPOCHS_AHEAD}  # what was said, or what the rows say; never what flipped bits say


@pytest.mark.parametrize("row", [None, b"", bytes(16), b"\x09" + bytes(15)], ids=["none", "empty", "zeros", "damaged"])
def test_without_a_row_of_epochs_the_records_say_as_much_as_they_can(tmp_path: Path, row: bytes | None) -> None:
    """As an index of an older program has none: then its latest record, and some more."""
    every = [record(4096 + i * 8192, i, epoch=40 + i) for i in range(3)]
    FileIndex(tmp_path / "index", TIER_BYTES, b"".join(every), 7).close()
    with lmdb.open(str(tmp_path / "index"), lock=False) as env, env.begin(write=True) as txn:
        txn.delete(b"\xff" * 8)
        if row:
            txn.put(b"\xff" * 8, row)
    assert read_left_index(tmp_path / "index") == LeftIndex(b"".join(every), 42 + EPOCHS_AHEAD)


def test_epochs_end_where_their_word_does(tmp_path: Path) -> None:
    FileIndex(tmp_path / "index", TIER_BYTES, b"", (1 << 32) + 5).close()
    assert read_left_index(tmp_path / "index") == LeftIndex(b"", (1 << 32) - 1)


def test_a_torn_file_is_dropped(tmp_path: Path) -> None:
    FileIndex(tmp_path / "index", TIER_BYTES, b"".join(rows(400))).close()
    path = tmp_path / "index" / "data.mdb"
    path.write_bytes(path.read_bytes()[:5000])
    assert read_left_index(tmp_path / "index") is None
