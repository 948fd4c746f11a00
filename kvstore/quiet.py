"""Law 4 for what runs beside the event loop: a waiter that is cancelled goes when the memory is quiet, not before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from kvstore.errors import Poisoned

__all__ = ["quietly"]

T = TypeVar("T")


async def quietly(future: asyncio.Future[T], on_cancel: Callable[[], None] | None = None) -> T:
    """Its result. Where the waiter is cancelled, however often, the cancellation goes through when `future` is done.
    That memory is not quiet is told all the same (Poisoned).
    """
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled() and isinstance(error := future.exception(), Poisoned):
            raise error from None
        raise
