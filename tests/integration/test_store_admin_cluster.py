"""Four real nodes, seen from any of them: rows of each and their sums; one that is killed or stopped is named."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from kvstore import Client, Hints
from kvstore.admin.cli import main
from kvstore.client.calls import times_of
from kvstore.errors import Rejected
from kvstore.wire import admin, services, store
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens
from tests.integration.patience import DEAD_S, SLOW_S
from tests.integration.test_cluster import Cluster, running, told_within
from tests.integration.test_locating import FAR_MEMORY, At, found_within
from tests.tokens import mint_token

SETTLE_MS = 300
BLOCKS = 8
NODES = 4
SECRET_OPTION = "object.options=secret_access_key=sesame,region=here"


class Seen:
    """What `store-admin` says at one node, as people and as programs read it."""

    def __init__(self, node: NodeProcess) -> None:
        self._address = f"unix:{node.socket}"

    def run(self, *words: str, code: int = 0) -> tuple[str, str]:
        done = CliRunner(env={"COLUMNS": "100"}).invoke(main, ["--address", self._address, *words])
        assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
        return done.stdout, done.stderr

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code)[0])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    sets = (f"cluster.settle_ms={SETTLE_MS}", "cluster.directory_width=2", SECRET_OPTION)
    cluster = Cluster(tmp_path_factory.mktemp("four"), NODES, "", *sets)
    cluster.nodes[3] = cluster.node(3, "limits.lease_ms_max=50000")
    with running(cluster):
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


def named(cluster: Cluster, rows: Sequence[dict[str, Any]], key: str = "node") -> dict[int, dict[str, Any]]:
    """Rows by the number of their node; every node has one."""
    found = {i: row for i in range(len(cluster.nodes)) for row in rows if row[key] == cluster.name(i)}
    assert len(found) == len(rows) == len(cluster.nodes)
    return found


def test_a_get_is_counted_once_wherever_its_blocks_lay(four: Cluster) -> None:
    with At(four, 0, "counted") as here, At(four, 1, "counted") as there, At(four, 2, "counted") as third:
        chain = here.chain(tokens(BLOCKS, 1))
        label = {"hints": Hints(family="the prompt")}
        into = np.zeros((BLOCKS, SIZE), np.uint8)
        assert here.put(chain, blocks_of(chain), **label).stored == BLOCKS
        assert here.get(chain, into, **label).blocks == BLOCKS
        found_within(there, chain, BLOCKS)
        assert there.get(chain, into, **label).tiers.tolist() == [FAR_MEMORY] * BLOCKS
        assert third.get(third.chain(tokens(BLOCKS, 2)), into, **label).blocks == 0
        digest = here.digest.hex()

    def counted() -> bool:
        return bool(Seen(four.nodes[3]).json("hits")["total"]["asked"] == 3 * BLOCKS)

    eventually(counted)  # what a client says of its get comes a moment after it
    for asked in (0, 3):
        told = Seen(four.nodes[asked]).json("hits")
        (row,) = told["sum"]
        assert (row["namespace"], row["asked"], row["hit"], row["memory"]) == (
            digest,
            3 * BLOCKS,
            2 * BLOCKS,
            2 * BLOCKS,
        )
        assert row["hit_rate"] == pytest.approx(2 / 3) and told["total"]["far"] == BLOCKS
        nodes = named(four, told["nodes"])
        assert [nodes[i]["asked"] for i in range(NODES)] == [BLOCKS, BLOCKS, BLOCKS, 0]
        assert [nodes[i]["far"] for i in range(NODES)] == [0, BLOCKS, 0, 0]
        assert [nodes[i]["hit_rate"] for i in range(NODES)] == [1.0, 1.0, 0.0, None]
        (family,) = Seen(four.nodes[asked]).json("families")["sum"]
        assert (family["family"], family["asked"], family["hit"], family["nodes"]) == ("the prompt", 24, 16, 3)
        assert family["asked_error_max"] == 0
    alone = Seen(four.nodes[3]).json("hits", "--node", four.name(1))
    assert (alone["total"]["asked"], len(alone["nodes"])) == (BLOCKS, 1)
    shown = Seen(four.nodes[2]).run("hits")[0]
    assert "66.7%" in shown and all(four.name(i)[:8] in shown for i in range(NODES))


def test_status_and_tiers_add_up(four: Cluster) -> None:
    at = Seen(four.nodes[1])
    status = at.json("status")
    nodes = named(four, status["nodes"])
    assert (status["sum"]["nodes"], status["sum"]["answered"], status["sum"]["alive"]) == (NODES, NODES, NODES)
    assert status["sum"]["memory_capacity_bytes"] == NODES * (4 << 20)
    assert any(four.at(3) in one for one in nodes[3]["listening"])
    tiers = at.json("tiers")
    (memory,) = tiers["sum"]
    used = [row["used_bytes"] for row in tiers["nodes"]]
    assert (memory["capacity_bytes"], memory["nodes"]) == (NODES * (4 << 20), NODES)
    assert memory["used_bytes"] == sum(used) == status["sum"]["memory_used_bytes"] > 0
    assert "listening" in at.run("status", "--node", "self")[0]
    one = at.run("tiers", "--node", four.at(2))[0]
    assert "memory (shared memory): " in one
    told = named(four, at.json("nodes"), "name")
    assert told[1]["self"] and all(row["memory_free_bytes"] > 0 for row in told.values())
    assert sum(row["claims"] for row in told.values()) > 0
    assert {row["drain"] for row in told.values()} == {None} and len({row["clears"] for row in told.values()}) == 1


def test_what_is_claimed_is_asked_of_the_holders(four: Cluster, tmp_path: Path) -> None:
    with At(four, 0, "located") as here, At(four, 2, "located") as there:
        ids = tokens(BLOCKS, 3)
        chain = here.chain(ids)
        here.put(chain, blocks_of(chain))
        there.put(chain[:3], blocks_of(chain[:3]))
        found_within(there, chain, BLOCKS)
        found_within(here, chain, BLOCKS)
        digest = here.digest.hex()
    file = tmp_path / "tokens"
    file.write_text(" ".join(map(str, ids)))
    words = ("--namespace", digest[:16], "--tokens", str(file))
    expected = [(four.name(0), 0, BLOCKS), (four.name(2), 0, 3)]

    def settled() -> bool:
        holders = Seen(four.nodes[0]).json("locate", *words)["holders"]
        return [row["claimed"] for row in holders] == ["memory"] * 2

    eventually(settled)
    for asked in (0, 1):  # where it is open, and where nobody has opened it
        told = Seen(four.nodes[asked]).json("locate", *words)
        assert told["blocks"] == [key.tobytes().hex() for key in chain]
        assert sorted((row["node"], row["first"], row["count"]) for row in told["holders"]) == sorted(expected)
        assert all(row["claimed"] == "memory" and row["held"] == ["memory"] for row in told["holders"])
        assert {row["node"]: row["problem"] for row in told["nodes"]} == {four.name(i): None for i in range(NODES)}
    shown = Seen(four.nodes[3]).run("locate", *words)[0]
    assert "0-7" in shown and f"{BLOCKS} blocks: held by some node: {BLOCKS}" in shown
    nobody = Seen(four.nodes[0]).json("locate", "--namespace", digest, "--keys", "00" * 32, code=1)
    assert nobody["holders"] == []


def test_copies_are_counted_over_nodes_and_hosts(four: Cluster) -> None:
    with At(four, 0, "copies") as here, At(four, 1, "copies") as there, At(four, 3, "copies") as third:
        chain = here.chain(tokens(BLOCKS, 4))
        here.put(chain, blocks_of(chain))
        there.put(chain[:5], blocks_of(chain[:5]))
        third.put(chain[:2], blocks_of(chain[:2]))
        digest = here.digest.hex()
    for words in ((), ("--namespace", digest)):
        told = Seen(four.nodes[2]).json("replicas", *words)
        assert (told["exact"], told["sampled_share"]) == (True, 1.0)
        rows = {row["copies"]: row for row in told["sum"] if row["namespace"] == digest}
        assert {copies: row["on_nodes"] for copies, row in rows.items()} == {1: 3, 2: 3, 3: 2}
        assert {copies: row["on_hosts"] for copies, row in rows.items()} == {1: BLOCKS, 2: 0, 3: 0}  # of this machine
    assert len({row["namespace"] for row in told["sum"]}) == 1
    keys = ",".join(key.tobytes().hex() for key in chain[1:4])
    told = Seen(four.nodes[2]).json("replicas", "--namespace", digest, "--keys", keys)
    assert [(row["copies"], row["on_nodes"]) for row in told["sum"]] == [(1, 0), (2, 2), (3, 1)]
    assert "exact" in Seen(four.nodes[2]).run("replicas")[0]


def test_settings_that_differ_and_none_that_is_secret(four: Cluster) -> None:
    found = {row["setting"]: row for row in Seen(four.nodes[0]).json("settings")["sum"]}
    assert found["cluster.secret_file (its id)"]["must_agree"] and not found["cluster.secret_file (its id)"]["differs"]
    lease = found["limits.lease_ms_max"]
    assert lease["differs"] and lease["values"] == {four.name(i): "50000" if i == 3 else "60000" for i in range(NODES)}
    options = found["object.options"]
    assert options["value"].startswith("secret_access_key=hidden (") and options["value"].endswith("region=here")
    everything = "".join(Seen(four.nodes[0]).run("settings", "--all", *more)[0] for more in ((), ("--json",)))
    assert "sesame" not in everything and four.secret.read_bytes().hex() not in everything
    assert four.secret.read_text() not in everything
    shown = Seen(four.nodes[0]).run("settings")[0]
    assert "limits.lease_ms_max" in shown and "node.name" not in shown and "grpc.calls_max" not in shown


def test_a_name_that_is_nobodys_is_an_error(four: Cluster) -> None:
    _, error = Seen(four.nodes[0]).run("hits", "--node", "nobody", code=2)
    assert "'nobody' is the name of no node of this cluster; there are: " in error and four.name(3) in error


def test_only_nodes_ask_for_others_and_only_operators_ask_nodes(four: Cluster, tmp_path: Path) -> None:
    question = admin.Question(hits=admin.HitsRequest())
    with Client(four.nodes[0].address) as client:  # its user may use every tenant, and is no node
        channel = client.namespace(layout("asks"))._channel
        with pytest.raises(Rejected, match="only nodes"):
            channel.call(store.METHOD_PEER_ADMIN, question.SerializeToString(), times_of(5, None))
    token, entry = mint_token("a tenant", ["acme"], [])
    access = tmp_path / "access.toml"
    access.write_text(entry)
    access.chmod(0o600)
    (tmp_path / "n").mkdir()
    with NodeProcess(tmp_path / "n", f"security.access_file={access}", memory="4MiB", grpc="127.0.0.1:0") as node:
        address = next(one for one in node.facts["addresses"] if one.startswith("127.0.0.1:"))
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            asked = admin.AskRequest(question=question)
            list(services.AdminStub(channel).Ask(asked, timeout=10, metadata=[("authorization", f"Bearer {token}")]))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_one_that_stands_still_is_named_and_costs_its_deadline(four: Cluster) -> None:
    four.nodes[2].signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        told = Seen(four.nodes[0]).json("hits")
        assert time.monotonic() - began < 2 + SLOW_S  # each node's time is 2 s (asking.ASK_S)
        nodes = named(four, told["nodes"])
        assert nodes[2]["asked"] is None and nodes[2]["problem"]  # its deadline, or a ping's, whichever was first
        assert [nodes[i]["problem"] for i in (0, 1, 3)] == [None] * 3
    finally:
        four.nodes[2].signal(signal.SIGCONT)
    four.meet()


def test_one_that_is_killed_has_a_row_that_says_so(four: Cluster) -> None:
    before = Seen(four.nodes[0]).json("hits")["total"]["asked"]
    own = Seen(four.nodes[0]).json("hits", "--node", four.name(1))["total"]["asked"]
    four.nodes[1].kill()
    try:
        told_within(four.nodes[0], four.name(1), "dead", DEAD_S)
        at = Seen(four.nodes[0])
        hits = at.json("hits")
        nodes = named(four, hits["nodes"])
        assert (nodes[1]["state"], nodes[1]["asked"], nodes[1]["hit_rate"]) == ("dead", None, None)
        assert nodes[1]["problem"].startswith("dead for ") and "Connection refused" in nodes[1]["problem"]
        assert hits["total"]["asked"] == before - own > 0 and own > 0
        for words in (("status",), ("tiers",), ("hits",), ("families",), ("nodes",), ("settings",), ("replicas",)):
            shown, document = at.run(*words)[0], at.json(*words)
            assert f"no answer: {four.name(1)} ({four.at(1)}): dead for " in shown.replace("\n", ""), words
            rows = document if isinstance(document, list) else document["nodes"]
            (row,) = [row for row in rows if four.name(1) in {row.get("node"), row.get("name")}]
            assert row["state"] == "dead" and row["problem"], words
        assert at.json("status")["sum"]["answered"] == NODES - 1
        _, error = at.run("hits", "--node", four.name(1), code=3)
        assert four.name(1) in error and "dead for " in error
    finally:
        four.nodes[1].start()
        four.meet()
