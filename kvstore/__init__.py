"""A distributed, tiered store for the KV cache of large language models.

Names are loaded when they are first used, so that importing one part of the package does not load the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.client import (
        AsyncClient,
        AsyncNamespace,
        Cleared,
        Client,
        Ended,
        Extents,
        Found,
        Got,
        Held,
        Hints,
        Namespace,
        PutOutcome,
        Stored,
        View,
    )
    from kvstore.identity import Embeds, Lora, Multimodal, Salt
    from kvstore.layout import CacheGroup, GroupKind, KVLayout, Need, NeedKind

__version__ = "0.1.0"  # as in pyproject.toml

__all__ = [
    "AsyncClient",
    "AsyncNamespace",
    "CacheGroup",
    "Cleared",
    "Client",
    "Embeds",
    "Ended",
    "Extents",
    "Found",
    "Got",
    "GroupKind",
    "Held",
    "Hints",
    "KVLayout",
    "Lora",
    "Multimodal",
    "Namespace",
    "Need",
    "NeedKind",
    "PutOutcome",
    "Salt",
    "Stored",
    "View",
    "__version__",
]

_HOMES = {
    **dict.fromkeys(("Embeds", "Lora", "Multimodal", "Salt"), "kvstore.identity"),
    **dict.fromkeys(("CacheGroup", "GroupKind", "KVLayout", "Need", "NeedKind"), "kvstore.layout"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES.get(name, "kvstore.client")), name)
    globals()[name] = value
    return value
