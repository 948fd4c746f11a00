"""When an announcer has to be asked again."""

from __future__ import annotations

import numpy as np

from kvstore.directory.announcing import Announcer, Changes
from kvstore.directory.homes import SettledView
from kvstore.directory.messages import Announce, Bytes, Status, Taken, Words
from kvstore.directory.settings import MS, DirectorySettings

ME, HOME = b"m" * 16, b"h" * 16
NS, KEY = b"s" * 32, np.full((1, 32), 7, np.uint8)
SETTINGS = DirectorySettings(announce_ms=20, digest_ms=1 << 40)


class Held:
    """One key, or none; `news`: that it changed."""

    news = False
    shards = 0

    def changes(self) -> Changes:
        news, self.news = self.news, False
        return Changes([(NS, KEY)] if news else [], [], gap=False)

    def held(self, ns: bytes, keys: Bytes) -> tuple[Words, Bytes]:
        return np.full(len(keys), self.shards, np.uint64), np.full(len(keys), self.shards > 0, np.uint8)

    def scan(self, after: int, slots: int) -> tuple[int, list[tuple[bytes, Bytes, Words, Bytes]]]:
        return 0, [(NS, KEY, *self.held(NS, KEY))] if self.shards else []


def test_what_changes_between_a_look_and_the_next_reading_is_told_without_another_sign() -> None:
    """Whoever drives it wakes it once for a change; that may be too early for it to read."""
    view, held = SettledView(ME, SETTINGS), Held()
    view.update({ME: 1, HOME: 2}, 0)
    announcer = Announcer(view, 1, held, SETTINGS)
    now = 0
    while True:  # until nothing is left to be told
        sent = announcer.poll(now)
        for to, message in sent:
            announcer.answered(to, message, Taken(Status.TAKEN), now)
        if not sent and announcer.next_poll(now) > now + 1_000 * MS:
            break
        now += MS
    now += 100 * MS
    announcer.poll(now)  # reads
    held.news, held.shards = True, 1
    assert announcer.poll(now + 5 * MS) == []
    due = announcer.next_poll(now + 5 * MS)
    assert due == now + 20 * MS
    told = announcer.poll(due)
    rows = [each for _, message in told if isinstance(message, Announce) for each in message.rows]
    assert {to for to, _ in told} == {ME, HOME} and all(each.shards.tolist() == [1] for each in rows)
    for to, message in told:
        announcer.answered(to, message, Taken(Status.TAKEN), due)
    announcer.poll(due + 20 * MS)
    assert announcer.next_poll(due + 20 * MS) > due + 1_000 * MS
