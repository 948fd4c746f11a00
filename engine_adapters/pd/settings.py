"""What a proxy is told: its servers, and its limits, each with a name, a default and an answer (docs/vllm.md)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final
from urllib.parse import urlsplit

from kvstore.errors import Misconfigured

__all__ = ["LIMITS", "Settings", "urls_of"]


def _limit(default: int, least: int, most: int, text: str) -> int:
    of: int = field(default=default, metadata={"bounds": (least, most), "text": text})
    return of


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """prefill, decode: base URLs of engine servers, of one model. The rest are limits; raises Misconfigured."""

    decode: tuple[str, ...]
    prefill: tuple[str, ...] = ()
    prefill_tokens_min: int = _limit(256, 0, 1 << 30, "A prompt of fewer tokens, about, goes to decode alone.")
    requests_max: int = _limit(512, 1, 1 << 20, "Requests at once; one more is answered 503 with Retry-After.")
    body_bytes_max: int = _limit(8 << 20, 1 << 10, 1 << 30, "Of a request; a longer one is answered 413.")
    body_ms: int = _limit(30_000, 1, 3_600_000, "For a request's body to arrive; then 408.")
    connect_ms: int = _limit(2_000, 1, 60_000, "To connect to a server; then another one is asked.")
    prefill_ms: int = _limit(60_000, 1, 3_600_000, "For a prefill; then decode alone, and the prefill is aborted.")
    answer_ms: int = _limit(600_000, 1, 86_400_000, "For the whole answer; then 504, or it is broken off.")
    health_ms: int = _limit(1_000, 10, 600_000, "Between two looks at each server's health.")
    failures_max: int = _limit(3, 1, 1_000, "In a row, of a server that can be reached, until it is left out.")

    def __post_init__(self) -> None:
        if not self.decode:
            raise Misconfigured("decode: missing; one URL at least")
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise Misconfigured(f"{name} = {value}: must be {least} to {most}")


LIMITS: Final[dict[str, tuple[int, int]]] = {
    one.name: one.metadata["bounds"] for one in fields(Settings) if "bounds" in one.metadata
}


def urls_of(name: str, text: str) -> tuple[str, ...]:
    """Of "http://a:8000,http://b:8000". Raises Misconfigured that names the setting."""
    urls = []
    for one in filter(None, (part.strip() for part in text.split(","))):
        try:
            split = urlsplit(one)
            good = split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
        except ValueError:
            good = False
        if not good or split.query or split.fragment or split.username:
            raise Misconfigured(f"{name} = {one}: must be http://HOST:PORT or https://HOST:PORT")
        urls.append(one.rstrip("/"))
    if len(set(urls)) < len(urls):
        raise Misconfigured(f"{name} = {text}: names a server twice")
    return tuple(urls)
