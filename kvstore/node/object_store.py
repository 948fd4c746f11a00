"""A node's object tier, put together: store, index, tier, writer, prober, sweeper.

Order: `open` before the core serves, `start` once the tiers above are there, `stop` after the mover (which reads from
here) and before the tiers above go (which the writer reads from).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvstore.errors import Misconfigured
from kvstore.node.pack_writer import PackWriter
from kvstore.node.prober import BringUp, Prober
from kvstore.node.sweeper import Sweeper
from kvstore.tiers.base import TierKind
from kvstore.tiers.object import ObjectTier
from kvstore.tiers.object_tier import PackTier
from kvstore.tiers.pack_index import PackIndex

if TYPE_CHECKING:
    from kvstore import native
    from kvstore.config import ObjectConfig
    from kvstore.node.namespaces import Namespaces, Opened
    from kvstore.tiers.base import Keys, Shapes, Tier

__all__ = ["ObjectStore"]

log = logging.getLogger(__name__)

LOCAL_BYTES: Final = 32 << 30  # of a directory, where nothing is said: three times the file tier's own default
LOCAL_SHARE: Final = 4  # and at most so much of the free disk; the file tier takes up to half
WATCH_S: Final = 0.25  # how often it is looked whether the store answers again


class ObjectStore:
    """Lives on one event loop."""

    def __init__(self, config: ObjectConfig, url: str) -> None:
        self._config = config
        self.url = url
        self.store: ObjectTier
        self.tier: PackTier
        self.writer: PackWriter
        self.prober: Prober
        self.sweeper: Sweeper
        self._core: native.NodeCore
        self._namespaces: Namespaces
        self._watching: asyncio.Task[None] | None = None
        self.bytes_max = 0
        self._clear: Callable[[Opened], None]
        self._in_force_of: set[int] = set()  # namespaces that were not cleared when last looked at

    def open(self) -> None:
        """Raises Misconfigured. Says nothing of whether the store answers: a node starts without it."""
        config = self._config
        options = dict(one.split("=", 1) for one in config.options)
        self.store = ObjectTier.open(
            self.url,
            timeout_s=config.timeout_ms / 1000,
            retries=config.retries,
            concurrency=config.concurrency,
            options=options,
        )
        self.bytes_max = self._bytes_max()
        path = self._path()
        if path is not None and not os.access(path, os.W_OK):
            log.warning("object tier: %s: cannot be written: what lies there is read, and nothing comes to it", path)

    def _path(self) -> Path | None:
        """Of a local directory."""
        return Path(self.url.removeprefix("file://")) if self.url.startswith("file://") else None

    def _bytes_max(self) -> int:
        if self._config.bytes_max is not None:
            return self._config.bytes_max
        path = self._path()
        if path is None:
            return 0  # a bucket's size is its owner's to decide
        stats = os.statvfs(path)
        free = stats.f_bavail * stats.f_frsize
        return max(1, min(LOCAL_BYTES, (free + _bytes_in(path)) // LOCAL_SHARE))

    def start(
        self,
        core: native.NodeCore,
        namespaces: Namespaces,
        shapes: Shapes,
        above: Sequence[Tier],
        bring_up: BringUp,
        clear: Callable[[Opened], None],
    ) -> None:
        """above: the tiers that blocks come from, the one right above first. clear: what to do about a namespace that
        another node of the store has cleared, or this one in a life that it has forgotten.
        """
        self._clear = clear
        config = self._config
        core.set_object_tier(config.blocks_max)
        self._core, self._namespaces = core, namespaces
        index = PackIndex(core, config.blocks_max)
        self.store.on_gone = index.gone
        self.tier = PackTier(self.store, index, shapes)
        self.prober = Prober(core, self.tier, config.probe_again_ms / 1000, bring_up, self._in_force)
        self.prober.start()
        self.sweeper = Sweeper(self.store, self.bytes_max, config.sweep_ms / 1000, index.read_lately)
        self.sweeper.start()
        source = TierKind(above[0].kind)
        self.writer = PackWriter(core, source, above, self.tier, config.write_bytes_max, self.sweeper.admit)
        self.writer.start()
        self._watching = asyncio.ensure_future(self._watch())

    async def stop(self) -> None:
        if self._watching is None:
            return
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        await self.prober.stop()
        await self.writer.stop(self._config.flush_ms / 1000)
        await self.sweeper.stop()
        await self.tier.close()

    def cleared(self, opened: Opened) -> None:
        """It names nothing any more."""
        self.tier.index.drop(opened.handle)
        self.sweeper.clear(opened.digest)

    def over(self, digests: Iterable[bytes]) -> None:
        """Namespaces that were cleared before this start: a node that was killed may have left its packs."""
        for digest in digests:
            self.sweeper.clear(digest)

    async def find(self, ns: int, shard: int, keys: Keys, position: int, wait_s: float) -> None:
        """Looks for the packs of a chain that ended at keys[0]."""
        if len(keys):
            await self.prober.find(ns, shard, keys, position, wait_s)

    def stats(self) -> dict[str, int]:
        """Counters by name, as a tier's report has them; see ObjectCounts."""
        told = {f"object_{name}": count for name, count in asdict(self.store.counts).items()}
        return {
            "payload_bytes_sealed": self.sweeper.bytes_stored,
            "blocks_known": len(self.tier.index),
            "object_circuit_opened": self.store.circuit.opened,
            "object_unreachable": int(self.store.circuit.is_open),
            "object_sweeps": self.sweeper.sweeps,
            "object_probes_dropped": self.prober.dropped,
            "object_write_failures": self.writer.failures,
            "object_blocks_written": self.writer.blocks_written,
            "object_blocks_passed_over": self.writer.blocks_passed,
            **told,
        }

    async def _in_force(self, ns: int) -> bool:
        """Asked of the store once in `sweep_ms`. While it does not answer, nothing is taken from it anyway."""
        if ns in self._in_force_of:
            return True
        opened = self._namespaces.by_handle(ns)
        cleared = await self.store.is_cleared(opened.digest) if opened is not None else True
        if cleared and opened is not None and self._namespaces.find(opened.digest) is opened:
            log.warning("object tier: a namespace of %s was cleared elsewhere", opened.tenant)
            self._clear(opened)
        if cleared is False:
            self._in_force_of.add(ns)
        return cleared is False

    async def _watch(self) -> None:
        """Tells the core whether what lies here can be counted on, and asks a silent store from time to time."""
        answers = True
        look_at = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(WATCH_S)
            if asyncio.get_running_loop().time() >= look_at:
                look_at += self._config.sweep_ms / 1000
                self._in_force_of.clear()
                for opened in self._namespaces.all():
                    await self._in_force(opened.handle)
            if self.store.circuit.is_open:
                await self.store.answers()
            if answers != (not self.store.circuit.is_open):
                answers = not answers
                self._core.object_answers(answers)
                if answers:  # what was dropped or failed meanwhile may be asked for again at once
                    self._core.forget_probes()
                log.warning("object tier: %s %s", self.url, "answers again" if answers else "does not answer")


def _bytes_in(path: Path) -> int:
    """What lies there, while other nodes that share it may write and delete: os.walk passes over folders that go."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(folder, name).stat().st_size
    return total


def url_of(config: ObjectConfig, home: Path) -> str | None:
    """Where it lies; None: it is off. Raises Misconfigured."""
    if config.url == "none":
        return None
    if config.url is not None:
        return config.url
    path = (home / "objects").absolute()
    try:
        path.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise Misconfigured(f"object.url = file://{path}: {error.strerror}") from error
    return f"file://{path}"
