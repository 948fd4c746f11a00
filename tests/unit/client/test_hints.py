"""Hints as numbers, and addresses."""

from __future__ import annotations

import numpy as np
import pytest

from kvstore.client.address import TcpAddress, UnixAddress, parse
from kvstore.client.hints import NO_HINTS, Hints, label_id, to_message, to_wire
from kvstore.client.steps import WireHint

KEYS = np.arange(6 * 32, dtype=np.uint8).reshape(6, 32)


def family(row: int) -> int:
    return int.from_bytes(KEYS[row, :8].tobytes(), "little")


def test_a_chain_from_its_start_names_its_family() -> None:
    assert to_wire(NO_HINTS, KEYS, 4, 0) == WireHint(family=family(3))
    assert to_wire(NO_HINTS, KEYS[:2], 4, 0) == WireHint(family=family(1)), "shorter than family_blocks: its last block"
    assert to_wire(NO_HINTS, KEYS, 4, 7) == WireHint(position=7), "its start is not known"
    assert to_wire(NO_HINTS, KEYS[:0], 4, 0) == WireHint()
    assert to_wire(Hints(family=9), KEYS, 4, 0).family == 9


def test_all_hints_travel() -> None:
    hints = Hints(session="chat", turn=3, end=True, expected_return_s=1.5, priority=-1, family="system prompt")
    wire = WireHint(label_id("system prompt"), label_id("chat"), 3, 1500, -1, True, 2, "system prompt")
    assert to_wire(hints, KEYS, 4, 2) == wire
    message = to_message(hints)
    assert (message.family, message.session, message.turn) == ("system prompt", "chat", 3)
    assert (message.end, message.expected_return_ms, message.priority) == (True, 1500, -1)
    numbers = to_message(Hints(session=5, family=6))
    assert (numbers.family_id, numbers.session_id, numbers.family, numbers.session) == (6, 5, "", "")


def test_labels_are_the_same_number_everywhere() -> None:
    """The first 8 bytes of SHA-256("chat"), little-endian: a caller in another language makes the same."""
    assert label_id("chat") == int.from_bytes(bytes.fromhex("31e06f7d89feb99a"), "little")
    assert label_id("") == 0
    assert label_id(7) == 7


def test_a_place_further_on_in_the_same_chain() -> None:
    assert WireHint(family=1, position=2).at(3) == WireHint(family=1, position=5)
    hint = WireHint(family=1)
    assert hint.at(0) is hint


def test_addresses() -> None:
    assert parse("unix:/run/kv.sock") == UnixAddress("/run/kv.sock")
    assert parse("localhost:7401") == TcpAddress("localhost", 7401)
    assert parse("[::1]:7401") == TcpAddress("::1", 7401)


@pytest.mark.parametrize(
    "address", ["", "unix:", "unix:a\0b", "host", "host:", ":1", "host:0", "host:65536", "host:x", "http://host:1"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"^address: "):
        parse(address)


def test_a_label_has_a_length() -> None:
    assert Hints(family="x" * 255, session="é" * 127).family
    for bad in ({"family": "x" * 256}, {"session": "é" * 128}):
        with pytest.raises(ValueError, match=rf"hints\.{next(iter(bad))}: longer than 255 bytes"):
            Hints(**bad)  # type: ignore[arg-type]
