"""A node, a vLLM engine with the store's connector, and what is asked of both in every test."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engines.run import Engine, vllm
from tests.engines.wire import Answer, Prompt
from tests.integration.nodes import NodeProcess

__all__ = ["BLOCK", "config", "engine_on", "external", "forget", "probe", "settle", "until"]

BLOCK = 32
PROBES = "tests.engines.store_probes"


# A machine that is busy takes its time to look up and to hand over, and what is not found in time is computed.
PATIENT_MS = {"lookup_ms": 5_000, "handover_ms": 10_000}


def config(node: NodeProcess, *, role: str = "kv_both", policy: str = "recompute", **extra: Any) -> dict[str, Any]:
    """What a user writes in --kv-transfer-config."""
    return {
        "kv_connector": "KVStoreConnector",
        "kv_connector_module_path": "engine_adapters.vllm",
        "kv_role": role,
        "kv_load_failure_policy": policy,
        "kv_connector_extra_config": {"address": node.address, **PATIENT_MS, **extra},
    }


def engine_on(
    node: NodeProcess, model_name: str, folder: Path, *, venv: str = "vllm", log: str = "vllm.log", **arguments: Any
) -> Engine:
    """An engine with the connector; `store` holds its settings, the rest is vLLM's."""
    store = arguments.pop("store", {})
    return vllm(model_name, folder, venv=venv, log=log, kv_transfer_config=config(node, **store), **arguments)


def probe(engine: Engine, name: str, **given: Any) -> Any:
    return engine.call(f"{PROBES}:{name}", **given)


def until(done: Callable[[], bool], max_s: float = 60.0) -> None:
    end = time.monotonic() + max_s
    while not done():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def settle(engine: Engine) -> None:
    """Until what was saved is in the store."""
    until(lambda: not probe(engine, "pending"))


def forget(engine: Engine) -> None:
    """What the engine has computed is in the store, and nowhere else."""
    settle(engine)
    until(lambda: probe(engine, "forget"))


def external(engine: Engine, prompt: Prompt) -> Answer:
    """The prompt once more, of an engine that has forgotten it."""
    forget(engine)
    return engine.generate(prompt)
