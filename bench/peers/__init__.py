"""Other stores, each in a process and a venv of its own, measured on the same work as ours, in turns with ours.

`install` makes the venv, `process` is our side of a peer, `serve` is its own; `lmcache`, `mooncake` and `dynamo` run
inside the venv, with none of our packages.
"""
