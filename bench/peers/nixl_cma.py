"""NIXL over UCX's cross-memory attach: the reader's kernel copies out of the owner's memory."""

from __future__ import annotations

from bench.peers import nixl, work

if __name__ == "__main__":
    nixl.main("bench.peers.nixl_cma", "cma,posix,sysv,self,tcp", work.ON_ONE_HOST, pause_s=0.000_2)
