"""Which of upstream's tests run against our connector, and why the others do not.

Names are upstream's, from tests/v1 on; one that ends early is of all that begin so.
"""

from __future__ import annotations

__all__ = ["FILES", "LOAD_ONLY", "SELECTED", "SKIPPED", "THEIRS", "selected", "why"]

UNIT = "kv_connector/unit/"
FILES = (
    UNIT + "test_remote_prefill_lifecycle.py",
    UNIT + "test_remote_decode_lifecycle.py",
    UNIT + "test_invalid_blocks_correctness.py",
    UNIT + "test_kv_load_failure_recovery.py",
    UNIT + "test_cache_pollution_prevention.py",
    UNIT + "test_error_propagation.py",
    UNIT + "test_kv_connector_lifecycle.py",
    UNIT + "test_multi_connector.py",
    UNIT + "test_output_aggregator.py",
    UNIT + "test_hma_auto_config.py",
    UNIT + "test_example_connector.py",
    UNIT + "test_scheduler_kv_connector_override.py",
    "core/test_scheduler.py",
    "core/test_async_scheduler.py",
    "core/test_deferred_block_free.py",
)

# Of files that are mostly about other things: the tests that make a connector.
SELECTED = {
    "core/test_scheduler.py": (
        "test_throttle_prefills_excludes_fully_transferred_remote_kv",
        "test_throttle_prefills_defers_remote_kv_resume",
        "test_prefix_cache_query_not_inflated_by_connector_defer",
        "test_spec_decode_padding_resumed_request",
        "test_pause_new_drains_async_kv_loads",
        "test_has_sync_kv_loads",
        "test_kv_connector_",
        "test_external_prefix_cache_metrics",
    ),
    "core/test_async_scheduler.py": (
        "test_connector_metadata_precedes_async_placeholder_advance",
        "test_requires_kv_delivery",
        "test_kv_pressure_preempt_mid_handoff",
    ),
    "core/test_deferred_block_free.py": ("test_gate_enabled_for_async_consumer",),
}

_PULL = (
    "of a connector whose peer pulls: the producer names its blocks to the peer and keeps them until they were read;"
    " ours has stored them"
)
_WHOLE = "promises a whole prompt; a cache leaves its last token to compute, as a hit of the engine's own does"
_MAMBA = "recurrent state, which is not supported yet: the store stays out of such an engine"
_MODEL = "wants weights that are not here"

_PREFILL = UNIT + "test_remote_prefill_lifecycle.py::"
SKIPPED: dict[str, str] = {
    _PREFILL + "test_basic_lifecycle": "promises half a block; a store has whole ones",
    _PREFILL + "test_full_block_prompt": _WHOLE,
    _PREFILL + "test_async_load_reserves_blocks_for_promotion_margin": _WHOLE + "; counts the blocks of that",
    _PREFILL + "test_no_spurious_prefix_caching": "expects that the second request of the same prompt is computed; "
    "a store is found by content, so ours loads it for the second, too",
    _PREFILL + "test_p_side_chunked_prefill_mamba": _MAMBA,
    _PREFILL + "test_async_load_does_not_double_reserve_mamba_spec_blocks": _MAMBA,
    UNIT + "test_remote_decode_lifecycle.py": _PULL,
    UNIT + "test_multi_connector.py::test_multi_example_connector_consistency": _MODEL
    + ", and compares the files of two ExampleConnectors",
    UNIT + "test_example_connector.py": _MODEL + ", and counts the folders that ExampleConnector makes",
    "core/test_scheduler.py::test_throttle_prefills_excludes_fully_transferred_remote_kv": _WHOLE,
    "core/test_scheduler.py::test_has_sync_kv_loads[load_modes2-True]": "one connector that loads within a step for "
    "one request and beside it for another; ours does what its setting `load` says, for all",
    "core/test_scheduler.py::test_external_prefix_cache_metrics[False-": "promises 4 tokens of blocks of 16",
    "core/test_async_scheduler.py::test_requires_kv_delivery": "a producer that must deliver; ours is a cache",
    "core/test_async_scheduler.py::test_kv_pressure_preempt_mid_handoff[kv_producer": "a producer that must deliver; "
    "ours is a cache: what is not saved is computed again",
}

# The blocks of a test's requests are counted, or their references are, and a save under way holds some.
LOAD_ONLY: dict[str, str] = {
    "core/test_async_scheduler.py::test_kv_pressure_preempt_mid_handoff": "with saves under way the engine waits for "
    "their blocks before it preempts",
}

# Upstream's own connector is what these are about.
THEIRS: dict[str, str] = {UNIT + "test_multi_connector.py::TestMultiConnectorStats": "NIXL's own stats"}


def why(nodeid: str, reasons: dict[str, str]) -> str:
    """The reason given for this test: the longest entry that its name begins with."""
    name = nodeid.removeprefix("tests/v1/")
    found = max((entry for entry in reasons if name.startswith(entry)), key=len, default="")
    return reasons.get(found, "")


def selected(nodeid: str) -> bool:
    file, _, test = nodeid.removeprefix("tests/v1/").partition("::")
    return file not in SELECTED or test.startswith(SELECTED[file])
