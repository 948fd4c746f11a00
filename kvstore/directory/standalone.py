"""One node by itself: nobody to find, nothing to agree on."""

from __future__ import annotations

import asyncio

from kvstore.directory.agreement import Settings
from kvstore.directory.base import Discovery, Greet, Member, View

__all__ = ["Standalone"]


class Standalone:
    view = View()
    discovery = Discovery("standalone")

    async def join(self, me: Member, settings: Settings, greet: Greet) -> None:
        """At once."""

    async def changed(self, epoch: int) -> View:
        if epoch == self.view.epoch:
            await asyncio.Event().wait()  # for ever: whoever watches is cancelled
        return self.view

    async def leave(self) -> None:
        """Nobody looks for it."""
