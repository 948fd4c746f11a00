"""Who gets in over TCP: tokens, certificates, rights, and the wall between tenants. Each with the wrong one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from kvstore import AsyncClient, KVLayout
from kvstore.client.tls import Tls
from kvstore.config import GrpcConfig
from kvstore.errors import Misconfigured, Rejected, Unavailable
from kvstore.node.node import Node
from kvstore.security import SecurityConfig
from kvstore.wire import admin, services, store
from tests.certificates import Authority, Pair
from tests.integration.grpc_node import (
    TIMEOUT_S,
    config_for,
    get,
    keys_for,
    opened,
    put,
    refusal,
    running,
    tcp_address,
)
from tests.tokens import mint_token

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def access_file(folder: Path, *entries: str) -> Path:
    path = folder / "access.toml"
    path.touch(mode=0o600)
    path.write_text("\n".join(entries))
    return path


@dataclass(frozen=True, slots=True)
class Tenants:
    """A node with two tenants and an operator, and the metadata of each."""

    node: Node
    acme: tuple[tuple[str, str], ...]
    zebra: tuple[tuple[str, str], ...]
    operator: tuple[tuple[str, str], ...]


@pytest.fixture
async def tenants(tmp_path: Path) -> AsyncIterator[Tenants]:
    acme, zebra, operator = mint_token("a", ["acme"]), mint_token("z", ["zebra"]), mint_token("o", ["*"], ["admin"])
    path = access_file(tmp_path, acme[1], zebra[1], operator[1])
    async with running(config_for(tmp_path, security=SecurityConfig(access_file=path))) as node:
        yield Tenants(node, bearer(acme[0]), bearer(zebra[0]), bearer(operator[0]))


# ---- tokens -------------------------------------------------------------------------------------------------------


async def test_a_token_opens_its_tenants_only(tenants: Tenants) -> None:
    async with grpc.aio.insecure_channel(tcp_address(tenants.node)) as channel:
        stub = services.StoreStub(channel)
        assert (await opened(stub, "acme", tenants.acme)).digest
        for metadata, tenant, code in (
            (tenants.acme, "zebra", DENIED),
            (tenants.acme, "no such tenant", DENIED),
            (tenants.acme, "", DENIED),  # the default tenant is nobody's by default
            ((), "acme", UNAUTHENTICATED),
            (bearer("wrong"), "acme", UNAUTHENTICATED),
            ((("authorization", "Basic YTpi"),), "acme", UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await opened(stub, tenant, metadata)
            assert refusal(caught.value)[0] == code, (metadata, tenant)
        told = set()
        for tenant in ("zebra", "no such tenant"):  # the same words, whether it exists or not
            with pytest.raises(grpc.RpcError) as caught:
                await opened(stub, tenant, tenants.acme)
            told.add(refusal(caught.value)[1].SerializeToString())
        assert len(told) == 1


async def test_every_method_asks_who_is_calling(tenants: Tenants) -> None:
    """By the contract's own list, so that a method added tomorrow is asked as well."""
    async with grpc.aio.insecure_channel(tcp_address(tenants.node)) as channel:
        for description in (store.DESCRIPTOR, admin.DESCRIPTOR):
            for name, about in description.services_by_name.items():
                for method in about.methods:
                    for metadata in ((), bearer("wrong")):
                        code = await _code_of(channel, f"/kvstore.v1.{name}/{method.name}", metadata)
                        assert code == UNAUTHENTICATED, method.full_name
                    if name == "Admin" and method.name != "Offer":  # which tells where to knock, to whoever may call
                        code = await _code_of(channel, f"/kvstore.v1.Admin/{method.name}", tenants.acme)
                        assert code == DENIED, method.full_name


async def _code_of(channel: grpc.aio.Channel, path: str, metadata: tuple[tuple[str, str], ...]) -> grpc.StatusCode:
    """Of a call with one empty message, whatever kind of method it is."""
    call = channel.stream_stream(path)(iter([b""]), timeout=TIMEOUT_S, metadata=metadata)
    with contextlib.suppress(grpc.RpcError):
        await call.read()
    return await call.code()


