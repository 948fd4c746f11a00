"""Which of a port's addresses is chosen."""

from __future__ import annotations

import ipaddress

from transfer.rdma.gids import GidEntry, choose

IPV4 = ipaddress.IPv6Address("::ffff:10.0.0.1").packed
IPV4_LOCAL = ipaddress.IPv6Address("::ffff:169.254.3.4").packed
GLOBAL = ipaddress.IPv6Address("2001:db8::1").packed
LOCAL = ipaddress.IPv6Address("fe80::1").packed
V1, V2 = False, True


def chosen(*entries: tuple[bytes, bool, int]) -> int | None:
    made = [GidEntry(i, gid, v2, netdev) for i, (gid, v2, netdev) in enumerate(entries)]
    entry = choose(made, ethernet=True)
    return entry.index if entry is not None else None


def test_the_order_on_ethernet() -> None:
    best_first = [
        (IPV4, V2, 3),
        (GLOBAL, V2, 3),
        (IPV4_LOCAL, V2, 3),
        (LOCAL, V2, 3),
        (IPV4, V1, 3),
        (GLOBAL, V1, 3),
        (IPV4_LOCAL, V1, 3),
        (LOCAL, V1, 3),
    ]
    for i in range(len(best_first)):
        rest = best_first[i:]
        assert chosen(*reversed(rest)) == len(rest) - 1, rest[0]


def test_the_first_of_equals() -> None:
    assert chosen((LOCAL, V2, 3), (IPV4, V2, 3), (IPV4, V2, 3)) == 1


def test_what_cannot_be_used_is_not() -> None:
    assert chosen((IPV4, V2, 0), (bytes(16), V2, 3)) is None
    assert chosen((IPV4, V2, 0), (LOCAL, V1, 3)) == 1


def test_infiniband_takes_its_port_gid() -> None:
    entry = choose([GidEntry(0, LOCAL, V1, 0), GidEntry(1, GLOBAL, V1, 0)], ethernet=False)
    assert entry is not None and entry.index == 0
