"""What `store-admin` makes of command lines and of gRPC's failures, without a node."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from rich.console import Console

from kvstore.admin import across
from kvstore.admin.chains import parse_keys
from kvstore.admin.connection import Connection
from kvstore.admin.drain import drain
from kvstore.admin.face import Context
from kvstore.admin.rows import places
from kvstore.client.tls import Tls
from kvstore.errors import Rejected, Unavailable
from kvstore.wire import admin, errors

CODE = grpc.StatusCode
PREFACE = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "


class Failure(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str, trailing: object = None) -> None:
        super().__init__()
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> object:
        return self._trailing


def told(code: grpc.StatusCode, details: str, connection: Connection) -> Exception:
    with pytest.raises(Exception) as caught, connection.translated():
        raise Failure(code, details)
    return caught.value


@pytest.mark.parametrize(
    ("code", "details", "kind", "says"),
    [
        (CODE.NOT_FOUND, "namespace: no such", ValueError, "namespace: no such"),
        (CODE.RESOURCE_EXHAUSTED, "calls_max", Rejected, "calls_max"),
        (CODE.UNAUTHENTICATED, "who are you", Rejected, "who are you; --token-file"),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", Unavailable, "127.0.0.1:1: no answer within 10 s"),
        (CODE.INTERNAL, "a: b", Unavailable, "127.0.0.1:1: INTERNAL: a: b"),
        (
            CODE.UNAVAILABLE,
            PREFACE + "Failed to connect to remote host: Connection refused",
            Unavailable,
            "127.0.0.1:1: Connection refused (does a node listen there?)",
        ),
        (CODE.UNAVAILABLE, PREFACE + "Socket closed", Unavailable, "it hung up: does it speak TLS? --tls-authority"),
        (
            CODE.UNAVAILABLE,
            PREFACE + "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got frame type 0)",
            Unavailable,
            "what answers there is no gRPC door",
        ),
    ],
)
def test_failures_say_what_to_do(code: grpc.StatusCode, details: str, kind: type[Exception], says: str) -> None:
    error = told(code, details, Connection("127.0.0.1:1"))
    assert type(error) is kind
    assert says in str(error)
    assert "last error" not in str(error)


def test_what_the_node_says_itself_is_told_as_it_says_it() -> None:
    """And not as a connection that nobody took."""
    detail = errors.detail("drain: this node stands alone, there is nobody to hand its blocks on to")
    failure = Failure(CODE.UNAVAILABLE, "", ((errors.DETAIL_KEY, detail.SerializeToString()),))
    with pytest.raises(Unavailable) as caught, Connection("127.0.0.1:1").translated():
        raise failure
    assert str(caught.value) == f"127.0.0.1:1: {errors.text_of(detail)}"


@pytest.mark.parametrize(
    ("words", "last", "code"),
    [
        (("n1",), admin.DRAIN_DONE, 0),
        (("n1",), admin.DRAIN_NONE, 1),
        (("n1", "--cancel"), admin.DRAIN_NONE, 0),
        (("n1", "--look"), admin.DRAIN_NONE, 0),
    ],
)
def test_a_drain_that_somebody_cancelled_has_not_ended_well(
    words: tuple[str, ...], last: admin.DrainState.ValueType, code: int
) -> None:
    """Whoever stops the node after it, and deletes its data, goes by the exit code."""
    told = [admin.DrainProgress(node="n1", state=admin.DRAIN_WORKING)] if words == ("n1",) else []
    told.append(admin.DrainProgress(node="n1", state=last, done=True))
    verbs = SimpleNamespace(Drain=lambda *_, **__: told)
    connection: Any = SimpleNamespace(admin=lambda: verbs, translated=nullcontext, metadata=tuple)
    done = CliRunner().invoke(drain, words, obj=Context(connection, as_json=False, console=Console()))
    assert done.exit_code == code, done.output


def test_nodes_are_given_the_time_to_look_at_every_slot() -> None:
    asked: list[admin.AskRequest] = []
    verbs = SimpleNamespace(
        Nodes=lambda *_, **__: admin.NodesResponse(nodes=[admin.NodeRow()]),
        Ask=lambda request, **_: asked.append(request) or [],
    )
    connection: Any = SimpleNamespace(admin=lambda: verbs, translated=nullcontext, metadata=tuple)
    across._holdings(Context(connection, as_json=True, console=Console()), None)
    assert [one.deadline_ms for one in asked] == [8_000]


def test_who_shows_something_is_not_told_to_show_it() -> None:
    tls = Tls(Path("authority.pem"), None, None)
    connection = Connection("127.0.0.1:1", "token", tls)
    assert str(told(CODE.PERMISSION_DENIED, "no such right", connection)) == "no such right"
    assert "TLS" not in str(told(CODE.UNAVAILABLE, PREFACE + "Socket closed", connection))
    spoilt = PREFACE + "Ssl handshake failed: SSL_ERROR_SSL: error:1000007d:CERTIFICATE_VERIFY_FAILED: unable: OK"
    assert "its certificate is none that --tls-authority believes" in str(told(CODE.UNAVAILABLE, spoilt, connection))


@pytest.mark.parametrize("address", ["foo", "foo:", ":7", "host:0", "unix:"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(ValueError, match="address: "):
        Connection(address)


def test_a_socket_is_taken_as_it_is_where_no_other_is_beside_it(tmp_path: Path) -> None:
    socket = tmp_path / "kv.sock"
    assert Connection(f"unix:{socket}").address == f"unix:{socket}"
    Path(f"{socket}.grpc").touch()
    assert Connection(f"unix:{socket}").address == f"unix:{socket}.grpc"
    assert Connection(f"unix:{socket}.grpc").address == f"unix:{socket}.grpc"


def test_keys_are_whole() -> None:
    assert parse_keys(f"{'ab' * 32}, {'CD' * 32}") == b"\xab" * 32 + b"\xcd" * 32
    for text in ("2d939d777e0f", "zz" * 32, "", "ab " * 32):
        with pytest.raises(ValueError, match=r"--keys: key 0: .*, must be 64 hexadecimal digits"):
            parse_keys(text)


def test_shards_are_numbers_for_programs() -> None:
    (row,) = places(admin.LocateResponse(blocks=[admin.BlockPlaces(key=bytes(32), memory_shards=0b1001)]))
    assert (row["memory_shards"], row["file_shards"]) == ([0, 3], [])
