"""Runs the demo. Exit code 1 if an answer differs, or if decode computed what prefill had."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from rich.console import Console

from .report import Row, show, verdict
from .stage import Engine, Stage, environment
from .talk import Heard, Talk, ask

BLOCK_TOKENS = 128  # vLLM's own on a CPU
KV_BYTES = 24 << 10  # of a token, of this model
MAKE_MAX_S = 300.0
ROOT = Path(__file__).resolve().parents[3]


def model(python: Path, folder: Path) -> Path:
    """Made by the engine's Python, which has what it takes; kept for the next time."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "engine_adapters.pd.demo.model", str(folder)]
    made = subprocess.run(
        command, env=environment(python), capture_output=True, text=True, timeout=MAKE_MAX_S, check=False
    )
    if made.returncode:
        raise SystemExit(f"the model could not be made: {made.stderr[-2000:]}")
    return Path(made.stdout.splitlines()[-1])


class Show:
    """The four questions of each talk, first without the store, then with it."""

    def __init__(self, lengths: list[int], said: int, new: int, decode: Engine) -> None:
        self.talks = [Talk().user(length, f"talk {length}") for length in lengths]
        self._said, self._new, self._decode = said, new, decode
        self.cold: list[Heard] = []
        self.warm: list[Heard] = []
        self.nexts: list[tuple[Talk, Heard]] = []

    def alone(self) -> None:
        """At decode, with a salt that nobody shares: it finds only what it has computed for this itself."""
        for number, talk in enumerate(self.talks):
            first = ask(self._decode.url, talk, self._new, salt="alone")
            longer = talk.assistant(first.text).user(self._said, f"next {number}")
            self.cold.append(first)
            self.warm.append(ask(self._decode.url, talk, self._new, salt="alone"))
            self.nexts.append((longer, ask(self._decode.url, longer, self._new, salt="alone")))

    def through(self, proxy: str) -> list[Row]:
        rows = []
        for number, talk in enumerate(self.talks):
            rows.append(Row("first", ask(proxy, talk, self._new), self.cold[number], full=True))
            rows.append(Row("again", ask(proxy, talk, self._new), self.warm[number], full=False))
            longer, alone = self.nexts[number]
            rows.append(Row("next turn", ask(proxy, longer, self._new), alone, full=False))
        return rows

    def restarted(self, proxy: str) -> list[Row]:
        return [
            Row("restarted", ask(proxy, talk, self._new), cold, full=True)
            for talk, cold in zip(self.talks, self.cold, strict=True)
        ]


def play(stage: Stage, lengths: list[int], said: int, new: int, console: Console) -> list[Row]:
    tokens = sum(lengths) + len(lengths) * (said + 2 * new)
    length = -(-(max(lengths) + said + 3 * new) // BLOCK_TOKENS) * BLOCK_TOKENS
    start = time.monotonic()
    # Salted and not, and as much again so that nothing is pushed out.
    cache_bytes = 4 * tokens * KV_BYTES + (64 << 20)
    stage.node(str(cache_bytes))
    prefill, decode = (stage.engine(name, length=length, cache_bytes=cache_bytes) for name in ("prefill", "decode"))
    for engine in (prefill, decode):  # they start side by side
        engine.ready()
    proxy = stage.proxy(prefill, decode)
    for number, engine in enumerate((prefill, decode)):
        ask(engine.url, Talk().user(BLOCK_TOKENS, "warm"), 2, salt=f"warm{number}")
    console.print(f"All four are up after {time.monotonic() - start:.0f} s.\n", highlight=False)
    show_of = Show(lengths, said, new, decode)
    with console.status("without the store"):
        show_of.alone()
    with console.status("with the store"):
        rows = show_of.through(proxy)
    with console.status("the decode server starts again, and has forgotten everything"):
        decode.stop()
        decode.start()
        decode.ready()
        ask(decode.url, Talk().user(BLOCK_TOKENS, "warm"), 2, salt="again")
        wait_for(proxy)
        rows += show_of.restarted(proxy)
    return rows


def wait_for(proxy: str) -> None:
    """Until it has seen that decode is back."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            with urlopen(f"{proxy}/health", timeout=5):
                return
        except HTTPError:
            time.sleep(0.1)
    raise SystemExit("the proxy does not see the decode server")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo-vllm", description=__doc__)
    parser.add_argument("--python", type=Path, default=ROOT / "build/engines/vllm/bin/python", help="that has vLLM")
    parser.add_argument("--models", type=Path, default=ROOT / "build/engines/models", help="where models are kept")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2000, 3000, 4000], help="of each talk's first prompt")
    parser.add_argument("--said-tokens", type=int, default=300, help="of the next turn")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="one short talk")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped
    lengths, said = ([700], 100) if arguments.quick else (arguments.tokens, arguments.said_tokens)
    console = Console()
    console.print(
        "Two vLLM servers that share nothing but a node of the store, and the proxy in front of them: a prompt goes\n"
        "to prefill first, which computes it and saves its blocks, then to decode, which reads them and answers.\n"
        f"Prompts of {', '.join(map(str, lengths))} tokens, {BLOCK_TOKENS} a block; clients stream a chat over HTTP."
        " The model is a small Llama\nwith seeded weights: nothing is downloaded. This takes a few minutes.\n",
        highlight=False,
        soft_wrap=True,
    )
    made = model(arguments.python, arguments.models)
    with (
        tempfile.TemporaryDirectory(prefix="kvstore-demo-") as scratch,
        Stage(Path(scratch), arguments.python, made) as stage,
    ):
        rows = play(stage, lengths, said, arguments.new_tokens, console)
    show(rows, console)
    console.print(
        "\nwithout: the decode server alone. first, restarted: it has nothing cached; again, next turn: what it has\n"
        "computed itself, as any vLLM has. with: through the proxy; what is not in prefill is decode's: reading the\n"
        f"blocks, the rest of the prompt, the first token. Both servers share the {os.cpu_count()} cores here, half of"
        " them each, so a\nfirst answer is no sooner than from one server; what it buys is that decode's time goes to"
        " decoding.\n",
        highlight=False,
        soft_wrap=True,
    )
    wrong = verdict(rows, BLOCK_TOKENS)
    for line in wrong:
        console.print(f"[bold red]FAILED:[/] {line}")
    if not wrong:
        console.print("[bold green]GOOD: the tokens are the same with and without the store[/]")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
