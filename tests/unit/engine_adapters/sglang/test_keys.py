"""A page is found by its own hash, whatever part of the prompt a call begins with."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from engine_adapters.sglang.keys import event_hash, run_of
from kvstore.identity import chain_keys_from_hashes

SEED = bytes(range(32))
HASHES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(6)]


class Space:
    """As much of a namespace as keys need: its seed, which a clear changes."""

    def __init__(self, seed: bytes = SEED) -> None:
        self.seed = seed

    def chain_of_hashes(self, hashes: Any, *, parent: Any = None) -> Any:
        return chain_keys_from_hashes(parent or self.seed, hashes)


def run(hashes: list[str], before: list[str] | None, seed: bytes = SEED) -> Any:
    return run_of(Space(seed), hashes, before)  # type: ignore[arg-type]


def test_the_same_page_has_the_same_key_from_wherever_a_call_begins() -> None:
    whole = run(HASHES, [])
    for first in range(1, 6):
        for before in (HASHES[:first], None, []):
            assert (run(HASHES[first:], before).keys == whole.keys[first:]).all()
    assert len({row.tobytes() for row in whole.keys}) == 6


def test_what_is_before_gives_parent_and_position() -> None:
    whole, cut = run(HASHES, []), run(HASHES[4:], HASHES[:4])
    assert (whole.parent, whole.position) == (None, 0)
    assert (cut.parent, cut.position) == (whole.keys[3].tobytes(), 4)
    assert run(HASHES[4:], None)[1:] == (None, 0)


def test_a_cleared_namespace_has_other_keys() -> None:
    assert not (run(HASHES, []).keys == run(HASHES, [], bytes(32)).keys).all(axis=1).any()


def test_hashes_that_are_no_hex_have_keys_and_no_page_is_without() -> None:
    assert run(["page/7:draft"], []).keys.shape == (1, 32)
    with pytest.raises(ValueError, match="hash of 0 bytes"):
        run([""], [])
    with pytest.raises(ValueError, match="hash of 65 bytes"):
        run(["z" * 65], [])


def test_events_call_a_page_by_its_first_eight_bytes_signed() -> None:
    assert event_hash("00000000000000ff" + "11" * 24) == 255
    assert event_hash("ffffffffffffffff" + "00" * 24) == -1
    page = hashlib.sha256(b"page").hexdigest()
    wanted = int(page[:16], 16)
    assert event_hash(page) == (wanted if wanted < 2**63 else wanted - 2**64)


def test_a_name_that_is_no_such_hash_is_told_as_it_is() -> None:
    assert event_hash("page-1") == b"page-1"
