"""The peer's side: one line of JSON out for each line in.

First `{"ready": true}` or `{"reason": TEXT}`. Then for each name of a work `{"value": NUMBER}` or `{"reason": TEXT}`,
until the input ends. What the libraries print goes to stderr: the answers have a descriptor of their own.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TypeAlias

from bench.peers.work import CALLS

__all__ = ["Works", "gib_per_s", "median_us", "serve"]

Works: TypeAlias = Mapping[str, Callable[[], float]]
GIB = 1 << 30


def serve(peer: Callable[[], AbstractContextManager[Works]]) -> None:
    """Until the end of the input. `peer` is entered here, so that its failure has a reason too."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**content: object) -> None:
        answers.write(json.dumps(content) + "\n")

    try:
        with peer() as works:
            answer(ready=True)
            for line in sys.stdin:
                try:
                    answer(value=works[line.strip()]())
                except Exception as error:  # whatever it is, the other side has to hear of it
                    answer(reason=f"{type(error).__name__}: {error}")
    except Exception as error:
        answer(reason=f"{type(error).__name__}: {error}")
    sys.stderr.flush()
    os._exit(0)  # libraries' own threads have nothing left to say, and some never end


def gib_per_s(byte_count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return byte_count / GIB / (time.perf_counter() - start)


def median_us(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e6
