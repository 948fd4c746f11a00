"""What a gRPC call is taken for: whose certificate it showed, and how long it may make the node wait."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kvstore.config import LimitsConfig
from kvstore.node.grpc_door import _certificate_names
from kvstore.node.service import StoreService


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
