"""What every Medium must do. Subclass, give a `medium` fixture (opened, of at least 1 MiB, any bytes in it), and run.

Buffers come from `aligned`, so that direct I/O takes them.
"""

from __future__ import annotations

import asyncio
import mmap
import random

from kvstore.tiers.base import Extent, Medium

__all__ = ["MediumExam", "aligned", "filled"]


def aligned(length: int) -> memoryview:
    """Zeroed memory on a page of its own."""
    return memoryview(mmap.mmap(-1, length))


def filled(length: int, seed: int) -> memoryview:
    buffer = aligned(length)
    buffer[:] = random.Random(seed).randbytes(length)
    return buffer


class MediumExam:
    async def test_what_was_written_is_read(self, medium: Medium) -> None:
        step = 5 * medium.align
        extents = [Extent(i * step, step) for i in range(20)]
        sources = [filled(step, i) for i in range(20)]
        assert list(await medium.write(extents, sources)) == [None] * 20
        into = [aligned(step) for _ in extents]
        assert list(await medium.read(extents, into)) == [None] * 20
        assert [bytes(b) for b in into] == [bytes(b) for b in sources]

    async def test_pieces_are_one_range(self, medium: Medium) -> None:
        align = medium.align
        head, body = filled(align, 1), filled(3 * align, 2)
        assert list(await medium.write([Extent(8 * align, 4 * align)], [(head, body)])) == [None]
        whole = aligned(4 * align)
        assert list(await medium.read([Extent(8 * align, 4 * align)], [whole])) == [None]
        assert bytes(whole) == bytes(head) + bytes(body)
        first, rest = aligned(3 * align), aligned(align)
        assert list(await medium.read([Extent(8 * align, 4 * align)], [(first, rest)])) == [None]
        assert bytes(first) + bytes(rest) == bytes(whole)

    async def test_a_write_leaves_its_neighbours_alone(self, medium: Medium) -> None:
        align = medium.align
        before = filled(3 * align, 3)
        await medium.write([Extent(0, 3 * align)], [before])
        await medium.write([Extent(align, align)], [filled(align, 4)])
        after = aligned(3 * align)
        await medium.read([Extent(0, 3 * align)], [after])
        assert bytes(after[:align]) == bytes(before[:align])
        assert bytes(after[align : 2 * align]) == bytes(filled(align, 4))
        assert bytes(after[2 * align :]) == bytes(before[2 * align :])

    async def test_the_last_bytes_belong_to_it(self, medium: Medium) -> None:
        extent = Extent(medium.size - medium.align, medium.align)
        source, into = filled(medium.align, 5), aligned(medium.align)
        assert list(await medium.write([extent], [source])) == [None]
        assert list(await medium.read([extent], [into])) == [None]
        assert bytes(into) == bytes(source)

    async def test_nothing_asked_is_nothing_answered(self, medium: Medium) -> None:
        assert list(await medium.read([], [])) == []
        assert list(await medium.write([], [])) == []

    async def test_many_at_once(self, medium: Medium) -> None:
        align = medium.align

        async def one(index: int) -> None:
            source, into = filled(align, index), aligned(align)
            extent = Extent(index * align, align)
            assert list(await medium.write([extent], [source])) == [None]
            assert list(await medium.read([extent], [into])) == [None]
            assert bytes(into) == bytes(source)

        await asyncio.gather(*(one(i) for i in range(100)))

    async def test_a_cancelled_read_leaves_quiet_memory(self, medium: Medium) -> None:
        length = 64 * medium.align
        extents = [Extent(0, length)]
        await medium.write(extents, [filled(length, 6)])
        for turn in range(20):
            into = aligned(length)
            task = asyncio.ensure_future(medium.read(extents * 16, [into] * 16))
            for _ in range(turn % 4):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            into[:] = bytes(length)
            await medium.read(extents, [aligned(length)])  # whatever was still under way has had its time
            assert bytes(into) == bytes(length)

    async def test_bytes_stay_over_sync(self, medium: Medium) -> None:
        extents = [Extent(0, medium.align)]
        await medium.write(extents, [filled(medium.align, 7)])
        await medium.sync()
        into = aligned(medium.align)
        await medium.read(extents, [into])
        assert bytes(into) == bytes(filled(medium.align, 7))
