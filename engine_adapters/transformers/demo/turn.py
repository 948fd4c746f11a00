"""One turn of a conversation: prefill publishes, decode fetches and generates, and decode does it again without the
store for the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvstore.demo.child import Child

from .conversation import Conversation
from .report import Row

__all__ = ["BLOCK_TOKENS", "NEW_TOKENS", "converse", "decoded", "prefilled", "worker_flags"]

BLOCK_TOKENS = 64
NEW_TOKENS = 24


def worker_flags(layers: int, longest: int) -> list[str]:
    return ["--layers", str(layers), "--block-tokens", str(BLOCK_TOKENS), "--warm-tokens", str(longest)]


def converse(talk: Conversation, said: int, prefill: Child, decode: Child, tiers: Mapping[str, int]) -> Row:
    """tiers: names of those that tables show, and their numbers."""
    ids = talk.say(said)
    return decoded(talk, ids, prefilled(talk, ids, prefill, tiers), decode, tiers)


def prefilled(
    talk: Conversation, ids: list[int], prefill: Child, tiers: Mapping[str, int], *, again: bool = False
) -> dict[str, int]:
    """How many blocks prefill got from each tier; it has computed the rest and published all. again: it was done
    before, so that all of it should be somewhere.
    """
    filled = prefill.ask(verb="prefill", ids=ids, session=talk.user + 1, turn=talk.turn, again=again)
    return _by_name(filled["tiers"], tiers)


def decoded(
    talk: Conversation, ids: list[int], prefill_tiers: dict[str, int], decode: Child, tiers: Mapping[str, int]
) -> Row:
    with_store = decode.ask(verb="decode", new=NEW_TOKENS, ids=ids, session=talk.user + 1, turn=talk.turn)
    alone = decode.ask(verb="alone", new=NEW_TOKENS, ids=ids, boundary=with_store["held"])
    talk.answer(with_store["tokens"])
    apart = max(abs(a - b) for a, b in zip(with_store["logits"], alone["logits"], strict=True))
    return Row(
        user=talk.user,
        turn=talk.turn,
        prompt=len(ids),
        blocks=(len(ids) - 1) // BLOCK_TOKENS,
        held=with_store["held"],
        tiers=_by_name(with_store["tiers"], tiers),
        prefill_tiers=prefill_tiers,
        fetch_s=with_store["fetch_s"],
        with_s=with_store["ttft_s"],
        without_s=alone["ttft_s"],
        same_tokens=with_store["tokens"] == alone["tokens"],
        logits_apart=apart,
    )


def _by_name(told: Mapping[str, int], tiers: Mapping[str, int]) -> dict[str, int]:
    return {name: told.get(str(number), 0) for name, number in tiers.items()}
