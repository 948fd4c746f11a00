"""What a node tells routers of an engine's blocks is what the engine itself tells of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.engines.store_rig import BLOCK, engine_on, probe, settle
from tests.engines.venvs import RECIPES, ready
from tests.engines.wire import Prompt, words
from tests.integration.nodes import NodeProcess
from tests.integration.test_kv_events import SETS, endpoints

LONG = 217
BLOCKS = LONG // BLOCK


@pytest.fixture(params=["vllm", "vllm-prev"])
def venv(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not ready(RECIPES[name]):
        pytest.skip(f"build/engines/{name} is not there: make setup-engines")
    return name


@pytest.fixture
def node(venv: str, tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path, *SETS, memory="128MiB") as started:
        yield started


def told_by(node: NodeProcess, engine: Any, blocks: int) -> dict[int, dict[str, Any]]:
    """Blocks by their hash, as the engine's own types read them from the node's stream."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as asking:
        asking.linger = 0
        asking.connect(endpoints(node)[1])
        end = time.monotonic() + 20
        while True:
            assert time.monotonic() < end, "not told in time"
            asking.send_multipart((b"", bytes(8)))
            payloads = []
            while True:
                assert asking.poll(10_000)
                *_, payload = asking.recv_multipart()
                if not payload:
                    break
                payloads.append(payload.hex())
            found = by_block(probe(engine, "decoded", payloads=payloads))
            if len(found) >= blocks:
                return found
            time.sleep(0.1)


def by_block(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    found = {}
    for event in events:
        if event["type"] != "BlockStored":
            continue
        size, before = event["block_size"], event["parent_block_hash"]
        for i, name in enumerate(event["block_hashes"]):
            tokens = tuple(event["token_ids"][i * size : (i + 1) * size])
            found[name] = {"parent": before, "tokens": tokens, "size": size, "medium": event["medium"]}
            before = name
    return found


def test_the_node_tells_routers_what_the_engine_tells_them(node: NodeProcess, venv: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    publishing = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint.replace("127.0.0.1", "*")}
    prompt = Prompt(words(LONG, 11), max_tokens=1)
    with engine_on(node, "llama", tmp_path, venv=venv, kv_events_config=publishing) as engine:
        probe(engine, "listen", endpoint=endpoint)
        engine.generate(prompt)
        settle(engine)
        time.sleep(0.3)
        own = by_block([event for event in probe(engine, "events") if event.get("medium") == "GPU"])
        told = told_by(node, engine, BLOCKS)
    assert told.keys() == own.keys() and len(told) == BLOCKS
    for name, block in told.items():
        assert block == {**own[name], "medium": "CPU"}
