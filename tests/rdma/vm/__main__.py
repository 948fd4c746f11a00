"""`python -m tests.rdma.vm COMMAND...`: one command in a fresh machine with soft-RoCE.

Its output and exit status are the command's; 125 says that the machine failed, or that something is missing here.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import fields
from pathlib import Path

from tests.rdma.vm.bootfiles import Missing, boot_files
from tests.rdma.vm.machine import MachineFailed, Settings, run


def main() -> int:
    default = {field.name: field.default for field in fields(Settings)}
    parser = argparse.ArgumentParser(prog="python -m tests.rdma.vm", description=__doc__)
    parser.add_argument("--rails", type=int, default=default["rails"], metavar="N", help="cables (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="what is written here stays")
    parser.add_argument("--memory", type=int, default=default["memory_mib"], metavar="MIB", help="(%(default)s)")
    parser.add_argument("--cpus", type=int, default=default["cpus"], metavar="N", help="(%(default)s)")
    parser.add_argument("--limit", type=float, default=default["run_max_s"], metavar="S", help="(%(default)s)")
    parser.add_argument("--prepare", action="store_true", help="only make what the machine starts from")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND...")
    asked = parser.parse_args()
    if not asked.command and not asked.prepare:
        parser.error("a command, or --prepare")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    settings = Settings(memory_mib=asked.memory, cpus=asked.cpus, rails=asked.rails, run_max_s=asked.limit)
    try:
        boot = boot_files()
        if asked.prepare:
            print(f"rdma-vm: {boot.kernel.parent}")
            return 0
        return run(asked.command, boot, settings, out=asked.out).status
    except (Missing, MachineFailed) as error:
        print(f"rdma-vm: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
