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

Part = Callable[["Load", int, int, float], bool]  # load, group, layer, until -> whether all of it arrived


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
        self._whole = [True] * len(loads)

    def start(self, workers: Workers) -> None:
        if not workers.submit(self._run):
            self._whole = [False] * len(self._loads)
            self._finish()

    def wait(self, name: str) -> None:
        """Until the layer is there, or will not be."""
        event = self._there.get(name)
        if event is not None:
            event.wait()

    def end(self) -> list[tuple[Load, bool]]:
        self._over.wait()
        return list(zip(self._loads, self._whole, strict=True))

    def _run(self) -> None:
        try:
            for name, group, layer in self._layers:
                for index, load in enumerate(self._loads):
                    if self._whole[index]:
                        self._whole[index] = self._part(load, group, layer, self._until)
                self._there[name].set()
        except BaseException:
            self._whole = [False] * len(self._loads)
            raise
        finally:
            self._finish()

    def _finish(self) -> None:
        for event in self._there.values():
            event.set()
        self._over.set()
