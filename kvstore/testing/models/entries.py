"""What a table leaves behind when its process is killed: entries in memory that outlives it.

A verb writes its words in program order; a kill may fall between any two of them. `cut` takes back all but the first
words of the verb in progress.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kvstore.testing.models.lifecycle import Name, SlotState, Ticket


class Control(NamedTuple):
    """The word that is written last of every change."""

    state: SlotState = SlotState.FREE
    writer: bool = False  # somebody may still write
    former: bool = False  # kept for clients of a former process
    clean: bool = False  # a lower tier has it too


FREE: Final = Control()


class About(NamedTuple):
    """All of an entry that is fixed for one tenancy."""

    ticket: Ticket
    name: Name
    parent: bytes
    meta: bytes
    position: int
    payload_bytes: int
    parts: int


@dataclass(slots=True)
class Entry:
    control: Control = FREE
    about: About | None = None
    checksums: tuple[int, ...] = ()
    views: int = 0


@dataclass(slots=True)
class Entries:
    by_slot: dict[int, Entry] = field(default_factory=dict)
    journal: list[tuple[Entry, str, object]] = field(default_factory=list)

    def begin(self) -> None:
        """A verb begins."""
        self.journal.clear()

    def write(self, slot: int, word: str, value: object) -> None:
        entry = self.by_slot.get(slot)
        if entry is None:
            entry = self.by_slot[slot] = Entry()
        self.journal.append((entry, word, getattr(entry, word)))
        setattr(entry, word, value)

    def cut(self, words: int) -> None:
        """The process was killed when it had written so many words of its last verb."""
        for entry, word, before in reversed(self.journal[words:]):
            setattr(entry, word, before)
        del self.journal[words:]
