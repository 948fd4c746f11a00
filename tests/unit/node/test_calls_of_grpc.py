"""What a gRPC call is taken for: whose certificate it showed, how long it may make the node wait, what it may store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from kvstore.config import LimitsConfig
from kvstore.errors import Rejected
from kvstore.node.grpc_door import _certificate_names
from kvstore.node.service import StoreService
from kvstore.wire import store


def test_names_of_a_certificate_old_and_new() -> None:
    """Alternative names first; authorities of long ago gave a common name only."""

    def names(**proven: list[bytes]) -> list[str]:
        return list(_certificate_names(SimpleNamespace(auth_context=lambda: proven)))  # type: ignore[arg-type]

    assert names() == []
    assert names(x509_common_name=[b"decode-1"]) == ["decode-1"]
    both = names(x509_common_name=[b"decode-1"], x509_subject_alternative_name=[b"one", b"two"])
    assert both == ["one", "two", "decode-1"]
    assert names(x509_common_name=[b"\xff"]) == ["\ufffd"]
    assert names(transport_security_type=[b"ssl"]) == []


@pytest.mark.parametrize(
    ("asked_ms", "left_s", "waits_s"),
    [
        (0, 100.0, 10.0),  # nothing said: what the node gives
        (60_000, 100.0, 10.0),
        (2_000, 100.0, 2.0),
        (0, 4.0, 2.0),  # half of the caller's time is for the bytes
        (3_000, 4.0, 2.0),
    ],
)
def test_how_long_a_get_may_wait(asked_ms: int, left_s: float, waits_s: float) -> None:
    service = StoreService.__new__(StoreService)
    service._host = SimpleNamespace(limits=LimitsConfig(hold_wait_ms_max=10_000))  # type: ignore[assignment]
    service._entrance = SimpleNamespace(time_left=lambda _context: left_s)  # type: ignore[assignment]
    assert service._wait_s(asked_ms, None) == waits_s  # type: ignore[arg-type]


async def test_a_put_that_began_before_a_drain_stores_nothing_after_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain ends with a look at everything: what came behind it would be lost with the node."""
    took: list[bytes] = []
    stream = SimpleNamespace(ended=False, write=took.append, finish=lambda: None, close=lambda: took.append(b"closed"))
    monkeypatch.setattr("kvstore.node.service.PutStream", lambda *_: stream)
    drain = SimpleNamespace(draining=False)
    service = StoreService.__new__(StoreService)
    service._stream_host = None  # type: ignore[assignment]
    service._handlers = SimpleNamespace(  # type: ignore[assignment]
        copies=SimpleNamespace(drain=drain), opened=lambda *_: None, prefix=lambda *_: None
    )

    async def messages() -> AsyncIterator[store.PutRequest]:
        yield store.PutRequest(data=store.PutData(payload=b"before"))
        drain.draining = True
        yield store.PutRequest(data=store.PutData(payload=b"after"))

    with pytest.raises(Rejected, match="draining"):
        await service._put(None, store.PutHeader(), messages(), None)  # type: ignore[arg-type]
    assert took == [b"before", b"closed"]
