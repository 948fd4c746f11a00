"""First part: a prefill and a decode process share a node that is too small, so blocks pass through all its tiers."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from kvstore.demo.child import Child

from .conversation import Conversation, conversations
from .report import show, verdict
from .stage import Stage
from .turn import BLOCK_TOKENS, NEW_TOKENS, converse, worker_flags

__all__ = ["run"]

TIERS = {"memory": 1, "file": 2, "object": 3}


def poison(talk: Conversation, decode: Child, console: Console) -> list[str]:
    """A spoilt block must change the tokens when nobody verifies, and nothing when somebody does."""
    ids = talk.tokens[: len(talk.tokens) - NEW_TOKENS]
    reference = decode.ask(verb="alone", new=NEW_TOKENS, ids=ids, boundary=0)["tokens"]
    spoilt = decode.ask(verb="poison", new=NEW_TOKENS, ids=ids)
    changed = spoilt["unverified"] != reference
    kept = spoilt["verified"] == reference
    console.print(
        "One block was overwritten in the node's memory, as a stray write would do it; the last prompt again:\n"
        f"  verification off: {spoilt['unverified_held']} tokens came from the store, and the answer "
        f"{'changed' if changed else 'DID NOT CHANGE'}\n"
        f"  verification on:  {spoilt['verified_held']} tokens came from the store, the rest was computed, "
        f"and the answer {'is the same' if kept else 'DIFFERS'}\n",
        highlight=False,
        soft_wrap=True,
    )
    wrong = (
        [] if changed else ["a poisoned block did not change the tokens with verification off: the test has no teeth"]
    )
    if not kept:
        wrong.append("a poisoned block changed the tokens with verification on")
    if spoilt["verified_held"] >= spoilt["unverified_held"]:
        wrong.append("a poisoned block was not noticed with verification on")
    return wrong


def run(arguments: Namespace, console: Console, scratch: Path) -> list[str]:
    """What went wrong, in words."""
    longest = arguments.system_tokens + arguments.turns * (arguments.said_tokens + NEW_TOKENS)
    console.print(
        "A prefill process computes the KV cache of prompts and publishes it; a decode process fetches it and\n"
        "answers. They share nothing but a node of the store, which is so small that blocks leave its memory:\n"
        f"{arguments.memory} of memory, {arguments.files} of files, and a directory of objects.\n"
        f"{arguments.users} users share {arguments.system_tokens} system tokens and say something in "
        f"{arguments.turns} turns; prompts have up to {longest} tokens,\n"
        f"{BLOCK_TOKENS} a block. The model is a small Llama with seeded weights: nothing is downloaded.\n",
        highlight=False,
        soft_wrap=True,
    )
    with Stage(scratch) as stage:
        start = time.monotonic()
        # Everything is admitted to files, because the demo asks for everything again.
        node = stage.node(
            "node", arguments.memory, f"file.bytes={arguments.files}", "file.slab_bytes=8MiB", "file.admission=always"
        )
        flags = worker_flags(arguments.layers, longest)
        prefill, decode = (stage.worker(name, node.address, flags) for name in ("prefill", "decode"))
        prefill.answer(), decode.answer()
        up_s = time.monotonic() - start
        console.print(f"All three are up and warm after {up_s:.0f} s. This takes a minute or two.\n", highlight=False)
        talks = conversations(arguments.users, arguments.system_tokens, seed=7)
        rows = []
        with console.status("") as status:  # for people at a terminal
            for turn, talk in ((turn, talk) for turn in range(arguments.turns) for talk in talks):
                status.update(f"user {talk.user}, turn {turn + 1}")
                rows.append(converse(talk, arguments.said_tokens, prefill, decode, TIERS))
        show(rows, console)
        return verdict(rows) + poison(talks[-1], decode, console)
