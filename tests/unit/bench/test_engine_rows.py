"""What the benchmark of engines counts by itself: what could have been found, and intervals."""

from __future__ import annotations

import numpy as np

from bench.engines import statistics
from bench.engines.hits import Ideal


def test_what_could_be_found_leaves_one_token_and_takes_full_blocks_of_one_beginning() -> None:
    ideal = Ideal(block=4)
    ideal.computed([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert ideal.found([1, 2, 3, 4, 5, 6, 7, 8, 9]) == 8
    assert ideal.found([1, 2, 3, 4, 5, 6, 7, 8]) == 4, "the last token is computed"
    assert ideal.found([1, 2, 3, 4, 0, 6, 7, 8, 9]) == 4
    assert ideal.found([0, 2, 3, 4, 5, 6, 7, 8, 9]) == 0, "nothing behind a block that differs"
    assert ideal.found([9, 9]) == 0


def test_an_interval_holds_the_median_and_is_narrower_with_more_rounds() -> None:
    draw = np.random.default_rng(3)
    few, many = draw.normal(10, 1, 9), draw.normal(10, 1, 400)
    for values in (few, many):
        found = statistics.of(values)
        assert found.low <= statistics.median(values) <= found.high
    wide, narrow = statistics.of(few), statistics.of(many)
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2


def test_pairs_cancel_what_disturbs_both() -> None:
    disturbed = np.random.default_rng(4).uniform(1, 5, 20)
    ratios = statistics.paired_ratio(disturbed * 0.9, disturbed)
    found = statistics.of(ratios)
    assert found.high - found.low < 1e-9 and abs(found.low - 0.9) < 1e-9
