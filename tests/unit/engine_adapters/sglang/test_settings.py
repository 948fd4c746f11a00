"""What the extra config may say, and who reads it."""

from __future__ import annotations

from typing import Any

import pytest

from engine_adapters.sglang.settings import settings_of
from kvstore.errors import Misconfigured

ENGINES = {"backend_name": "kvstore", "module_path": "engine_adapters.sglang", "class_name": "KVStoreBackend"}
ADDRESS = {"address": "unix:/run/kv.sock"}


def test_the_engines_own_keys_are_not_ours() -> None:
    settings, direct = settings_of({**ENGINES, **ADDRESS, "interface_v1": 1, "load_ms": 5})
    assert (settings.address, settings.load_ms, direct) == ("unix:/run/kv.sock", 5, True)
    assert settings_of({**ENGINES, **ADDRESS})[1] is False


def test_no_call_takes_longer_than_the_engine_waits_for_its_threads() -> None:
    settings, _ = settings_of({**ENGINES, **ADDRESS})
    assert max(settings.lookup_ms, settings.load_ms, settings.save_ms) <= 5_000


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "address"),
        ({"adress": "unix:/x"}, "adress"),
        ({"save_share_max": 0.5}, "save_share_max"),
        ({"load_threads": 4}, "load_threads"),
        ({"load": "layerwise"}, "load = 'layerwise'"),
        ({"save": "prompt"}, "save = 'prompt'"),
        ({"lookup_ms": 0}, "lookup_ms"),
        ({"lookup_ms": 8_001}, "lookup_ms = 8001"),
        ({"load_ms": 10_000}, "load_ms = 10000"),
        ({"save_ms": 30_000}, "save_ms = 30000"),
    ],
)
def test_what_nobody_reads_is_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(Misconfigured, match=named):
        settings_of({**ENGINES, **(ADDRESS if given else {}), **given})


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(Misconfigured, match="address"):
        settings_of(None)
