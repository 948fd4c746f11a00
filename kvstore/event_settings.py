"""What an operator says about KV events over ZeroMQ: a section of the configuration (`[events]`). Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.allowed import MIB
from kvstore.errors import Misconfigured
from kvstore.security import DEFAULT_TENANT

__all__ = ["EventsConfig"]


@dataclass(frozen=True, slots=True)
class EventsConfig:
    """KV events for routers, as vLLM publishes them (docs/routers.md). Off by default: they tell what prompts say.

    zmq, replay: tcp://HOST:PORT, port 0 any free one, or ipc://PATH; "none": not. ZeroMQ has no TLS and no tokens here,
    so beyond this machine neither is bound without security.insecure.
    topic: of every batch. form: of an event, "maps" as vLLM sends them today, or "arrays" as before.
    tenants, model: whose blocks are told; no model: of every one.
    buffer_steps, buffer_bytes_max: the last batches, kept for replays.
    """

    zmq: str = "none"
    replay: str = "none"
    topic: str | None = None
    form: str = "maps"
    tenants: tuple[str, ...] = (DEFAULT_TENANT,)
    model: str | None = None
    buffer_steps: int = 10_000
    buffer_bytes_max: int = 64 * MIB

    def __post_init__(self) -> None:
        if self.replay != "none" and self.zmq == "none":
            raise Misconfigured(f"events.replay = {self.replay!r}: is not read without events.zmq")

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(address for address in (self.zmq, self.replay) if address != "none")
