"""What a prefill server tells a decode server, by way of whoever stands between them (kv_transfer_params).

    prefill's answer    {"kvstore": {"blocks": 12}}      so many blocks of this prompt are in the store, or on their way
    decode's request    the same                         it waits for them, up to handover_ms, before it computes them

Nothing depends on it: without it, or if it is wrong, a prompt is looked for as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm.v1.request import Request

__all__ = ["FIELD", "expected_blocks", "told"]

FIELD: Final = "kvstore"
BLOCKS_MAX: Final = 1 << 20


def expected_blocks(request: Request) -> int:
    """How many blocks a request was told to expect; 0 for none, and for what is not a number of blocks."""
    parameters = request.kv_transfer_params
    said = parameters.get(FIELD) if isinstance(parameters, dict) else None
    blocks = said.get("blocks", 0) if isinstance(said, dict) else 0
    return blocks if isinstance(blocks, int) and 0 < blocks <= BLOCKS_MAX else 0


def told(request: Request, blocks: int) -> dict[str, Any] | None:
    """What an answer carries: only where its request asked for it, by having the field."""
    parameters = request.kv_transfer_params
    if not isinstance(parameters, dict) or FIELD not in parameters:
        return None
    return {FIELD: {"blocks": blocks}}
