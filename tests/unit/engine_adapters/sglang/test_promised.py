"""A promise ends once: with its last page, after a while, or with the backend."""

from __future__ import annotations

import threading
import time

from engine_adapters.base.promises import Promise
from engine_adapters.sglang.promised import Promised


class Ends:
    def __init__(self) -> None:
        self.count = 0
        self.over = threading.Event()

    def __call__(self) -> None:
        self.count += 1
        self.over.set()


def promise(ends: Ends) -> Promise:
    return Promise(0, 4, give_back=ends)


def test_ends_when_every_shard_was_fetched_to_its_last_page() -> None:
    kept, ends = Promised(60.0), Ends()
    kept.keep(promise(ends), "d", {0, 3})
    kept.fetched(["a", "b"], 0)
    kept.fetched(["c", "d"], 0)
    kept.fetched(["c", "d"], 0)
    assert (ends.count, len(kept)) == (0, 1)
    kept.fetched(["d"], 3)
    assert (ends.count, len(kept)) == (1, 0)
    kept.close()
    assert ends.count == 1


def test_two_requests_with_the_same_prompt_end_one_each() -> None:
    kept, first, second = Promised(60.0), Ends(), Ends()
    for ends in (first, second):
        kept.keep(promise(ends), "d", {0})
    kept.fetched(["d"], 0)
    assert (first.count, second.count, len(kept)) == (1, 0, 1)
    kept.fetched(["d"], 0)
    assert (first.count, second.count, len(kept)) == (1, 1, 0)
    kept.close()


def test_the_first_that_still_wants_a_shard_gets_it() -> None:
    kept, first, second = Promised(60.0), Ends(), Ends()
    kept.keep(promise(first), "d", {0, 1})
    kept.keep(promise(second), "d", {0})
    kept.fetched(["d"], 0)
    kept.fetched(["d"], 0)
    assert (first.count, second.count) == (0, 1)
    kept.fetched(["d"], 1)
    assert first.count == 1
    kept.close()


def test_ends_when_its_time_is_over_by_the_clock_it_was_given() -> None:
    now, ends, later = [0.0], Ends(), Ends()
    kept = Promised(10.0, lambda: now[0])
    kept.keep(promise(ends), "d", {0})
    now[0] = 4.0
    kept.keep(promise(later), "e", {0})
    assert kept.sweep() == 6.0
    now[0] = 10.0
    assert kept.sweep() == 4.0
    assert (ends.count, later.count) == (1, 0)
    kept.close()
    assert later.count == 1


def test_a_thread_ends_it_where_nobody_calls_again() -> None:
    kept, ends = Promised(0.05), Ends()
    since = time.monotonic()
    kept.keep(promise(ends), "d", {0})
    assert ends.over.wait(10)
    assert time.monotonic() - since >= 0.05
    kept.close()


def test_nothing_is_kept_after_the_end() -> None:
    kept, ends = Promised(60.0), Ends()
    kept.close()
    kept.keep(promise(ends), "d", {0})
    assert (ends.count, len(kept)) == (1, 0)
