"""Loads within the step that needs them: layer after layer, so that the first layers compute while the last arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine_adapters.base.workers import Workers
    from engine_adapters.vllm.meta import Load

__all__ = ["Layerwise"]

Part = Callable[["Load", int, int, float], int]  # load, group, layer, until -> the first block that did not arrive


class Layerwise:
    """One step's. layers: name, group, place in the group, in the order in which the model runs them.

    `end` returns when nothing is written any more, whatever the model ran: its answer is about all layers.
    """

    def __init__(
        self, loads: Sequence[Load], part: Part, layers: Sequence[tuple[str, int, int]], deadline_s: float
    ) -> None:
        self._loads, self._part, self._layers = loads, part, layers
        self._until = time.monotonic() + deadline_s
        self._there = {name: threading.Event() for name, _, _ in layers}
        self._over = threading.Event()
        self._arrived = [load.end for load in loads]  # of each the first block that some layer lacks

    def start(self, workers: Workers) -> None:
        if not workers.submit(self._run):
            self._nothing()
            self._finish()

    def wait(self, name: str) -> None:
        """Until the layer is there, or will not be."""
        event = self._there.get(name)
        if event is not None:
            event.wait()

    def end(self) -> list[tuple[Load, int]]:
        """Each load, and the first block of it that did not arrive in every layer; its end where all did."""
        self._over.wait()
        return list(zip(self._loads, self._arrived, strict=True))

    def _run(self) -> None:
        try:
            for name, group, layer in self._layers:
                for index, load in enumerate(self._loads):
                    if self._arrived[index] > load.first:
                        arrived = self._part(load, group, layer, self._until)
                        self._arrived[index] = min(self._arrived[index], arrived)
                self._there[name].set()
        except BaseException:
            self._nothing()
            raise
        finally:
            self._finish()

    def _nothing(self) -> None:
        self._arrived = [load.first for load in self._loads]

    def _finish(self) -> None:
        for event in self._there.values():
            event.set()
        self._over.set()