async def test_the_right_key_and_the_wrong_tenant_find_nothing(tenants: Tenants) -> None:
    """What is another's is answered, byte for byte, as what does not exist."""
    async with grpc.aio.insecure_channel(tcp_address(tenants.node)) as channel:
        stub = services.StoreStub(channel)
        ours = await opened(stub, "acme", tenants.acme)
        keys = keys_for(ours.seed, 3)
        await put(stub, ours.digest, keys, tenants.acme)
        chain = store.Chain(keys=b"".join(keys))
        calls: tuple[Callable[[bytes], object], ...] = (
            lambda d: stub.Lookup(store.LookupRequest(namespace=d, chain=chain), timeout=9, metadata=tenants.zebra),
            lambda d: get(stub, store.GetRequest(namespace=d, chain=chain), tenants.zebra),
            lambda d: put(stub, d, keys, tenants.zebra),
            lambda d: stub.Prefetch(store.PrefetchRequest(namespace=d, chain=chain), timeout=9, metadata=tenants.zebra),
            lambda d: stub.Clear(store.ClearRequest(namespace=d), timeout=9, metadata=tenants.zebra),
            lambda d: stub.Watch(store.WatchRequest(namespace=d), timeout=9, metadata=tenants.zebra).read(),
        )
        for call in calls:
            told = []
            for digest in (ours.digest, bytes(32), ours.digest[:31]):
                with pytest.raises(grpc.RpcError) as caught:
                    await call(digest)  # type: ignore[misc]
                assert isinstance(caught.value, grpc.aio.AioRpcError)
                code, detail = refusal(caught.value)
                assert code == NOT_FOUND
                told.append((caught.value.details(), detail.SerializeToString()))
            assert len(set(told)) == 1
        # Within its own namespace of the very same layout, the other's keys are of no use either.
        theirs = await opened(stub, "zebra", tenants.zebra)
        assert theirs.digest != ours.digest and theirs.seed != ours.seed
        found = await stub.Lookup(
            store.LookupRequest(namespace=theirs.digest, chain=chain), timeout=9, metadata=tenants.zebra
        )
        blocks, _ = await get(stub, store.GetRequest(namespace=theirs.digest, chain=chain), tenants.zebra)
        assert found.blocks == 0 and blocks == []
        assert (await put(stub, theirs.digest, keys, tenants.zebra)).stored == 3  # not "held", which would tell
        blocks, _ = await get(stub, store.GetRequest(namespace=ours.digest, chain=chain), tenants.acme)
        assert len(blocks) == 3


async def test_a_watch_tells_of_its_own_tenant_only(tenants: Tenants) -> None:
    async with grpc.aio.insecure_channel(tcp_address(tenants.node)) as channel:
        stub = services.StoreStub(channel)
        acme, zebra = await opened(stub, "acme", tenants.acme), await opened(stub, "zebra", tenants.zebra)
        watching = stub.Watch(store.WatchRequest(), timeout=TIMEOUT_S, metadata=tenants.zebra)
        await watching.read()
        await put(stub, acme.digest, keys_for(acme.seed, 5), tenants.acme)
        await put(stub, zebra.digest, keys_for(zebra.seed, 1), tenants.zebra)
        batch = await watching.read()
        assert isinstance(batch, store.WatchBatch)
        assert [event.namespace for event in batch.events] == [zebra.digest]
        watching.cancel()
        late = stub.Watch(store.WatchRequest(held=True), timeout=TIMEOUT_S, metadata=tenants.zebra)
        held: list[store.Event] = []
        while (batch := await late.read()).held:  # type: ignore[union-attr]
            held += batch.events  # type: ignore[union-attr]
        assert [event.namespace for event in held] == [zebra.digest]
        late.cancel()


async def test_admin_is_for_those_with_the_right(tenants: Tenants) -> None:
    async with grpc.aio.insecure_channel(tcp_address(tenants.node)) as channel:
        stub = services.AdminStub(channel)
        answer = await stub.Status(admin.StatusRequest(), timeout=TIMEOUT_S, metadata=tenants.operator)
        assert answer.node.node == tenants.node.name


async def test_whoever_may_call_at_all_is_told_the_offer_and_nobody_else(tenants: Tenants) -> None:
    async with grpc.aio.insecure_channel(tcp_address(tenants.node)) as channel:
        stub = services.AdminStub(channel)
        told = await stub.Offer(store.OfferRequest(), timeout=TIMEOUT_S, metadata=tenants.acme)
        assert told.offer == tenants.node.transfers.connector.offer.encode()
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Status(admin.StatusRequest(), timeout=TIMEOUT_S, metadata=tenants.acme)
        assert refusal(caught.value)[0] == DENIED
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Offer(store.OfferRequest(), timeout=TIMEOUT_S, metadata=bearer("wrong"))
        assert refusal(caught.value)[0] == UNAUTHENTICATED


async def test_the_unknown_have_their_tenants_and_no_more(tmp_path: Path) -> None:
    security = SecurityConfig(anonymous_tenants=("open",))
    async with (
        running(config_for(tmp_path, security=security)) as node,
        grpc.aio.insecure_channel(tcp_address(node)) as channel,
    ):
        stub = services.StoreStub(channel)
        assert (await opened(stub, "open")).digest
        for metadata, tenant, code in (((), "default", DENIED), (bearer("any"), "open", UNAUTHENTICATED)):
            with pytest.raises(grpc.RpcError) as caught:
                await opened(stub, tenant, metadata)
            assert refusal(caught.value)[0] == code
        with pytest.raises(grpc.RpcError) as caught:
            await services.AdminStub(channel).Status(admin.StatusRequest(), timeout=TIMEOUT_S)
        assert refusal(caught.value)[0] == DENIED


