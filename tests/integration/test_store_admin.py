"""`store-admin` against a real node, as an operator types it: tables, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore import Client
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens

BLOCKS = 6


class Operator:
    def __init__(self, node: NodeProcess) -> None:
        self.address = f"unix:{node.socket}.grpc"

    def run(self, *words: str, address: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kvstore.admin", "--address", address or self.address, *words]
        environ = {**os.environ, "COLUMNS": "80"}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environ)

    def json(self, *words: str, code: int = 0) -> Any:
        done = self.run("--json", *words)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node-in-a-long-folder")) as started:
        yield started


@pytest.fixture(scope="module")
def prompt(node: NodeProcess) -> np.ndarray:
    ids = tokens(BLOCKS)
    with Client(node.address) as client:
        ns = client.namespace(layout())
        chain = ns.chain(ids)
        assert ns.put(chain, blocks_of(chain)).stored == BLOCKS
        into = np.empty((BLOCKS, SIZE), np.uint8)
        assert ns.get(chain, into).blocks == BLOCKS
        assert ns.get(ns.chain(tokens(BLOCKS, seed=9)), into).blocks == 0
    return ids


@pytest.fixture
def operator(node: NodeProcess, prompt: np.ndarray) -> Operator:
    return Operator(node)


@pytest.fixture
def token_file(tmp_path: Path, prompt: np.ndarray) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(prompt.tolist()))
    return path


def digest(operator: Operator) -> str:
    return str(operator.json("namespaces")[0]["namespace"])


def test_status_tells_where_it_listens(operator: Operator, node: NodeProcess) -> None:
    told = operator.json("status")
    (row,) = told["nodes"]
    assert (told["sum"]["nodes"], told["sum"]["answered"], told["sum"]["alive"]) == (1, 1, 1)
    assert f"unix:{node.socket}" in row["listening"]
    assert row["namespaces"] == 1
    assert "listening" in operator.run("status").stdout


def test_tiers_add_up(operator: Operator) -> None:
    memory = operator.json("tiers")["sum"][0]
    assert (memory["tier"], memory["blocks"], memory["used_bytes"]) == ("memory", BLOCKS, BLOCKS * SIZE)
    assert memory["capacity_bytes"] == 16 << 20


def test_hits_are_counted_once_a_get(operator: Operator) -> None:
    eventually(lambda: operator.json("hits")["total"]["asked"] == 2 * BLOCKS)  # told a moment after the gets
    (row,) = operator.json("hits")["sum"]
    assert (row["asked"], row["hit"], row["memory"], row["hit_rate"]) == (2 * BLOCKS, BLOCKS, BLOCKS, 0.5)
    assert sum(family["asked"] for family in operator.json("families")["sum"]) == 2 * BLOCKS
    assert "50.0%" in operator.run("hits").stdout


def test_lookup_finds_a_prompt_by_its_tokens(operator: Operator, token_file: Path) -> None:
    found = operator.json("lookup", "--namespace", digest(operator)[:8], "--tokens", str(token_file))
    assert [row["memory_shards"] for row in found] == [[0]] * BLOCKS
    nobody = operator.run("lookup", "--namespace", digest(operator), "--keys", "00" * 32)
    assert nobody.returncode == 1


def test_a_pin_is_given_and_released(operator: Operator, token_file: Path) -> None:
    chain = ("--namespace", digest(operator), "--tokens", str(token_file))
    pin = operator.json("pin", *chain, "--for", "30")[0]
    assert (pin["blocks"], pin["pinned_bytes"]) == (BLOCKS, BLOCKS * SIZE)
    assert operator.json("status")["sum"]["pinned_bytes"] == BLOCKS * SIZE
    assert operator.json("pin", "--release", str(pin["pin"]))[0]["released"]  # the number is all that it takes
    assert operator.run("pin", *chain, "--release", str(pin["pin"])).returncode == 1


def test_what_a_table_shows_goes_into_the_next_command(operator: Operator, token_file: Path) -> None:
    shown = operator.run("namespaces").stdout.splitlines()[-1].split()[0]
    told = operator.run("pin", "--namespace", shown, "--tokens", str(token_file)).stdout
    assert operator.run("pin", "--release", told.splitlines()[-1].split()[0]).returncode == 0
    found = operator.run("lookup", "--namespace", shown, "--tokens", str(token_file)).stdout
    assert f"the first {BLOCKS} are here" in found


@pytest.mark.parametrize("command", ["status", "tiers", "hits", "families", "namespaces", "nodes", "settings"])
def test_tables_fit_eighty_columns(operator: Operator, command: str) -> None:
    shown = operator.run(command).stdout
    assert len(shown.splitlines()) >= 3
    assert "…" not in shown


def test_events_of_a_namespace_without_any_come_to_an_end(operator: Operator, node: NodeProcess) -> None:
    with Client(node.address) as client:
        other = client.namespace(layout("of which nothing is held")).digest.hex()
    done = operator.run("events", "--namespace", other)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_events_tell_what_was_stored(operator: Operator) -> None:
    done = operator.run("events", "--json")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kind"] for row in told] == ["stored"] * BLOCKS
    assert [row["parent"] for row in told][1:] == [row["key"] for row in told][:-1]


def test_verify_finds_what_was_altered_and_drops_it(operator: Operator, node: NodeProcess) -> None:
    assert operator.json("verify") == {"checked": BLOCKS, "checked_bytes": BLOCKS * SIZE, "corrupt": 0, "blocks": []}
    with Client(node.address) as client:
        ns = client.namespace(layout("other"))
        chain = ns.chain(tokens(1))
        data = blocks_of(chain)
        assert ns.put(chain, data).stored == 1
        segment = Path(node.facts["memory_at"])
        place = segment.read_bytes().index(data.tobytes())
        with segment.open("r+b") as file:
            file.seek(place + 777)
            file.write(bytes([data[0, 777] ^ 1]))
        found = operator.json("verify", code=1)
        assert [row["key"] for row in found["blocks"]] == [chain[0].tobytes().hex()]
        assert ns.lookup(chain).blocks == 0
    assert operator.json("verify")["corrupt"] == 0


def test_retire_comes_last(operator: Operator, token_file: Path) -> None:
    chain = ("--namespace", digest(operator), "--tokens", str(token_file))
    assert operator.json("retire", *chain) == [{"slots": BLOCKS}]
    assert operator.run("retire", *chain).returncode == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("lookup", "--namespace", "ffff"), 2, "no namespaces begin so"),
        (("lookup", "--namespace", "", "--keys", "zz"), 2, "namespaces begin so"),
        (("pin",), 2, "--namespace: needed to pin"),
        (("retire",), 2, "Missing option '--namespace'"),
        (("families", "--top", "0"), 2, "not in the range"),
    ],
)
def test_what_is_wrong_is_named(operator: Operator, words: tuple[str, ...], code: int, says: str) -> None:
    done = operator.run(*words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr


def test_the_socket_that_people_know_leads_to_the_operators_one(operator: Operator, node: NodeProcess) -> None:
    assert operator.run("status", address=node.address).returncode == 0


def test_no_node_is_an_exit_code_not_a_traceback(tmp_path: Path, operator: Operator) -> None:
    done = operator.run("status", address=f"unix:{tmp_path}/nobody")
    assert done.returncode == 3
    assert done.stderr == (
        f"store-admin: unix:{tmp_path}/nobody: No such file or directory (does a node listen there?)\n"
    )


def test_a_door_that_speaks_no_grpc_is_told_apart(tmp_path: Path, operator: Operator, node: NodeProcess) -> None:
    alone = tmp_path / "alone.sock"  # without the operators' one beside it
    alone.symlink_to(node.socket)
    done = operator.run("status", address=f"unix:{alone}")
    assert done.returncode == 3
    assert "what answers there is no gRPC door" in done.stderr


def test_who_has_no_right_is_told_how_to_come_in(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, grpc="127.0.0.1:0") as node:
        (address,) = (each for each in node.facts["addresses"] if each.startswith("127.0.0.1:"))
        done = Operator(node).run("status", address=address)
    assert done.returncode == 4
    assert "no such right; --token-file" in done.stderr
