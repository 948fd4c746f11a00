"""Fetches the cache of a prompt's prefix from the store, and publishes what was computed.

    connector = StoreConnector(client, model, revision="…")
    fetched = connector.fetch(input_ids)                 # .cache covers .tokens of the prompt, at most all but the last
    out = model(input_ids[:, fetched.tokens:], past_key_values=fetched.cache, use_cache=True)
    connector.publish(input_ids, out.past_key_values)    # whole blocks only; those held already are not sent again

The engine never dies because the store did: an unavailable store is a prompt that nobody has seen before.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import transformers

from kvstore import Client, Extents, Hints
from kvstore.block_meta import metas_of
from kvstore.errors import KvStoreError

from .extents import block_table
from .layout import layout_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """`cache` holds the KV of the first `tokens` tokens; `tiers` says where each of its blocks came from."""

    cache: transformers.DynamicCache
    tokens: int
    blocks: int
    tiers: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))


class StoreConnector:
    """One model's door to the store. Batch size one: prompts of a batch have caches of their own."""

    def __init__(
        self,
        client: Client,
        model: transformers.PreTrainedModel,
        *,
        revision: str,
        block_tokens: int = 64,
        tenant: str = "default",
    ) -> None:
        self.layout = layout_of(model, revision=revision, block_tokens=block_tokens)
        self.namespace = client.namespace(self.layout, tenant=tenant)
        self.block_tokens = block_tokens
        config = model.config
        self._layers = int(config.num_hidden_layers)
        heads = int(config.num_attention_heads)
        self._kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        self._head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self._dtype = model.dtype

    def fetch(self, input_ids: torch.Tensor, hints: Hints | None = None) -> Fetched:
        """The longest stored prefix of `input_ids` (1, tokens), always leaving at least one token to compute."""
        prompt = _prompt(input_ids)
        try:
            chain = self.namespace.chain(prompt)[: (len(prompt) - 1) // self.block_tokens]
            found = self.namespace.lookup(chain)
            if found.blocks == 0:
                return Fetched(transformers.DynamicCache(), 0, 0)
            tensors = self._tensors(found.blocks * self.block_tokens)
            into = Extents(tensors, block_table(tensors, 0, found.blocks, self.block_tokens))
            got = self.namespace.get(chain[: found.blocks], into, hints=hints)
        except KvStoreError as error:
            log.warning("the store is not to be had, computing the whole prompt: %s", error)
            return Fetched(transformers.DynamicCache(), 0, 0)
        tokens = got.blocks * self.block_tokens
        return Fetched(self._cache(tensors, tokens), tokens, got.blocks, got.tiers)

    def publish(self, input_ids: torch.Tensor, cache: transformers.DynamicCache, hints: Hints | None = None) -> int:
        """Publishes the whole blocks of `input_ids` (1, tokens) that `cache` covers; returns how many were new."""
        prompt = _prompt(input_ids)
        covered = min(len(prompt), int(cache.get_seq_length()))
        blocks = covered // self.block_tokens
        if blocks == 0:
            return 0
        try:
            chain = self.namespace.chain(prompt[: blocks * self.block_tokens])
            tensors = [t.contiguous() for layer in cache.layers for t in (layer.keys, layer.values)]
            source = Extents(tensors, block_table(tensors, 0, blocks, self.block_tokens))
            metas = metas_of(
                [int.from_bytes(key[-8:].tobytes(), "big") for key in chain],
                parent=None,
                tokens=prompt[: blocks * self.block_tokens],
                block_tokens=self.block_tokens,
            )
            return self.namespace.put(chain, source, metas=metas, hints=hints).stored
        except KvStoreError as error:
            log.warning("not published: %s", error)
            return 0

    def _tensors(self, tokens: int) -> list[torch.Tensor]:
        shape = (1, self._kv_heads, tokens, self._head_dim)
        return [torch.empty(shape, dtype=self._dtype) for _ in range(2 * self._layers)]

    def _cache(self, tensors: list[torch.Tensor], tokens: int) -> transformers.DynamicCache:
        pairs = [(tensors[i][:, :, :tokens], tensors[i + 1][:, :, :tokens]) for i in range(0, len(tensors), 2)]
        return transformers.DynamicCache(pairs if tokens else None)


def _prompt(input_ids: torch.Tensor) -> npt.NDArray[np.int64]:
    if input_ids.dim() != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids: shape {tuple(input_ids.shape)}, must be (1, tokens)")
    return np.ascontiguousarray(input_ids[0].numpy(), dtype=np.int64)
