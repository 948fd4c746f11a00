"""Runs the demo. Exit code 1 if any token differs, or if a poisoned block goes unnoticed."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from kvstore.demo.child import Child

from .conversation import Conversation, conversations
from .report import Row, show, verdict
from .stage import Stage

BLOCK_TOKENS = 64
NEW_TOKENS = 24


def converse(talk: Conversation, said: int, prefill: Child, decode: Child) -> Row:
    """One turn: prefill publishes, decode fetches and generates, and decode does it again alone for the comparison."""
    ids = talk.say(said)
    common = {"ids": ids, "session": talk.user + 1, "turn": talk.turn}
    filled = prefill.ask(verb="prefill", **common)
    with_store = decode.ask(verb="decode", new=NEW_TOKENS, **common)
    alone = decode.ask(verb="alone", new=NEW_TOKENS, ids=ids, boundary=with_store["held"])
    talk.answer(with_store["tokens"])
    apart = max(abs(a - b) for a, b in zip(with_store["logits"], alone["logits"], strict=True))
    return Row(
        user=talk.user,
        turn=talk.turn,
        prompt=len(ids),
        blocks=(len(ids) - 1) // BLOCK_TOKENS,
        held=with_store["held"],
        tiers=with_store["tiers"],
        prefill_tiers=filled["tiers"],
        fetch_s=with_store["fetch_s"],
        with_s=with_store["ttft_s"],
        without_s=alone["ttft_s"],
        same_tokens=with_store["tokens"] == alone["tokens"],
        logits_apart=apart,
    )


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--users", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--system-tokens", type=int, default=1536)
    parser.add_argument("--said-tokens", type=int, default=640, help="a user says in a turn")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--memory", default="80MiB", help="of the node: one prompt fits, all do not")
    parser.add_argument("--files", default="32MiB", help="of the node's file tier, for the same reason")
    arguments = parser.parse_args()
    console = Console()
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
    with tempfile.TemporaryDirectory(prefix="kvstore-demo-") as scratch, Stage(Path(scratch)) as stage:
        start = time.monotonic()
        stage.node(arguments.memory, arguments.files)
        flags = ["--layers", str(arguments.layers), "--block-tokens", str(BLOCK_TOKENS), "--warm-tokens", str(longest)]
        prefill, decode = stage.worker("prefill", flags), stage.worker("decode", flags)
        prefill.answer(), decode.answer()
        up_s = time.monotonic() - start
        console.print(f"All three are up and warm after {up_s:.0f} s. This takes a minute or two.\n", highlight=False)
        talks = conversations(arguments.users, arguments.system_tokens, seed=7)
        rows = []
        with console.status("") as status:  # for people at a terminal
            for turn, talk in ((turn, talk) for turn in range(arguments.turns) for talk in talks):
                status.update(f"user {talk.user}, turn {turn + 1}")
                rows.append(converse(talk, arguments.said_tokens, prefill, decode))
        show(rows, console)
        wrong = verdict(rows) + poison(talks[-1], decode, console)
    for line in wrong:
        console.print(f"[bold red]FAILED:[/] {line}")
    if not wrong:
        console.print("[bold green]GOOD: the tokens are the same with and without the store, and a lie was caught[/]")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
