"""What the tests of the store's connector do inside a vLLM process: `engine.call("tests.engines.store_probes:X")`."""

from __future__ import annotations

import threading
import time
from typing import Any

__all__ = [
    "clear",
    "counts",
    "decoded",
    "events",
    "forget",
    "inject",
    "listen",
    "mend",
    "pending",
    "preemptions",
    "watch",
]

_COUNTS: dict[str, float] = {}
_MENDED: list[Any] = []
_EVENTS: list[dict[str, Any]] = []


def _scheduler(engine: Any) -> Any:
    return engine.engine_core.engine_core.scheduler


def _ours(connector: Any) -> Any:
    """Our connector, also inside a MultiConnector."""
    children = getattr(connector, "_connectors", [connector])
    return next(child for child in children if type(child).__name__ == "KVStoreConnector")


def _halves(engine: Any) -> list[Any]:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    both = _ours(_scheduler(engine).connector), _ours(get_kv_transfer_group())
    return [connector._scheduler or connector._worker for connector in both]


def forget(engine: Any) -> bool:
    """Empties the engine's own prefix cache: what is found after this comes from the store."""
    return bool(engine.reset_prefix_cache(reset_connector=False))


def clear(engine: Any) -> bool:
    """The engine's own cache and the store's."""
    return bool(engine.reset_prefix_cache(reset_connector=True))


def pending(engine: Any) -> bool:
    """Whether saves are under way."""
    return bool(_scheduler(engine).connector.has_pending_push_work())


def watch(engine: Any) -> None:
    """Counts from here on what both halves count, whoever takes it away from them."""
    for half in _halves(engine):
        add = half.stats.add

        def counted(name: str, value: float, add: Any = add) -> None:
            _COUNTS[name] = _COUNTS.get(name, 0) + value
            add(name, value)

        half.stats.add = counted
    connector = _ours(_scheduler(engine).connector)
    sources = connector.get_external_cache_hit_sources

    def told(request: Any, tokens: int) -> Any:
        answer = sources(request, tokens)
        for source, count in answer.items():
            _COUNTS[f"from_{source.value}"] = _COUNTS.get(f"from_{source.value}", 0) + count
        return answer

    connector.get_external_cache_hit_sources = told


def counts(engine: Any) -> dict[str, float]:
    """What was counted since the last call."""
    told = dict(_COUNTS)
    _COUNTS.clear()
    return told


def preemptions(engine: Any, begin: bool = False) -> int:
    """How often a request was preempted since `begin`."""
    scheduler = _scheduler(engine)
    if begin:
        preempt = scheduler._preempt_request
        scheduler.seen_preemptions = 0

        def counted(*given: Any, **named: Any) -> Any:
            scheduler.seen_preemptions += 1
            return preempt(*given, **named)

        scheduler._preempt_request = counted
    return int(scheduler.seen_preemptions)


def inject(engine: Any, verb: str, how: str, after: int = 0, seconds: float = 0.0) -> None:
    """Until `mend`, calls of one of the store's verbs go wrong, from the one after `after` on:
    raise (the node is gone) | refuse (a limit) | short (what is not in the first block is missing) | slow."""
    from dataclasses import replace

    from kvstore.client.sync import Namespace
    from kvstore.errors import Rejected, Unavailable

    real = getattr(Namespace, verb)
    calls = [0]

    def wrong(self: Any, *given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] <= after:
            return real(self, *given, **named)
        if how == "raise":
            raise Unavailable("injected")
        if how == "refuse":
            raise Rejected("injected")
        if how == "slow":
            time.sleep(seconds)
            return real(self, *given, **named)
        answer = real(self, *given, **named)
        if verb == "get":
            return replace(answer, blocks=min(1, answer.blocks))
        if verb == "lookup":
            return replace(answer, blocks=0)
        if verb == "put":
            return replace(answer, stored=0, held=0, pending=0, rejected=given[0].shape[0])
        answer.close()
        return real(self, given[0][:1], *given[1:], **named)

    setattr(Namespace, verb, wrong)
    _MENDED.append(lambda: setattr(Namespace, verb, real))


def mend(engine: Any) -> None:
    while _MENDED:
        _MENDED.pop()()


def listen(engine: Any, endpoint: str) -> None:
    """Subscribes to the engine's KV events, as a router does."""
    import msgspec
    import zmq

    socket = zmq.Context.instance().socket(zmq.SUB)
    socket.connect(endpoint)
    socket.setsockopt(zmq.SUBSCRIBE, b"")

    def run() -> None:
        while True:
            *_, body = socket.recv_multipart()
            batch = msgspec.msgpack.decode(body)
            _EVENTS.extend(event for event in batch[1] if isinstance(event, dict))

    threading.Thread(target=run, daemon=True).start()
    time.sleep(0.5)  # a subscription takes effect a moment later


def events(engine: Any) -> list[dict[str, Any]]:
    told = [{key: value for key, value in event.items() if not isinstance(value, bytes)} for event in _EVENTS]
    _EVENTS.clear()
    return told


def decoded(engine: Any, payloads: list[str]) -> list[dict[str, Any]]:
    """Batches (in hex), read by the engine's own types."""
    import msgspec
    from vllm.distributed.kv_events import KVEventBatch

    decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
    batches = [decoder.decode(bytes.fromhex(payload)) for payload in payloads]
    return [{"type": type(event).__name__, **msgspec.to_builtins(event)} for one in batches for event in one.events]
