"""Where the framed door listens: what it replaces, what it leaves alone, who may connect."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kvstore import native
from kvstore.config import LimitsConfig
from kvstore.errors import Misconfigured
from kvstore.node.auth import TRUSTED, Denied, Guard, Peer
from kvstore.node.door import NODE, Bearers, FramedDoor, listen
from kvstore.node.handlers import Handlers
from kvstore.node.peer_desk import PeerDesk
from kvstore.node.tls import Certificates
from kvstore.security import SecurityConfig
from kvstore.wire import store


def test_only_its_user_may_connect_unless_others_are_allowed(tmp_path: Path) -> None:
    with listen(tmp_path / "a", for_others=False), listen(tmp_path / "b", for_others=True):
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "b").stat().st_mode & 0o777 == 0o666


def test_a_socket_that_nobody_answers_is_replaced(tmp_path: Path) -> None:
    listen(tmp_path / "s", for_others=False).close()
    assert (tmp_path / "s").exists()
    with listen(tmp_path / "s", for_others=False), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))


def test_a_socket_that_somebody_answers_is_left_alone(tmp_path: Path) -> None:
    with listen(tmp_path / "s", for_others=False) as first:
        with pytest.raises(Misconfigured, match=r"node\.socket = .*another node listens there"):
            listen(tmp_path / "s", for_others=False)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
        first.accept()[0].close()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(Misconfigured, match="is there and no socket"):
        listen(tmp_path / "s", for_others=False)
    assert (tmp_path / "s").read_text() == "precious"


def test_folders_are_made_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    listen(tmp_path / "new" / "s", for_others=False).close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match=r"node\.socket = .*cannot listen: "):
        listen(tmp_path / "file" / "s", for_others=False)


def test_a_token_keeps_its_number_as_long_as_it_gives_the_same() -> None:
    bearers, one, two = Bearers(), b"1" * 32, b"2" * 32
    acme, zebra = Peer("a", frozenset({"acme"})), Peer("z", frozenset({"zebra"}))
    first = dict(bearers.renew([(one, acme), (two, zebra)])[0])
    assert bearers.peer(first[one]) == acme and bearers.peer(-1) is None
    again = dict(bearers.renew([(two, zebra), (one, acme)])[0])
    assert again == first
    changed = dict(bearers.renew([(one, zebra)])[0])
    assert changed[one] not in first.values()
    assert bearers.peer(changed[one]) == zebra
    assert bearers.peer(first[one]) is None and bearers.peer(first[two]) is None  # of requests still under way
    back = dict(bearers.renew([(one, acme)])[0])
    assert back[one] not in {*first.values(), *changed.values()}  # a number never comes back
    both, named = bearers.renew([(one, acme)], [("one", acme), ("two", zebra)])
    assert dict(both) == back and len({*dict(named).values(), *back.values()}) == 3
    assert bearers.peer(dict(named)["two"]) == zebra
    assert bearers.renew([], [("two", zebra)]) == ([], [named[1]])
    assert bearers.peer(dict(named)["one"]) is None


def door_of(security: SecurityConfig, folder: Path) -> FramedDoor:
    certificates = Certificates(SecurityConfig())
    core: native.NodeCore = None  # type: ignore[assignment]
    desk: PeerDesk = None  # type: ignore[assignment]
    return FramedDoor(
        security, Guard(security), certificates, LimitsConfig(), core, folder / "s", "none", desk, b"of nodes"
    )


def request(**fields: object) -> native.Request:
    said = {"uid": 2**32 - 1, "trusted": False, "remote": False, "token": -1, "names": [], **fields}
    return cast(native.Request, SimpleNamespace(**said))


def test_who_a_request_by_tcp_is_from(tmp_path: Path) -> None:
    """As gRPC's guard has it; a user id says nothing there, whichever it is."""
    open_door = door_of(SecurityConfig(allowed_uids=(2**32 - 1,), anonymous_tenants=("open",)), tmp_path)
    assert open_door._peer(request(remote=True)) == Peer("anonymous", frozenset({"open"}))
    asking = SecurityConfig(
        certificate=tmp_path / "c", private_key=tmp_path / "k", client_ca=tmp_path / "a", anonymous_tenants=("open",)
    )
    signed = door_of(asking, tmp_path)
    assert signed._peer(request(remote=True, names=["who", "else"])) == Peer("who", frozenset({"open"}))
    with pytest.raises(Denied, match="token"):
        signed._peer(request(remote=True))
    acme = Peer("a", frozenset({"acme"}))
    ((_, ((_, number),))) = signed._bearers.renew([], [("who", acme)])
    assert signed._peer(request(remote=True, names=["who"], token=number)) == acme


def test_who_a_request_is_from(tmp_path: Path) -> None:
    """The native door lets nobody else in; who would come in all the same is nobody here either."""
    security = SecurityConfig(allowed_uids=(1001,), anonymous_tenants=("open",))
    door = door_of(security, tmp_path)
    acme = Peer("a", frozenset({"acme"}))
    (((_, number),), _) = door._bearers.renew([(b"1" * 32, acme)])

    def peer(uid: int, *, trusted: bool = False, token: int = -1) -> Peer:
        return door._peer(request(uid=uid, trusted=trusted, token=token))

    assert peer(0, trusted=True) is TRUSTED
    assert peer(1002, token=number) == acme
    assert peer(1001).tenants == {"open"}
    assert peer(1001, token=number) == acme, "a token decides"
    for stranger in (1002, 0):
        with pytest.raises(Denied, match=f"uid {stranger} may not use this node") as refused:
            peer(stranger)
        assert not refused.value.known


async def test_only_a_node_that_has_introduced_itself_is_told_of_claims_by_the_door_itself() -> None:
    known, told = {2}, []
    desk = SimpleNamespace(call=lambda owner, method, body: body[::-1], knows=lambda owner: owner in known)
    door = object.__new__(FramedDoor)
    door._desk = cast(PeerDesk, desk)
    door._native = cast(native.Door, SimpleNamespace(answer_locates=lambda *what: told.append(what)))
    cluster = SimpleNamespace(locator=SimpleNamespace(claims="claims"))
    door._handlers = cast(Handlers, SimpleNamespace(host=SimpleNamespace(cluster=cluster)))
    for owner in (1, 2):
        for method in (store.METHOD_PEER_CHALLENGE, store.METHOD_PEER_HELLO, store.METHOD_PEER_PING):
            request = cast(native.Request, SimpleNamespace(owner=owner, method=method, body=b"ab"))
            assert await door._body(request, NODE) == b"ba"
    assert told == [(2, store.METHOD_PEER_LOCATE, "claims")]
