"""Whether a namespace is in force: what the store says, and what to believe while it says nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvstore.config import ObjectConfig
from kvstore.node import object_store
from kvstore.node.object_store import ObjectStore

NS = 3


class Rig:
    def __init__(self) -> None:
        self.says: bool | None = False
        self.asked = 0
        self.cleared: list[object] = []
        self.objects = ObjectStore(ObjectConfig(), "memory://")
        self.objects.store = SimpleNamespace(is_cleared=self._is_cleared)  # type: ignore[assignment]
        opened = SimpleNamespace(digest=b"d" * 32, tenant="t")
        self.present = opened
        known = SimpleNamespace(by_handle={NS: opened}.get, find=lambda _digest: self.present)
        self.objects._namespaces = known  # type: ignore[assignment]
        self.objects._clear = self.cleared.append

    async def _is_cleared(self, _digest: bytes) -> bool | None:
        self.asked += 1
        return self.says

    async def in_force(self, ns: int = NS) -> bool:
        return await self.objects._in_force(ns)


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_it_is_asked_of_the_store_once(rig: Rig) -> None:
    assert await rig.in_force() and await rig.in_force()
    assert rig.asked == 1


async def test_while_the_store_is_silent_nothing_is_taken_from_it(rig: Rig) -> None:
    rig.says = None
    assert not await rig.in_force() and not await rig.in_force()
    assert (rig.asked, rig.cleared) == (2, []), "silence clears nothing, and is asked again"


async def test_what_another_node_cleared_is_cleared_here(rig: Rig) -> None:
    rig.says = True
    assert not await rig.in_force()
    assert rig.cleared == [rig.present]


async def test_what_was_cleared_here_meanwhile_is_not_cleared_again(rig: Rig) -> None:
    rig.says, rig.present = True, SimpleNamespace(digest=b"d" * 32, tenant="t")
    assert not await rig.in_force()
    assert rig.cleared == []


async def test_a_namespace_that_nobody_knows_is_not_in_force(rig: Rig) -> None:
    assert not await rig.in_force(NS + 1)
    assert rig.asked == 0


def test_what_lies_in_a_directory_is_added_up_while_others_delete_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, size in (("a/b", 100), ("a/c", 20), ("d", 3)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "pack").write_bytes(bytes(size))
    assert object_store._bytes_in(tmp_path) == 123
    (tmp_path / "d" / "gone").symlink_to(tmp_path / "nowhere")  # listed, and not there to be looked at
    scandir = os.scandir

    def meanwhile(path: str) -> object:
        if str(path).endswith("/c"):  # the same of a folder
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", meanwhile)
    assert object_store._bytes_in(tmp_path) == 103
    assert object_store._bytes_in(tmp_path / "nowhere") == 0
