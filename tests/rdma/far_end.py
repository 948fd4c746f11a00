"""`python -m tests.rdma.far_end RAIL SIZE`: the far end of a connection, in a process of its own.

It says its card on standard output, joins the card that it is told on standard input, and from then on takes no part:
each further line asks for the digest of its memory. It ends with its input.
"""

from __future__ import annotations

import hashlib
import json
import sys

from tests.rdma.rails import Rail
from tests.rdma.verbs import End


def pattern(size: int) -> bytes:
    return hashlib.shake_128(b"far").digest(size)


def say(something: object) -> None:
    print(json.dumps(something), flush=True)


def main() -> None:
    rail, size = Rail(int(sys.argv[1])), int(sys.argv[2])
    end = End(rail, rail.far, size)
    end.content[:] = pattern(size)
    say(end.card())
    end.join(json.loads(sys.stdin.readline()))
    say("joined")
    for _ in sys.stdin:
        say(hashlib.sha256(end.content).hexdigest())
    end.close()


if __name__ == "__main__":
    main()
