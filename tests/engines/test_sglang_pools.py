"""The backend over SGLang's own host pools, on a CPU: every layout, the copying interface, sidecars, promises.

One process does it all (sglang_pools.py); the tests look at what it saw.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.engines.run import environment
from tests.engines.test_engines_run import needs
from tests.engines.venvs import RECIPES, ROOT
from tests.integration.nodes import NodeProcess

LAYOUTS = [
    *(f"mha {layout}" for layout in ("layer_first", "page_first", "page_first_direct", "page_head")),
    *(f"mla {layout}" for layout in ("layer_first", "page_first", "page_first_direct")),
]


@pytest.fixture(scope="module")
def saw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    needs("sglang")
    with NodeProcess(tmp_path_factory.mktemp("node"), memory="128MiB") as node:
        command = [RECIPES["sglang"].python, "-m", "tests.engines.sglang_pools", node.address]
        ran = subprocess.run(
            command, env=environment("sglang"), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )
    assert ran.returncode == 0, ran.stderr[-4000:]
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("case", LAYOUTS)
class TestLayouts:
    def test_pages_come_back_as_they_were_into_other_places(self, saw: dict[str, Any], case: str) -> None:
        assert saw[case]["set"] == [True] * 5
        assert saw[case]["get"] == [True] * 5 + [False]
        assert saw[case]["equal"] == [True] * 5
        assert not saw[case]["missed"]  # a page that is not there writes nothing

    def test_the_longest_prefix_is_found_from_any_page_on(self, saw: dict[str, Any], case: str) -> None:
        assert (saw[case]["found"], saw[case]["middle"]) == (5, 2)

    def test_is_counted(self, saw: dict[str, Any], case: str) -> None:
        stats = saw[case]["stats"]
        assert (stats["save_pages"], stats["load_pages"], stats["promised_pages"]) == (5, 5, 7)
        assert stats["load_bytes"] == stats["save_bytes"] > 0
        assert stats["errors"] == 0
        assert saw[case]["bandwidths"] == 2  # as the engine's own metrics take them


def test_every_layout_is_a_format_of_its_own(saw: dict[str, Any]) -> None:
    assert len({saw[case]["format"] for case in LAYOUTS}) == len(LAYOUTS)


def test_the_copying_interface(saw: dict[str, Any]) -> None:
    said = saw["copying"]
    assert said["set"] and said["one"] and said["missing"]
    assert said["exists"] == [True, False]
    assert said["equal"] == [True] * 3


def test_copied_pages_and_pages_where_they_lie_do_not_mix(saw: dict[str, Any]) -> None:
    assert saw["copying"]["other_form"] == 0
    assert saw["copying"]["refused"] is False


def test_a_layout_that_the_engine_cannot_address_is_not_stored(saw: dict[str, Any]) -> None:
    assert saw["unselectable"] == {"set": [False, False], "found": 0}


class TestSidecars:
    """Stored: KV 0..7, indexer 0..6, window 2..4, states at 1 and 3."""

    def test_are_stored(self, saw: dict[str, Any]) -> None:
        said = saw["sidecars"]
        assert said["kv"] == [True] * 8
        assert [[sum(ok) for ok in each.values()] for each in said["set"]] == [[7], [3], [1], [1]]

    @pytest.mark.parametrize(
        ("case", "end", "pools"),
        [
            ("every", 7, {"kv": 8, "indexer": 7}),
            ("window", 5, {"kv": 8, "swa": 5}),  # ends where its last two pages are there
            ("state", 4, {"kv": 8, "mamba": 4}),
            ("all", 4, {"kv": 8, "indexer": 7, "swa": 5, "mamba": 4}),
            ("nothing", 0, {"kv": 8}),  # four in a row are nowhere
            ("groups", 8, {"kv": 8, "indexer": 6}),  # three whole pairs; gates nothing
        ],
    )
    def test_the_shortest_need_clamps_the_prefix(
        self, saw: dict[str, Any], case: str, end: int, pools: dict[str, int]
    ) -> None:
        found, each, restorable = saw["sidecars"][case]
        assert (found, each) == (end, pools)
        assert (restorable[-1] if restorable else 0) == end

    def test_only_boundaries_that_can_be_restored_are_told(self, saw: dict[str, Any]) -> None:
        assert saw["sidecars"]["every"][2] == list(range(1, 8))
        assert saw["sidecars"]["state"][2] == [4]

    def test_come_back_as_they_were(self, saw: dict[str, Any]) -> None:
        said = saw["sidecars"]
        assert said["get"] == [{"indexer": [True] * 7}, {"swa": [True] * 3}, {"mamba": [True]}]
        assert said["equal"] == {"indexer": True, "swa": True, "mamba": True}
        assert said["short"] == [True, True, False]

    def test_places_that_do_not_fit_the_pages_are_not_stored(self, saw: dict[str, Any]) -> None:
        assert saw["sidecars"]["misfit"] == [False, False]
        assert saw["sidecars"]["errors"] == 0  # seen, not stumbled over

    def test_a_pool_more_is_another_layout(self, saw: dict[str, Any]) -> None:
        assert saw["sidecars"]["late"] == 0


class TestRanks:
    def test_tell_every_boundary_that_they_can_restore(self, saw: dict[str, Any]) -> None:
        assert (saw["agreeing"]["found"], saw["agreeing"]["boundaries"]) == (7, [2, 4, 7])

    def test_have_shards_of_their_own(self, saw: dict[str, Any]) -> None:
        assert saw["agreeing"]["other_rank"] == 0


class TestPromises:
    def test_end_with_the_last_page_fetched(self, saw: dict[str, Any]) -> None:
        said = saw["promises"]
        assert [said[moment] for moment in ("before", "told", "partly", "fetched")] == [0, 1, 1, 0]

    def test_end_after_a_while(self, saw: dict[str, Any]) -> None:
        assert (saw["promises"]["found"], saw["promises"]["lapsed"]) == (6, 0)

    def test_have_a_budget(self, saw: dict[str, Any]) -> None:
        assert saw["promises"]["affordable"][0] == min(6, saw["promises"]["affordable"][1])
        assert saw["promises"]["crowded"] == 0
