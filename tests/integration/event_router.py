"""A prefix-aware router's index, as one writes it from docs/routers.md: the stream and its replays, nothing else."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

BLOCK_TOKENS = 4
END = -1
MEDIA = ("CPU", "STORAGE")


class EventRouter:
    """Knows blocks by the tokens of their whole prefix: what a request has, and no more."""

    def __init__(
        self, publisher: str, replay: str | None = None, topic: str = "", block_tokens: int = BLOCK_TOKENS
    ) -> None:
        self._block_tokens = block_tokens
        self._context = zmq.Context()
        self._stream = self._context.socket(zmq.SUB)
        self._stream.subscribe(topic.encode())
        self._stream.connect(publisher)
        self._replay = None
        if replay is not None:
            self._replay = self._context.socket(zmq.DEALER)
            self._replay.connect(replay)
        self.last = self._heard = END
        self.replays = 0
        self.events: list[dict[str, Any]] = []
        self._tokens: dict[int | bytes, tuple[int, ...]] = {}  # whole prefix of every block heard of, by its hash
        self.blocks: dict[tuple[str, int | bytes], tuple[int, ...]] = {}  # held: by medium and hash

    def close(self) -> None:
        self._context.destroy(linger=0)

    def matched(self, tokens: Sequence[int], medium: str | None = None) -> int:
        """Blocks from the beginning of a prompt that are held."""
        prompt = tuple(tokens)
        held = {prefix for (on, _), prefix in self.blocks.items() if medium in {None, on}}
        whole = (prompt[:end] in held for end in range(self._block_tokens, len(prompt) + 1, self._block_tokens))
        return sum(1 for _ in itertools.takewhile(bool, whole))

    def read(self, wait_s: float = 0.05) -> bool:
        """Whether there was a batch. A gap is healed by a replay."""
        if not self._stream.poll(int(wait_s * 1e3)):
            return False
        _, raw, payload = self._stream.recv_multipart()
        sequence = int.from_bytes(raw, "big")
        if sequence < self._heard:  # the node has lost its data directory, and all with it
            self.last = END
            self.blocks.clear()
        self._heard = sequence
        if self._replay is not None and sequence != self.last + 1:
            self.replay()
        if sequence > self.last:
            self._take(sequence, payload)
        return True

    def replay(self) -> None:
        """What came after the last that was read; of one who has read nothing, from the beginning."""
        assert self._replay is not None
        self.replays += 1
        self._replay.send_multipart((b"", (self.last + 1).to_bytes(8, "big")))
        while True:
            assert self._replay.poll(10_000), "a replay ends by its mark"
            _, _, raw, payload = self._replay.recv_multipart()
            sequence = int.from_bytes(raw, "big", signed=True)
            if sequence == END:
                return
            if sequence > self.last:
                self._take(sequence, payload)

    def until(self, matched: int, tokens: Sequence[int], medium: str | None = None, within_s: float = 15) -> None:
        until = time.monotonic() + within_s
        while self.matched(tokens, medium) != matched:
            assert time.monotonic() < until, f"{self.matched(tokens, medium)} blocks, not {matched}"
            self.read()

    def settled(self, quiet_s: float = 0.3) -> None:
        while self.read(quiet_s):
            pass

    def _take(self, sequence: int, payload: bytes) -> None:
        self.last = sequence
        stamp, events, rank = msgspec.msgpack.decode(payload)
        assert isinstance(stamp, float) and rank == 0
        for event in events:
            self.events.append(event)
            match event["type"]:
                case "AllBlocksCleared":
                    self.blocks.clear()
                    self._tokens.clear()
                case "BlockRemoved":
                    for name in event["block_hashes"]:
                        self.blocks.pop((event["medium"], name), None)
                case "BlockStored":
                    self._store(event)

    def _store(self, event: dict[str, Any]) -> None:
        assert event["medium"] in MEDIA and event["block_size"] == self._block_tokens
        assert len(event["token_ids"]) == self._block_tokens * len(event["block_hashes"])
        parent = event["parent_block_hash"]
        if parent is not None and parent not in self._tokens:
            return  # of a prompt whose beginning is not held: of no use
        prefix = () if parent is None else self._tokens[parent]
        for i, name in enumerate(event["block_hashes"]):
            prefix += tuple(event["token_ids"][i * self._block_tokens : (i + 1) * self._block_tokens])
            self._tokens[name] = prefix
            self.blocks[event["medium"], name] = prefix
