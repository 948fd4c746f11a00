"""LMCache's connector as it is. Only vLLM's search for Triton kernels is made to bear one of the modules that LMCache
imports: it asks every loaded object for vars(), and one there has a `__dict__` that is none.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_mp_connector import LMCacheMPConnector
from vllm.triton_utils import dispatcher

__all__ = ["LMCacheMPConnector"]


def _vars(value: Any) -> dict[str, Any]:
    found = value.__dict__
    return found if hasattr(found, "get") else {}


dispatcher.vars = _vars
