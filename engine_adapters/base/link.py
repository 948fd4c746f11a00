"""An adapter's link to its node: opened where waiting is allowed, and left alone for a while after it failed.

The engine never dies, and never waits, because the store did: while the link is down every question is answered with
"nothing", at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvstore import Client
from kvstore.errors import KvStoreError, Unavailable

if TYPE_CHECKING:
    from engine_adapters.base.settings import AdapterSettings
    from kvstore import KVLayout, Namespace

__all__ = ["Breaker", "Link"]

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.25  # after the first failure; doubled with each one
AGAIN_S_MAX: Final = 15.0
QUIET_S: Final = 10.0  # between two complaints


class Breaker:
    """Whether to ask at all. Pure but for its lock; `now` in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self.again_at = 0.0  # may be read without the lock: it is one number

    def allows(self, now: float) -> bool:
        return now >= self.again_at

    def failed(self, now: float) -> bool:
        """Whether this is news."""
        with self._lock:
            if now < self.again_at:
                return False  # several calls under way failed for one reason
            self.again_at = now + min(AGAIN_S_MAX, AGAIN_S * 2.0**self._failures)
            self._failures = min(self._failures + 1, 16)
            return self._failures == 1

    def worked(self) -> bool:
        """Whether this is news."""
        with self._lock:
            back = self._failures > 0
            self._failures, self.again_at = 0, 0.0
            return back


class Link:
    """Thread-safe. Nothing here raises for a store that is not there; what is misconfigured raises when it is made."""

    def __init__(self, settings: AdapterSettings, layout: KVLayout, now: Callable[[], float] = time.monotonic) -> None:
        self.layout, self._now = layout, now
        self._settings = settings
        self._breaker = Breaker()
        self._opening = threading.Lock()
        self._quiet_until = 0.0
        self.opened: Namespace | None = None  # if it was opened at some time
        self._client = Client(
            settings.address,
            token=settings.token or None,
            tls=settings.seal,
            deadline_s=max(1.0, settings.lookup_ms / 1e3),
            verify=settings.verify,
        )

    @property
    def client(self) -> Client:
        return self._client

    @property
    def up(self) -> bool:
        """Whether asking is worth while. It does not ask."""
        return self._now() >= self._breaker.again_at

    def namespace(self) -> Namespace | None:
        """None while the store is not to be had. May wait: not for an engine's own thread."""
        if not self._breaker.allows(self._now()):
            return None
        if self.opened is not None:
            return self.opened
        with self._opening:
            if self.opened is None and self._breaker.allows(self._now()):
                try:
                    self.opened = self._client.namespace(self.layout, tenant=self._settings.tenant)
                except KvStoreError as error:
                    self.failed(error)
                else:
                    self.worked()
            return self.opened

    def failed(self, error: Exception) -> None:
        """A call failed. Only a store that is not there is left alone; other errors say nothing about the next call."""
        if isinstance(error, Unavailable):
            if self._breaker.failed(self._now()):
                log.warning("the store is not to be had, computing instead: %s", error)
        elif self._now() >= self._quiet_until:
            self._quiet_until = self._now() + QUIET_S
            log.warning("the store refused: %s", error)

    def worked(self) -> None:
        if self._breaker.worked():
            log.info("the store is back")

    def close(self) -> None:
        self._client.close()
