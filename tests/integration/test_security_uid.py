"""Who gets in over the Unix sockets: the kernel's word for the user id, and tokens in HELLO.

A child process becomes another user. That needs root; elsewhere these tests are skipped, aloud.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kvstore.security import SecurityConfig
from tests.integration.grpc_node import TIMEOUT_S, config_for, running
from tests.tokens import mint_token

NOBODY = 65_534
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")

CHILD = """
import concurrent.futures.thread, json, os, sys  # all of it now: an interpreter of root's own cannot be read later
import grpc
import kvstore
from kvstore.wire import admin, services

asked, told = json.loads(sys.argv[1]), {}
layout = kvstore.KVLayout.uniform(engine="e", model="m", revision="1", dtype="float32", block_tokens=4, layers=2,
                                  kv_heads=2, head_dim=64)

def tried(name, attempt):
    try:
        told[name] = attempt()
    except Exception as error:
        told[name] = type(error).__name__

def fetched(client, tenant, first):
    ns = client.namespace(layout, tenant=tenant)
    chain = ns.chain(list(range(first, first + 8)))
    payload = bytes(range(256)) * (2 * ns.shard_bytes[0] // 256)
    into = bytearray(len(payload))
    stored = ns.put(chain, payload).stored
    got = ns.get(chain, into).blocks
    told["seen " + tenant] = into == payload
    tried("view " + tenant, lambda: ns.view(chain).close() or "lent")
    return [stored, got]

def all_of_it(first):
    told.clear()
    with kvstore.Client("unix:" + asked["socket"], token=asked.get("token"), deadline_s=5) as client:
        for tenant in asked["tenants"]:
            tried(tenant, lambda: fetched(client, tenant, first))
    # A pool of its own: else gRPC may go on with the connection that root made a moment ago.
    alone = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel("unix:" + asked["socket"] + ".grpc", options=alone) as channel:
        stub = services.AdminStub(channel)
        tried("admin", lambda: stub.Status(admin.StatusRequest(), timeout=20).node.node and "let in")

all_of_it(0)  # as root, so that all modules are loaded: the other user may not be able to read them
os.setgroups([])
os.setgid(asked["uid"])
os.setuid(asked["uid"])
all_of_it(100 + asked["uid"])
print(json.dumps(told))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Others can reach into it, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="kvstore-uid-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


async def as_user(folder: Path, uid: int = NOBODY, **asked: object) -> Mapping[str, object]:
    """What a client of that user id gets: by tenant [blocks stored, blocks fetched], or the error's name."""
    told = json.dumps({"uid": uid, "socket": str(folder / "kv.sock"), "tenants": ["default", "acme"], **asked})
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, told, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(3 * TIMEOUT_S):
        out, _ = await child.communicate()
    assert child.returncode == 0
    answer: Mapping[str, object] = json.loads(out)
    return answer


async def test_by_default_the_sockets_are_the_nodes_own(folder: Path) -> None:
    async with running(config_for(folder)):
        other = await as_user(folder)
        assert other == {"default": "Unavailable", "acme": "Unavailable", "admin": "_InactiveRpcError"}
        ours = await as_user(folder, uid=0)
        assert ours["default"] == ours["acme"] == [2, 2] and ours["admin"] == "let in"
        assert ours["view acme"] == "lent"


async def test_a_trusted_user_may_use_every_tenant(folder: Path) -> None:
    async with running(config_for(folder, security=SecurityConfig(trusted_uids=(NOBODY,)))):
        told = await as_user(folder)
        assert told["default"] == told["acme"] == [2, 2] and told["view acme"] == "lent"
        assert told["seen default"] and told["seen acme"]
        assert told["admin"] == "_InactiveRpcError"  # the operators' socket stays the node's own


async def test_an_allowed_user_has_the_open_tenants_and_no_mapping(folder: Path) -> None:
    async with running(config_for(folder, security=SecurityConfig(allowed_uids=(NOBODY,)))):
        told = await as_user(folder)
        assert told["default"] == [2, 2] and told["seen default"]
        assert told["view default"] == "Rejected"
        assert told["acme"] == "Rejected"
        stranger = await as_user(folder, uid=12_345)
        assert stranger["default"] == stranger["acme"] == "Rejected"


async def test_a_token_opens_its_tenants_to_any_user(folder: Path) -> None:
    token, entry = mint_token("a", ["acme"])
    path = folder / "access.toml"
    path.touch(mode=0o600)
    path.write_text(entry)
    async with running(config_for(folder, security=SecurityConfig(access_file=path))):
        told = await as_user(folder, token=token)
        assert told["acme"] == [2, 2] and told["seen acme"] and told["default"] == "Rejected"
        assert told["view acme"] == "Rejected" and told["admin"] == "_InactiveRpcError"
        for wrong in ("wrong", None):
            told = await as_user(folder, token=wrong)
            assert told["default"] == told["acme"] == "Rejected"
