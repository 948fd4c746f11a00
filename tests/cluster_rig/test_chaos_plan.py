"""A run of chaos is its seed: the same faults, at the same times, and the same questions."""

from __future__ import annotations

import itertools

from tests.cluster_rig.chaos_plan import ETCD, Fault, links, operations, plan

NODES = [f"n{i}" for i in range(5)]


def test_a_seed_has_one_plan_and_another_seed_another() -> None:
    assert plan(1, 600, NODES) == plan(1, 600, NODES) != plan(2, 600, NODES)
    assert {fault.kind for fault in plan(1, 600, NODES)} >= {
        "kill",
        "lose",
        "stop",
        "drain",
        "split",
        "one-way",
        "etcd-kill",
    }
    assert len(plan(1, 60, NODES)) > 20


def test_a_client_asks_the_same_and_another_one_something_else() -> None:
    first, again, other = (list(itertools.islice(operations(seed, "n0"), 200)) for seed in (1, 1, 2))
    assert first == again != other
    assert first != list(itertools.islice(operations(1, "n1"), 200))
    assert {one.verb for one in first} >= {"put", "get", "lookup", "prefetch", "hold", "copy"}
    assert any(one.verb == "clear" for one in itertools.islice(operations(1, "n0"), 5_000))


def test_nobody_is_struck_twice_at_once_and_all_is_over_at_the_end() -> None:
    faults = plan(3, 600, NODES)
    assert max(fault.ends_s for fault in faults) <= 600
    for node in [*NODES, ETCD]:
        own = [fault for fault in faults if fault.nodes == (node,)]
        assert all(one.ends_s < next_.at_s for one, next_ in itertools.pairwise(own))


def test_what_faults_of_links_come_to_together() -> None:
    cut = Fault(0, 1, "split", ("n0", "n1"))
    one_way, lossy = Fault(0, 1, "one-way", ("n2", "n3")), Fault(0, 1, "lossy", ("n4",))
    told = links([cut, one_way, lossy, Fault(0, 1, "kill", ("n2",))], NODES)
    assert told["n0"].deaf_to == {"n2", "n3", "n4", ETCD} and told[ETCD].deaf_to == {"n0", "n1"}
    assert told["n3"].deaf_to == {"n0", "n1", "n2"} and told["n2"].deaf_to == {"n0", "n1"}
    assert (told["n4"].loss, told["n3"].loss, told["n4"].megabits) == (0.05, 0.0, 0.0)
    assert all(not link.deaf_to and not link.loss and not link.megabits for link in links([], NODES).values())