# ---- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


def secured(pair: Pair, **more: object) -> SecurityConfig:
    return SecurityConfig(certificate=pair.certificate, private_key=pair.private_key, **more)  # type: ignore[arg-type]


async def reached(node: Node, tls: Tls | None, metadata: tuple[tuple[str, str], ...] = (), tenant: str = "") -> object:
    """A namespace opened over TLS; raises what the channel raises."""
    address = tcp_address(node)
    channel = (
        grpc.aio.secure_channel(address, tls.credentials()) if tls is not None else grpc.aio.insecure_channel(address)
    )
    async with channel:
        return (await opened(services.StoreStub(channel), tenant, metadata)).digest


async def test_tls_keeps_out_the_wrong_ones(tmp_path: Path, authority: Authority) -> None:
    stranger = Authority(tmp_path, "stranger")
    async with running(config_for(tmp_path, security=secured(authority.sign("node", server=True)))) as node:
        assert await reached(node, Tls(authority.path))
        for wrong in (Tls(stranger.path), Tls(), None):  # another authority, the system's, no TLS at all
            with pytest.raises(grpc.RpcError) as caught:
                await reached(node, wrong)
            assert refusal(caught.value)[0] == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("server", [True, False])
async def test_a_certificate_for_something_else_is_not_believed(
    tmp_path: Path, authority: Authority, server: bool
) -> None:
    """One that has run out; and one that is a client's."""
    pair = authority.sign("node", server=True, days=-1) if server else authority.sign("localhost")
    async with running(config_for(tmp_path, security=secured(pair))) as node:
        with pytest.raises(grpc.RpcError) as caught:
            await reached(node, Tls(authority.path))
        assert refusal(caught.value)[0] == grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_wants_a_certificate_of_its_authority(tmp_path: Path, authority: Authority) -> None:
    stranger = Authority(tmp_path, "stranger")
    security = secured(authority.sign("node", server=True), client_ca=authority.path)
    good, wrong = authority.sign("decode-1"), stranger.sign("decode-1x")
    expired = authority.sign("old", days=-1)
    async with running(config_for(tmp_path, security=security)) as node:
        assert await reached(node, Tls(authority.path, good.certificate, good.private_key))
        for pair in (wrong, expired):
            with pytest.raises(grpc.RpcError) as caught:
                await reached(node, Tls(authority.path, pair.certificate, pair.private_key))
            assert refusal(caught.value)[0] == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as caught:
            await reached(node, Tls(authority.path))
        assert refusal(caught.value)[0] == grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_opens_the_tenants_of_its_name(tmp_path: Path, authority: Authority) -> None:
    token, entry = mint_token("a", ["acme"])
    path = access_file(tmp_path, '[[certificate]]\nname = "decode-1"\ntenants = ["zebra"]', entry)
    security = secured(authority.sign("node", server=True), client_ca=authority.path, access_file=path)
    known, unknown = authority.sign("decode-1"), authority.sign("decode-2")
    async with running(config_for(tmp_path, security=security)) as node:
        tls = Tls(authority.path, known.certificate, known.private_key)
        assert await reached(node, tls, tenant="zebra")
        assert await reached(node, tls, bearer(token), "acme")  # a token decides before a certificate does
        other = Tls(authority.path, unknown.certificate, unknown.private_key)
        for credentials, metadata, tenant, code in (
            (tls, (), "acme", DENIED),
            (tls, bearer(token), "zebra", DENIED),
            (tls, bearer("wrong"), "zebra", UNAUTHENTICATED),
            (other, (), "zebra", UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await reached(node, credentials, metadata, tenant)
            assert refusal(caught.value)[0] == code


# ---- metrics ------------------------------------------------------------------------------------------------------


async def scraped(node: Node, token: str | None = None, tls: ssl.SSLContext | None = None) -> tuple[int, str]:
    """Status and body of a scrape; 0 where the handshake failed."""
    url = node.telemetry.address.replace("127.0.0.1", "localhost")
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=9, context=tls) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (urllib.error.URLError, ssl.SSLError, ConnectionError):
            return 0, ""

    return await asyncio.to_thread(ask)


def trusting(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.path)
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.private_key)
    return context


