"""READ and WRITE between two processes bring the bytes, and what was not given is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("pyverbs.device", reason="no pyverbs here: make setup-rdma", exc_type=ImportError)

from tests.rdma.far_end import pattern
from tests.rdma.rails import Rail
from tests.rdma.verbs import READ, WRITE, End, both_ends

SIZE = (2 << 20) + 4096
WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Connected:
    near: End
    process: subprocess.Popen[str]

    def heard(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def digest(self) -> str:
        self.tell("digest")
        return str(self.heard())

    def tell(self, something: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(something) + "\n")
        self.process.stdin.flush()


@pytest.fixture
def connected(rail: Rail) -> Iterator[Connected]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.rdma.far_end", str(rail.number), str(SIZE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    both = Connected(End(rail, rail.near, SIZE), process)
    try:
        card = both.heard()
        both.tell(both.near.card())
        both.near.join(card)
        assert both.heard() == "joined"
        yield both
    finally:
        both.near.close()
        process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0


def test_both_ways_at_odd_sizes_and_offsets(connected: Connected) -> None:
    """One process for all sizes: to start an interpreter is what takes the time here."""
    near, theirs = connected.near, bytearray(pattern(SIZE))
    for number, (length, ours_at, theirs_at) in enumerate(
        [(1, 7, 13), (4095, 1, 3), (4096, 4096, 0), (4097, 5, 4093), ((2 << 20) + 1, 3, 4095)]
    ):
        near.content[:] = bytes(SIZE)
        near.post(READ, ours_at, length, theirs_at, number)
        assert near.completions(1, WITHIN_S) == [(number, "SUCCESS")]
        landed = bytearray(SIZE)
        landed[ours_at : ours_at + length] = theirs[theirs_at : theirs_at + length]
        assert near.content == landed

        near.content[:] = hashlib.shake_128(b"near %d" % number).digest(SIZE)
        near.post(WRITE, ours_at, length, theirs_at, number)
        assert near.completions(1, WITHIN_S) == [(number, "SUCCESS")]
        theirs[theirs_at : theirs_at + length] = near.content[ours_at : ours_at + length]
        assert connected.digest() == hashlib.sha256(theirs).hexdigest()


@pytest.mark.parametrize(
    ("length", "theirs_at", "wrong"), [(64, 0, 0x5A), (64, SIZE - 63, 0), (64, -1, 0)], ids=["key", "end", "start"]
)
@pytest.mark.parametrize("opcode", [READ, WRITE], ids=["read", "write"])
def test_what_was_not_given_is_refused(rail: Rail, opcode: int, length: int, theirs_at: int, wrong: int) -> None:
    with both_ends(rail, SIZE) as (near, far):
        near.content[:] = b"\xff" * SIZE
        far.content[:] = pattern(SIZE)
        for number in range(2):
            near.post(opcode, 0, length, theirs_at, number, key=near.other["key"] ^ wrong)
        assert near.completions(2, WITHIN_S) == [(0, "REM_ACCESS_ERR"), (1, "WR_FLUSH_ERR")]
        assert (near.state(), far.state()) == ("ERR", "ERR")
        assert near.content == b"\xff" * SIZE
        assert far.content == pattern(SIZE)
