"""An adapter's settings, as an engine's configuration has them: a flat mapping of JSON values.

Raises Misconfigured that names the key, its value and what is allowed; a key that nobody reads is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from kvstore.client import address as addresses
from kvstore.client.tls import Tls
from kvstore.errors import Misconfigured

__all__ = ["LOADS", "SAVES", "AdapterSettings"]

LOADS: Final = ("async", "layerwise", "none")
SAVES: Final = ("all", "prompt", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """address: the node, "unix:PATH" or "host:port". token, tenant: as the node's settings name them.

    load: "async" lets the engine run other requests while blocks arrive; "layerwise" loads within the step that needs
    them, layer by layer; "none" never loads. save: "all" full blocks, generated ones too; "prompt"; "none".
    revision: names the weights, where they cannot be looked at. lookup_ms: a request waits no longer for the store to
    say what it holds. load_ms, save_ms: deadlines of one request's load and of one save. handover_ms: how long a
    request that was told to expect blocks waits for them. promise_bytes_max: held in the node for requests that wait.
    save_share_max: of the engine's blocks, how many may be kept from reuse by saves under way. load_threads: at once.
    verify: off only to show why it is on. tls, tls_*: for a node that is reached over TLS; PEM files, and the system's
    own authorities where none is named.
    """

    address: str
    token: str = ""
    tenant: str = "default"
    load: str = "async"
    save: str = "all"
    revision: str = ""
    lookup_ms: int = 1_000
    load_ms: int = 10_000
    save_ms: int = 10_000
    handover_ms: int = 2_000
    promise_bytes_max: int = 8 << 30
    save_share_max: float = 0.25
    load_threads: int = 2
    verify: bool = True
    tls: bool = False
    tls_authority: str = ""
    tls_certificate: str = ""
    tls_key: str = ""

    @property
    def seal(self) -> Tls | None:
        """What the client needs for TLS; None for a node that is reached without."""
        if not (self.tls or self.tls_authority):
            return None
        return Tls(*(Path(path) if path else None for path in (self.tls_authority, self.tls_certificate, self.tls_key)))

    def but(self, **changed: Any) -> AdapterSettings:
        return replace(self, **changed)

    @classmethod
    def of(cls, given: Mapping[str, Any], unread: Collection[str] = ()) -> AdapterSettings:
        """From a mapping; what it does not say keeps its default. unread: what this adapter has no use for."""
        known = {field.name: field for field in fields(cls) if field.name not in unread}
        for key, value in given.items():
            if key not in known:
                raise Misconfigured(f"{key} = {value!r}: no such setting; known are {', '.join(known)}")
            wanted = _TYPES[str(known[key].type)]
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                raise Misconfigured(f"{key} = {value!r}: must be {_ARTICLES[str(known[key].type)]}")
        if "address" not in given:
            raise Misconfigured("address: missing; the node's, as unix:PATH or host:port")
        return cls(**given)

    def __post_init__(self) -> None:
        try:
            addresses.parse(self.address)
        except ValueError as error:
            raise Misconfigured(str(error)) from error
        for key, allowed in (("load", LOADS), ("save", SAVES)):
            value = getattr(self, key)
            if value not in allowed:
                raise Misconfigured(f"{key} = {value!r}: must be one of {', '.join(allowed)}")
        for key, (least, most) in _BOUNDS.items():
            value = getattr(self, key)
            if not least <= value <= most:
                raise Misconfigured(f"{key} = {value!r}: must be {least} to {most}")


_TYPES: Final[dict[str, Any]] = {"str": str, "int": int, "float": (int, float), "bool": bool}
_ARTICLES: Final = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_BOUNDS: Final = {
    "lookup_ms": (1, 60_000),
    "load_ms": (1, 600_000),
    "save_ms": (1, 600_000),
    "handover_ms": (0, 60_000),
    "promise_bytes_max": (1 << 20, 1 << 50),
    "save_share_max": (0.01, 0.9),
    "load_threads": (1, 64),
}
