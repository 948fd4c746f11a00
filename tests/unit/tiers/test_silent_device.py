"""A medium closed while its device does not answer: nobody is told that memory is quiet, nothing is given back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kvstore.clock import SystemClock
from kvstore.tiers import medium as medium_module
from kvstore.tiers.base import Extent
from kvstore.tiers.data_dir import DataDir, Geometry
from kvstore.tiers.medium import FileMedium, MotionConfig

GEOMETRY = Geometry(slab_bytes=1 << 20, slabs_per_file=1, slabs=2)


class Silent:
    """A native engine under which a request hangs. Real ones: native/tests/test_io_hung.cpp."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.limits: list[int] = []
        self.answered = False

    def submit(self, *_: object) -> int:
        return 1

    def cancel(self, _: int) -> None:
        pass

    def reap(self) -> list[tuple[int, None]]:
        return [(1, None)] if self.answered else []

    def close(self, limit_ns: int) -> bool:
        self.limits.append(limit_ns)
        return self.answered

    def features(self) -> dict[str, object]:
        return {"engine": "threads", "note": ""}

    def stats(self) -> dict[str, int]:
        return {"running": int(not self.answered)}


@pytest.mark.parametrize("answers", [False, True])
async def test_a_close_ends_and_says_whether_memory_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answers: bool
) -> None:
    engine = Silent()
    monkeypatch.setattr(medium_module.native, "IoEngine", lambda *_: engine)
    medium = FileMedium(DataDir(tmp_path), GEOMETRY, MotionConfig(engine="threads"), SystemClock())
    await medium.open()
    files = list(medium._files)
    waiting = asyncio.ensure_future(medium.read([Extent(0, 4096)], [memoryview(bytearray(4096))]))
    await asyncio.sleep(0)
    engine.answered = answers
    await medium.close()
    assert engine.limits == [int(medium_module.CLOSE_MAX_S * 1e9)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert waiting.done() == answers, "an answer means quiet memory"
    assert ("does not answer" in caplog.text) == (not answers)
    for file in files:
        if answers:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(file)
        else:
            os.close(file)  # its number is nobody else's: the device may come back and go on with it
    assert medium.stats == {} and medium.name == "closed"
    os.close(engine.event_fd)
    if not answers:
        waiting.get_coro().close()  # type: ignore[union-attr]
