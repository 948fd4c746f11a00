"""Peers' figures beside ours: in turns, and never at the cost of our own row. Peers here are scripts of a few lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import __main__ as runner
from bench import harness
from bench.harness import NOT_INSTALLED, Figure, PeerFailed, Row, measure, no_target
from bench.peers import install, work
from bench.peers.install import ROSTER, Spec
from bench.peers.process import NO_PEERS, Peer, Peers

ANSWERS = """
import sys
from contextlib import contextmanager
from bench.peers.serve import serve
@contextmanager
def peer():
    print("a library that talks on stdout")
    count = 0
    def good():
        nonlocal count
        count += 1
        return float(count)
    def bad():
        raise OSError("no memory")
    yield {"get": good, "put": bad}
serve(peer)
"""
REFUSES = """
from contextlib import contextmanager
from bench.peers.serve import serve
@contextmanager
def peer():
    raise RuntimeError("it needs a master")
    yield {}
serve(peer)
"""
SILENT = "import time; print('{\"ready\": true}', flush=True); time.sleep(60)"
DIES = "print('{\"ready\": true}', flush=True)"
TALKS = "print('hello', flush=True); import time; time.sleep(60)"


def spec(name: str) -> Spec:
    return Spec(name=name, label=name.upper(), works=frozenset({"get", "put"}), alone=(), needs=(), size="")


def peers(tmp_path: Path, said: list[str], **scripts: str) -> Peers:
    def command(one: Spec) -> Sequence[str]:
        return [sys.executable, "-c", scripts[one.name]]

    return Peers([spec(name) for name in scripts], said.append, command, tmp_path)


def row(figures: dict[str, Figure | str], rounds: int = 3) -> Row:
    return measure(
        "get",
        unit="GiB/s",
        ours=lambda: 8.0,
        limit=lambda: 10.0,
        limit_is="memcpy",
        target=no_target(),
        peers=figures,
        rounds=rounds,
    )


def test_a_peer_s_figures_are_the_row_s(tmp_path: Path) -> None:
    said: list[str] = []
    with peers(tmp_path, said, a=ANSWERS) as some:
        made = row(some.of("get"))
        assert set(some.of("get", ", one client")) == {"A, one client"}
    # It was asked once more than is counted, and what its library says on stdout is no answer.
    assert (made.peers, made.ours, said) == ({"A": 3.0}, 8.0, [])


def test_what_fails_is_not_installed_and_says_why_and_our_row_stays(tmp_path: Path) -> None:
    said: list[str] = []
    with peers(tmp_path, said, a=ANSWERS, r=REFUSES, d=DIES) as some:
        put = row(some.of("put"))
        after = some.of("get")
    assert put.peers == {"A": NOT_INSTALLED, "R": NOT_INSTALLED, "D": NOT_INSTALLED}
    assert (put.ours, put.limit) == (8.0, 10.0)
    assert after == put.peers  # one that failed is not started again
    assert sorted(line.split(" (see")[0] for line in said) == [
        "A not measured: OSError: no memory",
        "D not measured: it ended",
        "R not measured: RuntimeError: it needs a master",
    ]


def test_one_peer_s_failure_in_the_middle_leaves_the_others() -> None:
    turns = iter([1.0, 2.0])

    def failing() -> float:
        for turn in turns:
            return turn
        raise PeerFailed("it ended")

    made = row({"fails": failing, "stays": lambda: 5.0, "absent": NOT_INSTALLED}, rounds=5)
    assert made.peers == {"fails": NOT_INSTALLED, "stays": 5.0, "absent": NOT_INSTALLED}
    assert (made.ours, made.ratio) == (8.0, 0.8)


@pytest.mark.parametrize(
    ("script", "reason"), [(SILENT, "no answer within"), (DIES, "ended"), (TALKS, "not an answer")]
)
def test_a_peer_that_does_not_answer_is_ended(tmp_path: Path, script: str, reason: str) -> None:
    with pytest.raises(PeerFailed, match=reason):
        Peer([sys.executable, "-c", script], tmp_path / "log", start_s=30.0, answer_s=0.2).ask("get")


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="No such file"):
        Peer([str(tmp_path / "none")], tmp_path / "log")


def test_a_closed_peer_starts_anew(tmp_path: Path) -> None:
    some = peers(tmp_path, [], a=ANSWERS)
    for _ in range(2):
        with some:
            assert row(some.of("get")).peers == {"A": 3.0}


def test_without_peers_rows_have_none() -> None:
    assert row(NO_PEERS.of("get")).peers == {}


def test_every_work_has_a_peer_and_every_peer_a_module() -> None:
    works = {getattr(work, name) for name in work.__all__ if isinstance(getattr(work, name), str)}
    assert set().union(*(one.works for one in ROSTER)) == works
    for one in ROSTER:
        assert (Path(install.__file__).with_name(f"{one.name}.py")).exists()


def test_installing_says_the_size_first_and_fails_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def failing(command: list[str]) -> str | None:
        order.append(" ".join(command[-2:]))
        return "no such package" if "pip" in command else None

    monkeypatch.setattr(install, "_done", failing)
    one = Spec(name="p", label="P", works=frozenset(), alone=("p==1",), needs=(), size="3 MB")
    assert install.install(one, order.append, tmp_path) == "no such package"
    assert "3 MB" in order[0]
    assert install.install(one, order.append, tmp_path) == "no such package"  # nothing was marked as installed


def test_only_what_a_row_is_compared_with_is_installed(tmp_path: Path) -> None:
    said: list[str] = []
    brought: list[str] = []

    def bring(one: Spec) -> str | None:
        brought.append(one.name)
        return "no such package" if one.name == "b" else None

    does = {"a": "get", "b": "get", "c": "put"}
    roster = [Spec(name, name.upper(), frozenset({one}), (), (), "") for name, one in does.items()]
    some = Peers(roster, said.append, lambda _: [sys.executable, "-c", ANSWERS], tmp_path, bring)
    assert brought == []
    with some:
        assert row(some.of("get")).peers == {"A": 3.0, "B": NOT_INSTALLED}
        some.of("get")
    assert (brought, said) == (["a", "b"], ["B not installed: no such package"])  # once each, and nothing else


def test_only_benchmarks_that_have_peers_are_given_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class With:
        @staticmethod
        def rows(quick: bool, peers: Peers) -> list[Row]:
            return [row(peers.of("get"), 1)]

    class Without:
        @staticmethod
        def rows(quick: bool) -> list[Row]:
            return [row({}, 1)]

    modules = {"bench.with": With, "bench.without": Without}
    monkeypatch.setattr(runner.importlib, "import_module", modules.__getitem__)  # type: ignore[attr-defined]
    some = peers(tmp_path, [], a=ANSWERS)
    (made,) = runner.rows("with", True, some)
    path = harness.write("with", [made], tmp_path)
    assert json.loads(path.read_text())["rows"][0]["peers"] == {"A": 2.0}
    assert runner.rows("without", True, some)[0].peers == {}
