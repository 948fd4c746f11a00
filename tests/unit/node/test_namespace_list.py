"""What a node writes down of namespaces is what its next start reads; an older list too, a damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvstore.directory.generations import Clears
from kvstore.errors import Misconfigured, Unavailable
from kvstore.identity import NamespaceIdentity, namespace_digest
from kvstore.node.namespace_list import read, write
from kvstore.node.namespaces import Namespaces
from tests.integration.nodes import layout

A, B = b"a" * 16, b"b" * 16
ORIGIN = "00" * 32
ONE = NamespaceIdentity.of(layout("one"))
TWO = NamespaceIdentity.of(layout("two"), tenant="acme")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "namespaces.json"
    assert read(path) == ([], {})
    clears = {namespace_digest(ONE): Clears(2, ((A, 1), (B, 7))), b"d" * 32: Clears(1)}
    write(path, [ONE, TWO], {**clears})
    assert read(path) == ([ONE, TWO], clears)
    write(path, [], {})
    assert read(path) == ([], {})


def test_what_could_not_be_written_when_it_was_told_is_written_later(tmp_path: Path) -> None:
    path, clears = tmp_path / "data/namespaces.json", Clears(0, ((A, 1),))
    core: Any = None  # nothing is open
    namespaces = Namespaces(core, b"s" * 32, path, 1, B)
    with pytest.raises(Unavailable, match="cannot write its list"):
        namespaces.merge([(b"d" * 32, clears)])
    path.parent.mkdir()
    namespaces.settle()
    assert read(path) == ([], {b"d" * 32: clears})
    path.unlink()
    namespaces.settle()
    assert not path.exists(), "there is nothing left to be written"


def test_a_list_of_version_1_is_read(tmp_path: Path) -> None:
    """Its generations are known, whoever made them."""
    path = tmp_path / "namespaces.json"
    write(path, [ONE, TWO], {})
    document = json.loads(path.read_text())
    del document["clears"]
    for row, generation in zip(document["namespaces"], (3, 0), strict=True):
        row["generation"] = generation
    path.write_text(json.dumps({**document, "version": 1}))
    assert read(path) == ([ONE, TWO], {namespace_digest(ONE): Clears(3)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 3, "namespaces": [], "clears": []}',
        '{"version": 2, "namespaces": []}',
        '{"version": 2, "namespaces": [{}], "clears": []}',
        '{"version": 2, "namespaces": [], "clears": [{"namespace": "zz", "floor": 1, "by": {}}]}',
        f'{{"version": 2, "namespaces": [], "clears": [{{"namespace": "{ORIGIN}", "floor": -1, "by": {{}}}}]}}',
        f'{{"version": 2, "namespaces": [], "clears": [{{"namespace": "{ORIGIN}", "floor": 1, "by": []}}]}}',
        '{"version": 2, "namespaces": [], "clears": [{"namespace": "00", "floor": 1, "by": {}}]}',
        '{"version": 2, "namespaces": [], "clears": [[]]}',
    ],
)
def test_one_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    """To go on without it could bring back what was cleared."""
    path = tmp_path / "namespaces.json"
    path.write_text(text)
    with pytest.raises(Misconfigured, match=r"namespaces\.json"):
        read(path)
