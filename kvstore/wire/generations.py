"""Between pages of generations and bytes. Pure. What another node wrote is checked: ValueError names the field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.message import DecodeError

from kvstore.directory.base import ID_BYTES
from kvstore.directory.generations import Clears, Page
from kvstore.wire import peers

__all__ = ["answer_bytes", "answer_of", "page_bytes", "page_of"]

DIGEST_BYTES: Final = 32


def page_bytes(page: Page) -> bytes:
    return peers.PeerGenerationsRequest(first=page.first, last=page.last, rows=_told(page)).SerializeToString()


def page_of(body: bytes) -> Page:
    try:
        told = peers.PeerGenerationsRequest.FromString(body)
    except DecodeError as error:
        raise ValueError("body: not a message of this method") from error
    first, last = _digest("first", told.first), _digest("last", told.last)
    if first > last:
        raise ValueError("last: comes before first")
    return Page(first, last, _rows(told.rows, first, last))


def answer_bytes(page: Page) -> bytes:
    return peers.PeerGenerationsResponse(last=page.last, rows=_told(page)).SerializeToString()


def answer_of(asked: Page, body: bytes) -> Page:
    """What was answered to a page."""
    try:
        told = peers.PeerGenerationsResponse.FromString(body)
    except DecodeError as error:
        raise ValueError("body: not an answer of this method") from error
    last = _digest("last", told.last)
    if not asked.first <= last <= asked.last:
        raise ValueError("last: lies outside of what was asked")
    return Page(asked.first, last, _rows(told.rows, asked.first, last))


def _told(page: Page) -> list[peers.PeerClears]:
    return [
        peers.PeerClears(
            namespace=origin,
            floor=clears.floor,
            nodes=[node for node, _ in clears.by],
            counts=[count for _, count in clears.by],
        )
        for origin, clears in page.rows
    ]


def _rows(told: Iterable[peers.PeerClears], first: bytes, last: bytes) -> tuple[tuple[bytes, Clears], ...]:
    out = []
    for i, row in enumerate(told):
        origin = _digest(f"rows[{i}].namespace", row.namespace)
        if not first <= origin <= last:
            raise ValueError(f"rows[{i}].namespace: lies outside of what is told")
        if len(row.nodes) != len(row.counts) or any(len(node) != ID_BYTES for node in row.nodes):
            raise ValueError(f"rows[{i}].nodes: {ID_BYTES} bytes each, as many as counts")
        try:
            out.append((origin, Clears(row.floor, tuple(zip(row.nodes, row.counts, strict=True)))))
        except ValueError as error:
            raise ValueError(f"rows[{i}].{error}") from error
    return tuple(out)


def _digest(field: str, told: bytes) -> bytes:
    if len(told) != DIGEST_BYTES:
        raise ValueError(f"{field}: {len(told)} bytes, must be {DIGEST_BYTES}")
    return told
