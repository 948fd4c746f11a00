"""Pages of generations cross as they are, and what does not read well is refused by field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.directory.generations import FIRST, LAST, Clears, Page
from kvstore.wire import generations as wire
from kvstore.wire import peers

NODE = b"n" * 16
DIGESTS = st.binary(min_size=32, max_size=32)
NODES = st.binary(min_size=16, max_size=16)
CLEARS = st.builds(
    lambda floor, by: Clears(floor, tuple(sorted(by.items()))),
    st.integers(0, 100),
    st.dictionaries(NODES, st.integers(1, 1 << 20), max_size=3),
)


@given(st.dictionaries(DIGESTS, CLEARS, max_size=5))
def test_pages_cross(rows: dict[bytes, Clears]) -> None:
    page = Page(FIRST, LAST, tuple(sorted(rows.items())))
    assert wire.page_of(wire.page_bytes(page)) == page
    assert wire.answer_of(page, wire.answer_bytes(page)) == page


@given(st.binary(max_size=200))
def test_junk_is_a_value_error(junk: bytes) -> None:
    for read in (wire.page_of, lambda body: wire.answer_of(Page(FIRST, LAST), body)):
        try:
            read(junk)
        except ValueError:
            continue


def row(**told: object) -> peers.PeerClears:
    fields: dict[str, object] = {"namespace": b"d" * 32, "floor": 1, "nodes": [NODE], "counts": [1], **told}
    return peers.PeerClears(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (peers.PeerGenerationsRequest(first=b"x", last=LAST), "first: 1 bytes"),
        (peers.PeerGenerationsRequest(first=FIRST, last=b""), "last: 0 bytes"),
        (peers.PeerGenerationsRequest(first=LAST, last=FIRST), "last: comes before"),
        (peers.PeerGenerationsRequest(first=FIRST, last=LAST, rows=[row(namespace=b"")]), r"rows\[0\].namespace"),
        (peers.PeerGenerationsRequest(first=LAST, last=LAST, rows=[row()]), "outside"),
        (peers.PeerGenerationsRequest(first=FIRST, last=LAST, rows=[row(), row(nodes=[b"n"])]), r"rows\[1\].nodes"),
        (peers.PeerGenerationsRequest(first=FIRST, last=LAST, rows=[row(counts=[])]), r"rows\[0\].nodes"),
        (peers.PeerGenerationsRequest(first=FIRST, last=LAST, rows=[row(counts=[0])]), r"rows\[0\].counts"),
        (peers.PeerGenerationsRequest(first=FIRST, last=LAST, rows=[row(floor=1 << 40)]), r"rows\[0\].generation"),
    ],
)
def test_what_does_not_read_well_is_refused(request_: peers.PeerGenerationsRequest, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        wire.page_of(request_.SerializeToString())


def test_an_answer_is_about_what_was_asked() -> None:
    asked = Page(FIRST, b"c" * 32)
    beyond = peers.PeerGenerationsResponse(last=LAST).SerializeToString()
    with pytest.raises(ValueError, match="outside"):
        wire.answer_of(asked, beyond)
    row_beyond = peers.PeerGenerationsResponse(last=b"c" * 32, rows=[row()]).SerializeToString()
    with pytest.raises(ValueError, match="outside"):
        wire.answer_of(asked, row_beyond)
