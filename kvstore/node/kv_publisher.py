"""KV events over ZeroMQ, as vLLM's own publisher sends them, for routers that understand those (docs/routers.md).

    PUB      topic, sequence (8 bytes, big-endian), batch
    ROUTER   asked with a sequence: (empty, topic, sequence, batch) of each from there on, then the sequence -1

Rules
- What is published is the state of what events name (kv_statements.py). At the start, after a clear and where the
  core has forgotten events, all is told anew: AllBlocksCleared, then what is held, parents before children.
- A replay from within the last `buffer_steps` batches is those; from before them, what is held now, told as batches
  that end at the last sequence. So whoever asks for what he missed ends at the truth, however much that was.
- Sequences begin at the count of starts times 2^32, which a file remembers: a restart is a gap, and healed like one.
- When nothing happens an empty batch is sent now and then: a batch that is lost is found out by the next one only.
- A thread of its own, since encoding is Python: the node's loop has other things to do. Nobody waits for a subscriber:
  who is too slow loses batches, sees a gap, and asks. A replay goes as fast as it is read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kvstore.errors import Misconfigured
from kvstore.node.held_slots import HeldSlots
from kvstore.node.kv_statements import Statements
from kvstore.observe.kv_events import Statement, events_of

if TYPE_CHECKING:
    from pathlib import Path

    import zmq

    from kvstore import native
    from kvstore.event_settings import EventsConfig
    from kvstore.node.namespaces import Namespaces

__all__ = ["ADVICE", "KvEventCounts", "KvPublisher", "missing"]

log = logging.getLogger(__name__)

START_S: Final = 1.0  # from bind to the first batch: in that time subscribers of the node's last life have come again
TURN_S: Final = 0.02
QUIET_S: Final = 3.0  # after which an empty batch is sent, so that whoever missed the last one finds out
EVENTS_TURN: Final = 1_000  # of the core in one batch, and blocks of one batch where all is told
PUB_BATCHES_MAX: Final = 1_000  # that wait for one subscriber
REPLAY_BATCHES_MAX: Final = 16  # that wait for one asker
REPLAYS_MAX: Final = 16
REPLAY_S: Final = 30.0  # so long an asker may not read
REQUEST_BYTES_MAX: Final = 64
LIFE_BITS: Final = 32  # of a sequence, of one life of the node
STOP_MAX_S: Final = 5.0
END: Final = (-1).to_bytes(8, "big", signed=True)
ADVICE: Final = 'pip install "kvstore[events]"'


def missing() -> str:
    """What is not installed; nothing where all is."""
    lacking = []
    for name, package in (("zmq", "pyzmq"), ("msgspec", "msgspec")):
        try:
            __import__(name)
        except ImportError:
            lacking.append(package)
    return " and ".join(lacking)


def counted(path: Path) -> int:
    """This start's number: one more than the file says, which says it from now on. Raises Misconfigured."""
    try:
        text = path.read_text() if path.exists() else "0"
        number = (int(text) if text.isascii() and text.strip().isdecimal() and len(text) < 10 else 0) + 1
        temporary = path.with_suffix(".new")
        temporary.write_text(str(number))
        temporary.replace(path)
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}") from error
    return number


@dataclass(slots=True)
class KvEventCounts:
    batches: int = 0
    stored: int = 0
    removed: int = 0
    anew: int = 0
    replays: int = 0
    left_out: int = 0


@dataclass(slots=True)
class _Replay:
    """One asker, and what he is still to be sent."""

    asker: bytes
    frames: Iterator[tuple[bytes, bytes, bytes] | None]
    until: float
    pending: tuple[bytes, bytes, bytes] | None = None


@dataclass(slots=True)
class _Buffer:
    """The last batches, by sequence."""

    steps_max: int
    bytes_max: int
    batches: deque[tuple[int, bytes]] = field(default_factory=deque)
    _bytes: int = 0

    def add(self, sequence: int, payload: bytes) -> None:
        self.batches.append((sequence, payload))
        self._bytes += len(payload)
        while len(self.batches) > self.steps_max or (self._bytes > self.bytes_max and len(self.batches) > 1):
            self._bytes -= len(self.batches.popleft()[1])

    def since(self, sequence: int) -> list[tuple[int, bytes]] | None:
        """None: they are not all here any more."""
        if not self.batches or sequence < self.batches[0][0]:
            return None
        return [each for each in self.batches if each[0] >= sequence]


