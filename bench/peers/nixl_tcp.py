"""NIXL over UCX's TCP."""

from __future__ import annotations

from bench.peers import nixl, work

if __name__ == "__main__":
    nixl.main("bench.peers.nixl_tcp", "tcp,self", work.OVER_TCP, pause_s=0.0)
