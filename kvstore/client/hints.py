"""What a caller may tell about the future of the blocks it touches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvstore.client.steps import Keys, WireHint
from kvstore.wire import store
from kvstore.wire.labels import label_id

_WORD_MAX: Final = (1 << 64) - 1
_TURN_MAX: Final = (1 << 32) - 1
_LABEL_BYTES_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class Hints:
    """Shift the order in which blocks leave a tier; they never command it.

    session: a conversation, as text or as a number of the caller's own; turn: which of its turns this is; end: it will
    not come back. expected_return_s: when it should. priority: -1 colder, 0, +1 warmer. family: the unit of hit-rate
    reporting, as text or number; not given: made from the chain's first blocks.
    """

    session: int | str = 0
    turn: int = 0
    end: bool = False
    expected_return_s: float = 0.0
    priority: int = 0
    family: int | str = 0

    def __post_init__(self) -> None:
        for name in ("session", "family"):
            value = getattr(self, name)
            if isinstance(value, int) and not 0 <= value <= _WORD_MAX:
                raise ValueError(f"hints.{name}: {value}, must be text or 0 to 2**64 - 1")
            if isinstance(value, str) and len(value.encode()) > _LABEL_BYTES_MAX:
                raise ValueError(f"hints.{name}: longer than {_LABEL_BYTES_MAX} bytes")
        if not 0 <= self.turn <= _TURN_MAX:
            raise ValueError(f"hints.turn: {self.turn}, must be 0 to 2**32 - 1")
        if self.priority not in {-1, 0, 1}:
            raise ValueError(f"hints.priority: {self.priority}, must be -1, 0 or +1")
        if not 0 <= self.expected_return_s < 4_294_967:
            raise ValueError(f"hints.expected_return_s: {self.expected_return_s}, must be 0 to 4,294,967 seconds")


NO_HINTS: Final = Hints()


def to_wire(hints: Hints, keys: Keys, family_blocks: int, position: int) -> WireHint:
    """As numbers. A chain given from its start makes its own family: the key of its block `family_blocks` - 1."""
    # Most calls give none: a label costs a call, or a hash.
    family = label_id(hints.family) if hints.family else 0
    if family == 0 and position == 0 and keys.shape[0]:
        family = int.from_bytes(keys[min(family_blocks, keys.shape[0]) - 1, :8].tobytes(), "little")
    return WireHint(
        family,
        label_id(hints.session) if hints.session else 0,
        hints.turn,
        round(hints.expected_return_s * 1000) if hints.expected_return_s else 0,
        hints.priority,
        hints.end,
        position,
        hints.family if isinstance(hints.family, str) else "",
    )


def hints_of(hint: WireHint) -> store.Hints:
    """The same numbers as a message."""
    return store.Hints(
        family=hint.label,
        family_id=0 if hint.label else hint.family,
        session_id=hint.session,
        turn=hint.turn,
        end=hint.end,
        expected_return_ms=hint.expected_return_ms,
        priority=hint.priority,
    )


def to_message(hints: Hints) -> store.Hints:
    """For the rare verbs, which travel as messages."""
    family, session = hints.family, hints.session
    return store.Hints(
        family=family if isinstance(family, str) else "",
        session=session if isinstance(session, str) else "",
        family_id=family if isinstance(family, int) else 0,
        session_id=session if isinstance(session, int) else 0,
        turn=hints.turn,
        end=hints.end,
        expected_return_ms=round(hints.expected_return_s * 1000),
        priority=hints.priority,
    )
