"""The texts that families go by: what is kept of what callers say, and how much."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kvstore.config import LimitsConfig
from kvstore.node.auth import TRUSTED
from kvstore.node.handlers import Handlers
from kvstore.wire import store
from kvstore.wire.labels import label_id

FAMILIES_MAX = 10


class Rig:
    def __init__(self) -> None:
        self.counted: list[str] = []  # families that the core counts now
        core = SimpleNamespace(
            event_sequence=0, counters=lambda: {"families": [{"family": label_id(each)} for each in self.counted]}
        )
        self.handlers = Handlers(
            SimpleNamespace(  # type: ignore[arg-type]
                bridge=SimpleNamespace(core=core),
                limits=LimitsConfig(families_max=FAMILIES_MAX),
                several_tenants=lambda: True,
                cluster=None,
            )
        )

    async def say(self, label: str) -> None:
        body = store.LabelRequest(family=label).SerializeToString()
        await self.handlers.call(TRUSTED, store.METHOD_LABEL, body, lambda _handle: None)

    def name(self, label: str) -> str:
        return self.handlers.label(label_id(label))


async def test_a_family_goes_by_what_was_said() -> None:
    rig = Rig()
    await rig.say("système")
    assert rig.name("système") == "système" and rig.name("another") == ""


@pytest.mark.parametrize("label", ["a\nb", "\x1b[2J", "\u202e", "\ud7ff\u0000"])
async def test_what_nobody_could_read_is_left_out(label: str) -> None:
    rig = Rig()
    await rig.say(label)
    assert rig.name(label) == ""


async def test_a_label_has_a_length() -> None:
    with pytest.raises(ValueError, match="family: longer than 255 bytes"):
        await Rig().say("x" * 256)


async def test_however_many_are_said_those_that_are_counted_are_kept() -> None:
    rig = Rig()
    rig.counted = [f"counted {i}" for i in range(FAMILIES_MAX)]
    for label in rig.counted:
        await rig.say(label)
    for i in range(1_000):
        await rig.say(f"another {i}")
        assert rig.name(f"another {i}") == f"another {i}", "the last one is known whatever is counted"
        assert len(rig.handlers._labels) <= 2 * FAMILIES_MAX
    assert all(rig.name(label) == label for label in rig.counted)
