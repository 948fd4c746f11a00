"""Offers: one form each, parsed with bounds; and where a process says that it runs."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transfer.offers import (
    FABRICS_MAX,
    LACKS_MAX,
    OFFER_BYTES_MAX,
    ROUTES_MAX,
    TRUSTED_MAX,
    Carrier,
    Home,
    Lack,
    Offer,
    OfferInvalid,
    Route,
    home_of,
    parse_offer,
)

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
CARRIERS = st.sampled_from(Carrier)
HOMES = st.builds(Home, st.binary(min_size=16, max_size=16), U64, U64, U64, U64, U32, U32)


# At most 64 bytes of what is printable, which is the least of the limits.
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=16)
OFFERS = st.builds(
    Offer,
    HOMES,
    st.lists(st.builds(Route, CARRIERS, TEXTS), max_size=ROUTES_MAX).map(tuple),
    st.lists(st.builds(Lack, CARRIERS, TEXTS), max_size=LACKS_MAX).map(tuple),
    st.lists(TEXTS, max_size=FABRICS_MAX).map(tuple),
    st.lists(U32, max_size=TRUSTED_MAX).map(tuple),
)
SAMPLE = Offer(
    Home(bytes(range(16)), 1, 2, 3, 4, 5, 6),
    (Route(Carrier.LOCAL, "unix:/run/k.sock"), Route(Carrier.TCP, "tcp://[::1]:7")),
    (Lack(Carrier.RDMA, "pyverbs missing"),),
    ("roce",),
    (0, 1000),
)


@given(OFFERS)
def test_an_offer_arrives_as_it_was(offer: Offer) -> None:
    data = offer.encode()
    assert len(data) <= OFFER_BYTES_MAX
    assert parse_offer(data) == offer == parse_offer(memoryview(data))
    for cut in (data[:-1], data + b"\0"):
        with pytest.raises(OfferInvalid):
            parse_offer(cut)


def refused_or_canonical(data: bytes) -> None:
    try:
        offer = parse_offer(data)
    except OfferInvalid as error:
        assert str(error).isprintable()
    else:
        assert offer.encode() == data


@given(st.binary(max_size=400))
@example(b"KVOF\1" + bytes(63))
def test_any_bytes_are_refused_or_canonical(data: bytes) -> None:
    refused_or_canonical(data)
    refused_or_canonical(b"KVOF\1" + data)


@given(
    OFFERS, st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 80)
)
def test_damaged_offers_are_refused_or_canonical(offer: Offer, damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(offer.encode())
    for at, value in damage:
        data[at % len(data)] = value
    refused_or_canonical(bytes(data))
    refused_or_canonical(bytes(data[: len(data) - cut]))


def test_what_is_wrong_is_named() -> None:
    good = SAMPLE.encode()
    for data, word in [
        (b"", "0 bytes"),
        (good + bytes(OFFER_BYTES_MAX), "bytes, which is not"),
        (b"KVGR" + good[4:], "not an offer"),
        (good[:4] + b"\2" + good[5:], "version 2"),
        (good[:9] + b"\1" + good[10:], "malformed"),
        (good[:10] + b"\1" + good[11:], "malformed"),
        (good[:8] + b"\xff" + good[9:], "cut short"),
        (good[:-1], "cut short"),
        (good + b"x", "behind its end"),
        (good.replace(b"unix", b"un\nx"), "printable"),
        (good.replace(b"unix", b"un\xffx"), "UTF-8"),
        (good.replace(b"\x01\x10\x00unix", b"\x09\x10\x00unix"), "Carrier"),
        (good.replace(b"\x00\x04\x00roce", b"\x01\x04\x00roce"), "fabric"),
    ]:
        with pytest.raises(OfferInvalid, match=word):
            parse_offer(data)


def test_a_message_of_this_version_stays_readable() -> None:
    """What an older process sends: the bytes of docs/format/offer.md, written out by hand."""
    texts = b"\x01\x10\x00unix:/run/k.sock\x03\x0d\x00tcp://[::1]:7\x02\x0f\x00pyverbs missing\x00\x04\x00roce"
    head = struct.pack("<4sBBBBBBH16sQQQQII", b"KVOF", 1, 2, 1, 1, 2, 0, 0, bytes(range(16)), 1, 2, 3, 4, 5, 6)
    assert SAMPLE.encode() == head + struct.pack("<II", 0, 1000) + texts


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("routes", {"routes": (Route(Carrier.TCP, "x"),) * (ROUTES_MAX + 1)}),
        ("lacks", {"lacks": (Lack(Carrier.TCP, "x"),) * (LACKS_MAX + 1)}),
        ("fabrics", {"fabrics": ("x",) * (FABRICS_MAX + 1)}),
        ("trusted_uids", {"trusted_uids": (0,) * (TRUSTED_MAX + 1)}),
        ("texts", {"fabrics": ("",)}),
        ("texts", {"fabrics": ("é" * 33,)}),
        ("texts", {"lacks": (Lack(Carrier.TCP, "a\x1b[2J"),)}),
        ("texts", {"routes": (Route(Carrier.TCP, "\ud800"),)}),
    ],
)
def test_limits_are_kept_when_offering_too(name: str, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=name):
        Offer(Home(), **fields)  # type: ignore[arg-type]


# -- homes


def test_this_process_knows_its_home() -> None:
    home = home_of()
    assert home == home_of() and home.same_process(home) and home.same_network(home)
    assert (home.pid, home.uid) == (os.getpid(), os.getuid())
    code = "from transfer.offers import *; import sys; sys.stdout.write(Offer(home_of()).encode().hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    other = parse_offer(bytes.fromhex(done.stdout)).home
    assert other.same_files(home) and other.same_network(home) and not other.same_process(home)


def test_what_the_kernel_does_not_tell_equals_nothing(tmp_path: Path) -> None:
    unknown = home_of(tmp_path)
    assert (unknown.boot, unknown.mount_namespace, unknown.started) == (bytes(16), 0, 0)
    assert not unknown.same_kernel(unknown)
    known = Home(b"b" * 16)
    assert known.same_kernel(known)
    assert not (known.same_files(known) or known.same_network(known) or known.same_process(known))


def test_a_home_is_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("00112233-4455-6677-8899-aabbccddeeff\n")
    (tmp_path / "self/ns").mkdir(parents=True)
    for number, name in enumerate(("pid", "mnt", "net"), start=11):
        (tmp_path / "self/ns" / name).symlink_to(f"{name}:[{number}]")
    rest = " ".join(str(field) for field in range(4, 50))
    (tmp_path / "self/stat").write_text(f"7 (a ) odd (name) R {rest}\n")
    home = home_of(tmp_path)
    assert home == Home(bytes.fromhex("00112233445566778899aabbccddeeff"), 11, 12, 13, 22, os.getpid(), os.getuid())


def test_a_pid_used_again_is_another_process() -> None:
    boot = b"b" * 16
    first = Home(boot, 1, 2, 3, started=100, pid=7)
    assert not first.same_process(Home(boot, 1, 2, 3, started=200, pid=7))
    assert not first.same_process(Home(boot, 9, 2, 3, started=100, pid=7)), "a pid of another namespace"
    assert not first.same_files(Home(boot, 1, 9, 3)) and first.same_network(Home(boot, 1, 9, 3))
    assert not first.same_network(Home(boot, 1, 2, 9))
    assert not first.same_kernel(Home(b"c" * 16, 1, 2, 3))
