"""The framed door of a node as a channel: sessions made, kept and made anew, and steps in the calling thread.

One session serves all threads of a process: its native side lets any number of calls be in flight at once. When it
is found dead the next call connects again; while nobody answers, calls fail at once until a growing pause is over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvstore import native
from kvstore.client.address import TcpAddress, UnixAddress
from kvstore.client.away import Away
from kvstore.client.calls import Line, Times, as_call, body_of, by_transfers, check_usable, report, told
from kvstore.client.held import Reach
from kvstore.client.space import Known, Space
from kvstore.client.steps import Answer, Limits, Reopen, Reopened, Report, Reserve, Status, Step, Taken, Told
from kvstore.client.views import Lending, LentSlots
from kvstore.errors import KvStoreError, Rejected, Unavailable
from kvstore.wire import store

if TYPE_CHECKING:
    from kvstore.client.tls import Tls
    from kvstore.config import TransferConfig

log = logging.getLogger(__name__)

PAUSE_S_MIN: Final = 0.02
PAUSE_S_MAX: Final = 1.0


class SocketChannel:
    """Thread-safe. `deadline` arguments are readings of time.monotonic()."""

    def __init__(
        self,
        at: UnixAddress | TcpAddress,
        token: str | None,
        tls: Tls | None,
        transfers: TransferConfig,
        *,
        verify: bool,
        workers: int,
    ) -> None:
        self._at = at
        self._tls = tls.framed() if tls is not None else None
        if token is not None and tls is None and not at.is_local:
            log.warning("%s: the token travels in the clear; give tls=", at)
        self._away = Away(tls, transfers, verify=verify)
        self._token = (token or "").encode()
        self._verify = verify
        self._workers = workers
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._former: list[Line] = []
        self._pause_s = 0.0
        self._not_before = 0.0
        self._closed = False
        self._pid = os.getpid()

    @property
    def current(self) -> Line | None:
        """The live session, if there is one. Costs nothing: the hot path."""
        line = self._line
        return line if line is not None and not line.session.closed else None

    def check(self) -> None:
        """RuntimeError where a call could not work: closed, or another process's client."""
        check_usable(self._pid, self._closed)

    def connect(self, deadline: float) -> Line:
        """The live session, made if need be. Raises Unavailable, or Rejected where the node does not let us in."""
        self.check()
        if not self._lock.acquire(timeout=max(0.0, min(deadline - time.monotonic(), threading.TIMEOUT_MAX))):
            raise Unavailable(f"{self._at}: still being connected to by another thread")
        try:
            self.check()
            return self.current or self._renew(deadline)
        finally:
            self._lock.release()

    def _renew(self, deadline: float) -> Line:
        session = self._new_session(deadline)
        info, former = session.info, self._line
        limits = Limits(info.keys_per_call_max, info.window_bytes, info.meta_bytes_max, info.hold_wait_ms_max / 1e3)
        self._line = line = Line(session, limits, Lending(session), info.trusted, Reach(session))
        if former is not None:
            former.reach.cut()
            former.session.close()
            self._former.append(former)
            former.lending.former = self._tell_quiet
            self._tell_quiet()
        return line

    def _new_session(self, deadline: float) -> native.Session:
        now = time.monotonic()
        if now < self._not_before:
            raise Unavailable(
                f"{self._at}: not to be reached a moment ago; tried again in {self._not_before - now:.2f} s"
            )
        try:
            session = self._session(max(0.001, deadline - now))
        except PermissionError as error:
            raise Rejected(str(error)) from error
        except OSError as error:
            raise self._away_for_now(str(error)) from error
        except ValueError as error:
            if not str(error).startswith("hello:"):
                raise
            # Not the caller's mistake, or not for sure: a node may be gone, and another program have its port.
            raise self._away_for_now(
                f"what answers there is no framed door of this version ({error}); gRPC and metrics have other addresses"
            ) from error
        self._pause_s = 0.0
        return session

    def _away_for_now(self, why: str) -> Unavailable:
        self._pause_s = min(PAUSE_S_MAX, max(PAUSE_S_MIN, 2 * self._pause_s))
        self._not_before = time.monotonic() + self._pause_s
        return Unavailable(f"{self._at}: {why}")

    def _session(self, connect_s: float) -> native.Session:
        at = self._at
        if isinstance(at, UnixAddress):
            return native.Session(at.path, self._token, connect_s, self._workers, self._verify)
        return native.Session(
            "", self._token, connect_s, self._workers, self._verify, host=at.host, port=at.port, tls=self._tls
        )

    def _tell_quiet(self) -> None:
        """Tells the node's present life of former sessions of which nothing touches the segment any more. Takes no
        lock: garbage collection calls this anywhere.
        """
        line = self._line
        if line is None or line.session.closed:
            return
        for former in tuple(self._former):
            if former.lending.all_back:
                with contextlib.suppress(ValueError):  # another thread was first
                    self._former.remove(former)
                    info = former.session.info
                    line.session.quiet(info.session, info.incarnation)

    def close(self) -> None:
        """Ends the session; calls in flight end Unavailable. Arrays of views stay readable."""
        if self._pid != os.getpid():
            return  # the session is the parent's, and so may be the lock
        with self._lock:
            self._closed = True
            line, self._line = self._line, None
        if line is not None:
            line.reach.cut()
            line.session.close()
        self._away.close()

    # ---- steps ------------------------------------------------------------------------------------------------------

    def limits(self, deadline: float) -> Limits:
        """Of the node at the other end; connects if need be."""
        self.check()
        line = self.current or self.connect(deadline)
        return line.limits

    def perform(self, space: Space, step: Step, times: Times) -> Answer:
        """One step, in the calling thread; the GIL is given back for all of it. Never raises what an answer can say."""
        if isinstance(step, Reopen):
            return self._reopen(space, times)
        line = self.current
        if line is None:
            return GONE
        handle = space.handle_on(line)
        if handle is None:
            return NOT_OPEN
        if isinstance(step, Report):
            report(line, handle, step, times.elapsed())
            label = line.untold(step)
            if label is not None:  # whatever is answered: without it the family goes by its number
                line.session.call(store.METHOD_LABEL, label, times.left())
            return DONE
        if by_transfers(step, line):
            return self._away.perform(line, space, step, times)
        name, arguments = as_call(line, handle, step, times)
        call: Callable[..., native.Result | native.Reservation] = getattr(line.session, name)
        answer = told(line, step, call(*arguments), space.shard_bytes)
        if isinstance(step, Reserve) and isinstance(answer, Taken) and isinstance(answer.held, LentSlots):
            answer.held.filler = self._away.filler(line, space, step.shard)
        return answer

    def call(self, method: int, body: bytes, times: Times) -> bytes:
        """A rare verb. Raises what its answer says."""
        return self._called(method, body, times)[1]

    def open(self, space: Space, times: Times) -> bool:
        """Opens the namespace on the live session. Whether it is the one it was. Raises KvStoreError, ValueError."""
        line, body = self._called(store.METHOD_OPEN_NAMESPACE, space.request, times)
        return place(space, line, store.OpenNamespaceResponse.FromString(body))

    def _called(self, method: int, body: bytes, times: Times) -> tuple[Line, bytes]:
        """By which session, and the answer. One that ended with the node before is noticed here, and made anew once."""
        line = self.connect(times.deadline)
        answer = line.session.call(method, body, times.left())
        if answer.status == Status.UNAVAILABLE and line.session.closed:
            line = self.connect(times.deadline)
            answer = line.session.call(method, body, times.left())
        return line, body_of(answer)

    def _reopen(self, space: Space, times: Times) -> Answer:
        try:
            return Reopened(same=self.open(space, times))
        except KvStoreError as error:
            return as_told(error)


def as_told(error: KvStoreError) -> Told:
    """For a journey, which is told and never raised at."""
    if isinstance(error, Rejected):
        return Told(Status.REJECTED, field=error.limit, reason=str(error))
    return Told(Status.UNAVAILABLE, reason=str(error))


def place(space: Space, line: Line, response: store.OpenNamespaceResponse) -> bool:
    line.session.describe(response.handle, space.part_bytes)
    same = space.adopt(Known.of(response))
    space.placed = (line, response.handle)
    return same


DONE: Final = Told()
GONE: Final = Told(Status.UNAVAILABLE, reason="the node is gone")
NOT_OPEN: Final = Told(Status.STALE_NAMESPACE)
