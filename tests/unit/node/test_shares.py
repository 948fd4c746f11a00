"""A tenant's share of a limit: what one may take, what is left to the others, who has no share."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.errors import Rejected
from kvstore.node.auth import Access, Peer, several_tenants
from kvstore.node.shares import Shares, share
from kvstore.security import SecurityConfig

ACME, ZEBRA, OTHER = (frozenset({name}) for name in ("acme", "zebra", "other"))


def taken(shares: Shares, who: frozenset[str] | None) -> int:
    """How many more it takes until it is refused."""
    count = 0
    while count < 10_000:
        try:
            shares.take(who)
        except Rejected as error:
            assert error.limit == "streams_max" and str(error).startswith("streams_max: ")
            return count
        count += 1
    raise AssertionError("never refused")


def test_each_leaves_a_quarter_of_what_the_others_have_left() -> None:
    shares = Shares("streams_max", 64, lambda: True)
    assert [taken(shares, who) for who in (ACME, ZEBRA, OTHER)] == [48, 12, 3]
    assert taken(shares, ACME) == 0
    shares.give(ACME)
    # One place is free, but both have more than three quarters of what the others leave them now.
    assert [taken(shares, who) for who in (ZEBRA, ACME, frozenset({"new"}))] == [0, 0, 2]
    for _ in range(47):
        shares.give(ACME)
    assert taken(shares, ZEBRA) == 45 - 12  # three quarters of the 59 that the two small ones leave


def test_who_may_use_every_tenant_has_no_share_and_counts_as_another() -> None:
    shares = Shares("streams_max", 64, lambda: True)
    for _ in range(32):
        shares.take(None)
    assert taken(shares, ACME) == 24
    assert taken(shares, None) == 8


def test_where_there_is_one_tenant_it_has_it_all() -> None:
    several = False
    shares = Shares("streams_max", 64, lambda: several)
    assert taken(shares, ACME) == 64
    several = True  # an access file was read again: who is above the share takes no more, and loses nothing
    for _ in range(10):
        shares.give(ACME)
    assert taken(shares, ACME) == 0
    assert taken(shares, ZEBRA) == 8


def test_what_ends_is_given_back_however_it_ends() -> None:
    shares = Shares("streams_max", 1, lambda: True)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), shares.taken(ACME):
            raise ZeroDivisionError
    assert taken(shares, ACME) == 1


@pytest.mark.parametrize(
    ("most", "others", "may"), [(1, 0, 1), (2, 0, 2), (4, 0, 3), (4, 3, 1), (4, 9, 0), (64, 0, 48)]
)
def test_shares_of_small_limits(most: int, others: int, may: int) -> None:
    assert share(most, others) == may


def access(*tenants: frozenset[str] | None) -> Access:
    tokens = tuple((bytes([i]) * 32, Peer(str(i), each)) for i, each in enumerate(tenants))
    return Access(tokens[:1], {peer.name: peer for _, peer in tokens[1:]})


@pytest.mark.parametrize(
    ("security", "given", "several"),
    [
        (SecurityConfig(), access(), False),
        (SecurityConfig(anonymous_tenants=("a", "b")), access(), True),
        (SecurityConfig(access_file=Path("f")), access(ACME, ACME), False),
        (SecurityConfig(access_file=Path("f")), access(ACME, None), False),
        (SecurityConfig(access_file=Path("f")), access(ACME, ZEBRA), True),
        (SecurityConfig(access_file=Path("f")), access(ACME | ZEBRA), True),
        (SecurityConfig(access_file=Path("f"), allowed_uids=(7,)), access(ACME), True),
    ],
)
def test_tenants_are_told_apart_where_the_settings_name_several(
    security: SecurityConfig, given: Access, several: bool
) -> None:
    assert several_tenants(security, given) is several