async def test_metrics_ask_for_a_token_with_the_right(tmp_path: Path, authority: Authority) -> None:
    engine, scraper = mint_token("e", ["acme"]), mint_token("p", [], ["metrics"])
    path = access_file(tmp_path, engine[1], scraper[1])
    security = secured(authority.sign("node", server=True), access_file=path)
    async with running(config_for(tmp_path, security=security, metrics="127.0.0.1:0")) as node:
        tls = trusting(authority)
        assert (await scraped(node, scraper[0], tls))[0] == 200
        for token, code in ((None, 401), ("wrong", 401), (engine[0], 403)):
            status, body = await scraped(node, token, tls)
            assert status == code and "kvstore_" not in body
        assert (await scraped(node, scraper[0], trusting(Authority(tmp_path, "stranger"))))[0] == 0


async def test_metrics_ask_for_a_certificate_with_the_right(tmp_path: Path, authority: Authority) -> None:
    entries = ('[[certificate]]\nname = "prometheus"\nrights = ["metrics"]', '[[certificate]]\nname = "decode"')
    path = access_file(tmp_path, *entries)
    security = secured(authority.sign("node", server=True), client_ca=authority.path, access_file=path)
    stranger = Authority(tmp_path, "stranger").sign("prometheus-x")
    async with running(config_for(tmp_path, security=security, metrics="127.0.0.1:0")) as node:
        for pair, code in (
            (authority.sign("prometheus"), 200),
            (authority.sign("decode"), 403),
            (authority.sign("unknown"), 401),
            (stranger, 0),
            (None, 0),
        ):
            assert (await scraped(node, None, trusting(authority, pair)))[0] == code


async def test_metrics_are_open_on_loopback_while_nobody_must_say_who_they_are(tmp_path: Path) -> None:
    async with running(config_for(tmp_path, metrics="127.0.0.1:0")) as node:
        assert (await scraped(node))[0] == 200
        assert (await scraped(node, "any"))[0] == 401


# ---- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
async def test_an_exposed_address_is_refused_unless_somebody_says_so(
    tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    door = GrpcConfig(address=address)
    for exposed in (config_for(tmp_path, door=door), config_for(tmp_path, metrics=address)):
        with pytest.raises(Misconfigured, match="--insecure"):
            async with running(exposed):
                pass
    assert not (tmp_path / "data").exists()  # refused before anything was touched
    caplog.set_level(logging.WARNING)
    async with running(config_for(tmp_path, door=door, security=SecurityConfig(insecure=True))) as node:
        assert any("INSECURE" in said and address in said for said in caplog.messages)
        async with grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as channel:
            told = await services.AdminStub(channel).Status(admin.StatusRequest(), timeout=TIMEOUT_S)
        assert told.insecure and not told.tls


async def test_an_exposed_address_with_tls_and_tokens_is_fine(tmp_path: Path, authority: Authority) -> None:
    token, entry = mint_token("a", ["acme"])
    security = secured(authority.sign("node", server=True), access_file=access_file(tmp_path, entry))
    async with running(config_for(tmp_path, door=GrpcConfig(address="0.0.0.0:0"), security=security)) as node:
        assert not node.said_aloud
        port = tcp_address(node).rpartition(":")[2]
        async with grpc.aio.secure_channel(f"localhost:{port}", Tls(authority.path).credentials()) as channel:
            assert (await opened(services.StoreStub(channel), "acme", bearer(token))).digest


async def test_the_operators_socket_is_the_nodes_own(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as node:
        mode = node.admin_socket.stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    assert not node.admin_socket.exists()


# ---- through the client -------------------------------------------------------------------------------------------


LAYOUT = KVLayout.uniform(
    engine="e", model="m", revision="1", dtype="float32", block_tokens=4, layers=2, kv_heads=2, head_dim=64
)


async def test_the_client_says_what_the_node_said(tmp_path: Path, authority: Authority) -> None:
    token, entry = mint_token("a", ["acme"])
    security = secured(authority.sign("node", server=True), access_file=access_file(tmp_path, entry))
    stranger = Authority(tmp_path, "stranger")
    async with running(config_for(tmp_path, security=security, address="127.0.0.1:0")) as node:
        at = str(node.address)
        async with AsyncClient(at, token=token, tls=Tls(authority.path)) as client:
            assert (await client.namespace(LAYOUT, tenant="acme")).digest
            with pytest.raises(Rejected, match="tenant"):
                await client.namespace(LAYOUT, tenant="zebra")
        async with AsyncClient(at, token="wrong", tls=Tls(authority.path)) as client:
            with pytest.raises(Rejected, match="token"):
                await client.namespace(LAYOUT, tenant="acme")
        async with AsyncClient(at, token=token, tls=Tls(stranger.path)) as client:
            with pytest.raises(Unavailable):
                await client.namespace(
                    LAYOUT,
                    tenant="acme",
                )