class KvPublisher:
    """From `start` to `stop`, and nothing is told before `open`. `addresses`: where it listens, as bound; none where
    the settings name none.
    """

    def __init__(self, config: EventsConfig, core: native.NodeCore, namespaces: Namespaces, starts: Path) -> None:
        """starts: the file that counts them."""
        self._config, self._core, self._starts = config, core, starts
        self._statements = Statements(core, namespaces, config.tenants, config.model)
        self._topic = (config.topic or "").encode()
        self._buffer = _Buffer(config.buffer_steps, config.buffer_bytes_max)
        self._sequence = 0  # of the next batch
        self._sent = 0.0  # when the last one was
        self._after = 0  # in the core's events
        self._behind = False  # there are more of them
        self._telling: Iterator[list[Statement]] | None = None
        self._replays: dict[bytes, _Replay] = {}
        self._stopping = threading.Event()
        self._opened = threading.Event()
        self._thread: threading.Thread | None = None
        self.addresses: tuple[str, ...] = ()
        self.counts = KvEventCounts()

    def start(self) -> None:
        """Raises Misconfigured where an address cannot be had, or what it takes is not installed."""
        if self._config.zmq == "none":
            return
        lacking = missing()
        if lacking:
            raise Misconfigured(f"events.zmq = {self._config.zmq!r}: {lacking} is not installed: {ADVICE}")
        import msgspec
        import zmq

        self._zmq, self._encode = zmq, msgspec.msgpack.Encoder().encode
        self._context = zmq.Context(io_threads=1)
        try:
            self._publishing = self._bound(zmq.PUB, "events.zmq", self._config.zmq)
            self._asked = None
            if self._config.replay != "none":
                self._asked = self._bound(zmq.ROUTER, "events.replay", self._config.replay)
            self._sequence = counted(self._starts) << LIFE_BITS
        except Misconfigured:
            self._context.destroy(linger=0)
            raise
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """The node's namespaces are open again: what is held can be told. Before, it would seem to be nothing, and that
        an earlier life left it is no news later.
        """
        self._opened.set()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_MAX_S)
            self._thread = None

    def _bound(self, kind: int, setting: str, address: str) -> zmq.Socket[bytes]:
        zmq, socket = self._zmq, self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.IPV6, "[" in address)
        if kind == zmq.ROUTER:
            socket.set(zmq.SNDHWM, REPLAY_BATCHES_MAX)
            socket.set(zmq.RCVHWM, REPLAYS_MAX)
            socket.set(zmq.MAXMSGSIZE, REQUEST_BYTES_MAX)
            socket.set(zmq.ROUTER_MANDATORY, 1)
        else:
            socket.set(zmq.SNDHWM, PUB_BATCHES_MAX)
            socket.set(zmq.MAXMSGSIZE, REQUEST_BYTES_MAX + len(self._topic))  # subscriptions
        try:
            socket.bind(address[:-1] + "*" if address.endswith(":0") else address)
        except zmq.ZMQError as error:
            raise Misconfigured(f"{setting} = {address!r}: {error.strerror}") from error
        self.addresses += (socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0"),)
        return socket

    # ---- the thread

    def _run(self) -> None:
        begins = time.monotonic() + START_S
        begun = False
        try:
            while not self._stopping.is_set():
                self._listen(TURN_S if self._idle() else 0.0)
                if not begun and self._opened.is_set() and time.monotonic() >= begins:
                    begun = True
                    self._begin_anew()
                if begun:
                    self._news()
                    self._tell_on()
                    if time.monotonic() - self._sent > QUIET_S:
                        self._publish([])
                for replay in tuple(self._replays.values()):
                    self._replay_on(replay)
                self.counts.left_out = self._statements.left_out
        except Exception:
            log.exception("KV events: the publisher has ended; routers hear no more of this node until it is restarted")
        finally:
            self._context.destroy(linger=0)

    def _idle(self) -> bool:
        """Whether what comes next may come a moment later."""
        told = self._telling is None and all(one.pending for one in self._replays.values())
        return told and not self._behind

    def _news(self) -> None:
        turn = self._statements.turn(self._after, EVENTS_TURN)
        self._behind = not turn.anew and turn.after - self._after >= EVENTS_TURN
        self._after = turn.after
        if turn.anew:
            self._begin_anew()
        elif turn.places:
            told = self._statements.true_of(turn.places)
            if told:
                self._publish(told)

    def _begin_anew(self) -> None:
        self._after = self._core.event_sequence
        self._telling = self._held()
        self.counts.anew += 1
        self._publish([], cleared=True)

    def _tell_on(self) -> None:
        if self._telling is None:
            return
        told = next(self._telling, None)
        if told is None:
            self._telling = None
        elif told:
            self._publish(told)

    def _held(self) -> Iterator[list[Statement]]:
        slots = HeldSlots(self._core, self._statements.tells)
        for _ in slots.scan():
            yield []
        for page in slots.pages(EVENTS_TURN):
            yield self._statements.held(page)

    def _publish(self, told: list[Statement], *, cleared: bool = False) -> None:
        payload = self._payload(told, cleared=cleared)
        sequence, self._sequence = self._sequence, self._sequence + 1
        self._publishing.send_multipart((self._topic, sequence.to_bytes(8, "big"), payload), self._zmq.NOBLOCK)
        self._buffer.add(sequence, payload)
        self._sent = time.monotonic()
        stored = sum(each.stored for each in told)
        self.counts.batches += 1
        self.counts.stored += stored
        self.counts.removed += len(told) - stored

    def _payload(self, told: list[Statement], *, cleared: bool = False) -> bytes:
        return self._encode([time.time(), events_of(told, self._config.form, cleared=cleared), 0])

    # ---- replays

    def _listen(self, wait_s: float) -> None:
        """Takes what is asked, and waits for it."""
        if self._asked is None or len(self._replays) >= REPLAYS_MAX:
            self._stopping.wait(wait_s)
            return
        if not self._asked.poll(int(wait_s * 1e3)):
            return
        while len(self._replays) < REPLAYS_MAX:  # the others wait in the socket
            try:
                frames = self._asked.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                return
            if len(frames) != 3 or frames[1] or len(frames[2]) != 8:
                continue
            self._ask(frames[0], int.from_bytes(frames[2], "big"))

    def _ask(self, asker: bytes, sequence: int) -> None:
        self.counts.replays += 1
        self._replays[asker] = _Replay(asker, self._answer(sequence), time.monotonic() + REPLAY_S)

    def _answer(self, begin: int) -> Iterator[tuple[bytes, bytes, bytes] | None]:
        """Frames to send; None: not yet."""
        buffered: list[tuple[int, bytes]] | None = []
        if begin < self._sequence:
            buffered = self._buffer.since(begin)
        for sequence, payload in buffered or ():
            yield self._topic, sequence.to_bytes(8, "big"), payload
        if buffered is None:
            yield from self._answer_with_held(begin)
        yield b"", END, b""

    def _answer_with_held(self, begin: int) -> Iterator[tuple[bytes, bytes, bytes] | None]:
        """As many batches as there are sequences to give them, the last of them the last that was published."""
        slots = HeldSlots(self._core, self._statements.tells)
        for _ in slots.scan():
            yield None
        last = self._sequence - 1
        room = last - begin + 1
        pages = max(1, min(room, -(-slots.count // EVENTS_TURN)))
        size = max(1, -(-slots.count // pages))
        told = slots.pages(size)
        for number in range(pages):
            payload = self._payload(self._statements.held(next(told, [])), cleared=number == 0)
            yield self._topic, (last - pages + 1 + number).to_bytes(8, "big"), payload

    def _replay_on(self, replay: _Replay) -> None:
        """As much as fits, or one piece of work."""
        assert self._asked is not None
        frame = replay.pending
        if frame is None:
            try:
                frame = next(replay.frames)
            except StopIteration:
                del self._replays[replay.asker]
                return
        if frame is None:
            return
        try:
            self._asked.send_multipart((replay.asker, b"", *frame), self._zmq.NOBLOCK)
        except self._zmq.Again:
            replay.pending = frame
            if time.monotonic() > replay.until:
                del self._replays[replay.asker]
        except self._zmq.ZMQError:  # he is gone
            del self._replays[replay.asker]
        else:
            replay.pending, replay.until = None, time.monotonic() + REPLAY_S
