"""Does virtual time behave as a machine's does: in order, late when stopped, and over when killed?"""

from __future__ import annotations

import pytest

from kvstore.testing.world import Broken, Process, Steps, Wait, World


def run(world: World) -> None:
    world.run(1_000, lambda: None)


def test_events_go_in_order_of_time_and_of_making() -> None:
    world, seen = World(0), []
    for name, when in (("b", 5), ("a", 3), ("c", 5)):
        world.at(when, lambda name=name: seen.append((world.now, name)))
    run(world)
    assert seen == [(3, "a"), (5, "b"), (5, "c")]


def test_what_was_due_in_a_jump_happens_late() -> None:
    world, seen = World(0), []
    world.at(10, lambda: world.jump(100))
    world.at(50, lambda: seen.append(world.now))
    run(world)
    assert seen == [110]


def test_a_wait_ends_with_its_answer_or_at_its_deadline() -> None:
    world, seen = World(0), []

    def asks() -> Steps:
        for deadline in (20, 50):
            wait: Wait[object] = Wait(deadline)
            world.at(40, lambda wait=wait: wait.fulfil("answer"))
            seen.append(((yield wait), world.now))

    Process(world, "p", asks()).start()
    run(world)
    assert seen == [(None, 20), ("answer", 40)]


def test_a_stopped_process_goes_on_where_it_stood() -> None:
    world, seen = World(0), []

    def steps() -> Steps:
        yield 10
        seen.append(world.now)
        yield 10
        seen.append(world.now)

    process = Process(world, "p", steps())
    process.start()
    world.at(5, process.stop)
    world.at(100, process.wake)
    run(world)
    assert seen == [100, 110]
    assert process.stopped_ns == 95
    assert process.finished


def test_a_killed_process_takes_no_further_step() -> None:
    world, seen = World(0), []

    def steps() -> Steps:
        yield 10
        seen.append(world.now)
        yield 10
        seen.append(world.now)

    process = Process(world, "p", steps())
    process.start()
    world.at(15, process.kill)
    run(world)
    assert seen == [10]
    assert not process.running


def test_what_never_ends_is_broken() -> None:
    world = World(0)

    def again() -> None:
        world.after(1, again)

    again()
    with pytest.raises(Broken, match="hang"):
        run(world)
