"""What moto cannot show: signatures that are checked, a gateway that is killed, real create-if-absent under a race."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client, native
from kvstore.node.sweeper import Sweeper
from kvstore.tiers.object import ObjectTier
from kvstore.tiers.packs import PackHead, head_bytes_of
from tests.integration.nodes import SIZE, blocks_of, eventually, layout, tokens
from tests.integration.test_object_tier import fetched, filled, object_node
from tests.s3.ceph import ACCESS_KEY, BUCKET, SECRET_KEY, Gateway, ceph, missing
from tests.s3_server import Relay, s3_options

pytestmark = [
    pytest.mark.skipif(
        bool(missing()), reason=f"not installed: {', '.join(missing())} (apt: radosgw ceph-mon ceph-osd)"
    ),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with ceph(tmp_path_factory.mktemp("ceph")) as running:
        yield running


def options(gateway: Gateway, secret: str = SECRET_KEY, port: int | None = None) -> list[str]:
    return s3_options(port or gateway.port, ACCESS_KEY, secret)


def tier_of(gateway: Gateway, prefix: str) -> ObjectTier:
    pairs = options(gateway)[0].removeprefix("object.options=").split(",")
    named = dict(pair.split("=", 1) for pair in pairs)
    return ObjectTier.open(f"s3://{BUCKET}/{prefix}", timeout_s=10, retries=2, concurrency=16, options=named)


def a_pack(seed: int, blocks: int) -> tuple[PackHead, list[memoryview]]:
    rng = np.random.default_rng(seed)
    keys = rng.integers(256, size=(blocks, 32), dtype=np.uint8)
    data = [rng.bytes(SIZE) for _ in range(blocks)]
    sums = np.stack([native.part_checksums(block, [SIZE]) for block in data])
    metas = (b"",) * blocks
    head = PackHead(b"d" * 32, 0, 0, bytes(32), SIZE, keys, sums, metas, head_bytes_of(blocks, 1, metas))
    return head, [memoryview(block) for block in data]


def test_everything_comes_back_from_a_real_bucket(tmp_path: Path, gateway: Gateway) -> None:
    prompts = [tokens(150, 1), tokens(65, 2), tokens(1, 3)]
    url = f"s3://{BUCKET}/back"
    filled(tmp_path / "one", url, prompts, *options(gateway))
    with object_node(tmp_path / "two", url, *options(gateway), memory="32MiB") as node, Client(node.address) as client:
        ns = client.namespace(layout())
        for prompt in prompts:
            assert ns.prefetch(ns.chain(prompt)) == len(prompt) // 4
            assert fetched(client, prompt) == len(prompt) // 4
        assert node.counters(3)["object_errors"] == 0
        ns.clear()
        eventually(lambda: node.counters(3)["object_packs_deleted"] >= 5)
        fresh = client.namespace(layout())
        assert fresh.prefetch(fresh.chain(prompts[0])) == 0


async def test_of_many_writers_one_writes(gateway: Gateway) -> None:
    tiers = [tier_of(gateway, "race") for _ in range(8)]
    for seed in range(10):
        head, blocks = a_pack(seed, 4)
        assert all(await asyncio.gather(*(tier.write(head, blocks) for tier in tiers)))
    assert sum(tier.counts.packs_written for tier in tiers) == 10
    assert sum(tier.counts.packs_there_already for tier in tiers) == 70


async def test_lists_longer_than_a_page_are_swept(gateway: Gateway) -> None:
    tier = tier_of(gateway, "pages")
    packs = [a_pack(1000 + seed, 1) for seed in range(1100)]
    assert all(await asyncio.gather(*(tier.write(*pack) for pack in packs)))
    assert await tier.namespaces() == [b"d" * 32]
    each = packs[0][0].head_bytes + SIZE
    await Sweeper(tier, 20 * each, 60.0, set).sweep()
    left = await tier.listing(b"d" * 32)
    assert left is not None and len(left) == 18, "a tenth of the limit is free"
    assert tier.counts.packs_deleted == 1082
    assert len(await tier.delete([pack.name for pack in left])) == 18


def test_a_wrong_secret_is_a_miss_and_is_counted(tmp_path: Path, gateway: Gateway) -> None:
    prompt, url = tokens(64, 5), f"s3://{BUCKET}/secret"
    filled(tmp_path / "one", url, [prompt], *options(gateway))
    with object_node(tmp_path / "two", url, *options(gateway, "wrong")) as node, Client(node.address) as client:
        ns = client.namespace(layout())
        chain = ns.chain(prompt)
        assert ns.prefetch(chain) == 0
        assert int(ns.put(chain, blocks_of(chain)).stored) == 64
        assert fetched(client, prompt) == 64
        assert node.counters(3)["object_errors"] > 0


def test_a_gateway_that_is_killed_comes_back(tmp_path: Path, gateway: Gateway) -> None:
    prompt, url = tokens(100, 6), f"s3://{BUCKET}/killed"
    filled(tmp_path / "one", url, [prompt], *options(gateway))
    sets = [*options(gateway), "object.timeout_ms=2000"]
    with object_node(tmp_path / "two", url, *sets) as node, Client(node.address) as client:
        gateway.kill_gateway()
        ns = client.namespace(layout())
        chain = ns.chain(prompt)
        assert ns.prefetch(chain) == 0
        assert fetched(client, prompt) == 0
        gateway.start_gateway()
        gateway.wait()

        def comes_back() -> bool:
            ns.prefetch(chain)
            return fetched(client, prompt) == 100

        eventually(comes_back, 60)


@pytest.mark.parametrize("mode", ["hang", "cut", "busy"])
def test_a_cut_line_is_a_miss(tmp_path: Path, gateway: Gateway, mode: str) -> None:
    prompt, url = tokens(100, 7), f"s3://{BUCKET}/line"
    relay = Relay(("127.0.0.1", gateway.port))
    try:
        filled(tmp_path / "one", url, [prompt], *options(gateway, port=relay.port))
        sets = [*options(gateway, port=relay.port), "object.timeout_ms=3000"]
        with object_node(tmp_path / "two", url, *sets) as node, Client(node.address) as client:
            relay.set(mode)
            ns = client.namespace(layout())
            ns.prefetch(ns.chain(prompt))
            assert fetched(client, prompt) == 0
            relay.set("pass")

            def comes_back() -> bool:
                ns.prefetch(ns.chain(prompt))
                return fetched(client, prompt) == 100

            eventually(comes_back, 60)
    finally:
        relay.close()
        shutil.rmtree(tmp_path / "one", ignore_errors=True)
