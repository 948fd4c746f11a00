"""Upstream's test of prefill and decode apart, over HTTP, with its own proxy: two servers, and the store between them.

A prompt shorter than a block, one that the decode server has computed itself, and one of which it has computed half:
each gives the same text as a server that is asked alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines.run import environment, stop_group
from tests.engines.serve import Server, serve
from tests.engines.store_rig import BLOCK, config, until
from tests.engines.upstream.source import LETTERS, SITE, TESTS, fetch
from tests.engines.venvs import RECIPES, ROOT, ready
from tests.integration.nodes import NodeProcess
from tests.ports import free_ports

pytestmark = pytest.mark.skipif(not ready(RECIPES["vllm"]), reason="no vLLM here: make setup-engines")

THEIRS = TESTS / "tests/v1/kv_connector/nixl_integration"
PYTHON = RECIPES["vllm"].python
WAIT_MAX_S = 60


@contextmanager
def proxy(prefill: Server, decode: Server, log: Path) -> Iterator[int]:
    """Upstream's toy proxy: asks prefill for one token, then decode for the answer."""
    (port,) = free_ports(1)
    hosts = ("--prefiller-hosts", "127.0.0.1", "--decoder-hosts", "127.0.0.1")
    ports = ("--port", str(port), "--prefiller-ports", str(prefill.port), "--decoder-ports", str(decode.port))
    command = [PYTHON, THEIRS / "toy_proxy_server.py", *hosts, *ports]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment("vllm"), cwd=TESTS, start_new_session=True
        )
    try:
        end = time.monotonic() + WAIT_MAX_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < end and process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield port
    finally:
        stop_group(process)
        process.wait(WAIT_MAX_S)


def test_upstreams_edge_cases_hold_between_two_servers(tmp_path: Path) -> None:
    fetch()
    node = NodeProcess(tmp_path, memory="64MiB").start()
    try:
        prefill, decode = (
            serve("llama", tmp_path, "--tokenizer", str(LETTERS), "--kv-transfer-config",
                  json.dumps(config(node, role=role)), log=f"{role}.log")
            for role in ("kv_producer", "kv_consumer")
        )  # fmt: skip
        with prefill, decode, proxy(prefill, decode, tmp_path / "proxy.log") as port:
            env = environment("vllm", {
                "PYTHONPATH": os.pathsep.join(map(str, (SITE, ROOT))), "PREFILL_PORT": str(prefill.port),
                "DECODE_PORT": str(decode.port), "PROXY_PORT": str(port), "PREFILL_HOST": "127.0.0.1",
                "DECODE_HOST": "127.0.0.1", "PROXY_HOST": "127.0.0.1",
            })  # fmt: skip
            command = [PYTHON, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--confcutdir=.", "--noconftest"]
            command += ["-c", os.devnull, "--rootdir=.", "test_edge_cases.py"]
            ended = subprocess.run(
                command, cwd=THEIRS, env=env, capture_output=True, text=True, timeout=240, check=False
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            # Whether decode finds what prefill has just begun to save depends on who is faster; what is saved it finds.
            asked = {"model": "llama", "prompt": "what one has written the other reads; " * 8, "temperature": 0}
            saved, hits = prefill.metric("vllm:kvstore_saves_total"), decode.metric("vllm:kvstore_hit_tokens_total")
            alone = prefill.post("/v1/completions", asked)
            until(lambda: prefill.metric("vllm:kvstore_saves_total") > saved)
            found = decode.post("/v1/completions", asked)
            assert found["choices"][0]["text"] == alone["choices"][0]["text"]
            possible = (found["usage"]["prompt_tokens"] - 1) // BLOCK * BLOCK
            assert decode.metric("vllm:kvstore_hit_tokens_total") - hits == possible
            print(f"{ended.stdout}\nof upstream's prompts decode took {hits:.0f} tokens from the store")
    finally:
        node.stop()
