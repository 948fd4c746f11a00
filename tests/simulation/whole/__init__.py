"""A whole cluster in one process: real nodes and real clients but for sockets, mapped memory and time.

`python -m tests.simulation.whole SEED` replays one. See run.py for what must hold.
"""
