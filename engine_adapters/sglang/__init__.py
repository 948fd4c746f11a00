"""The store as a storage backend of SGLang's HiCache. One flag:

python -m sglang.launch_server --model-path MODEL --page-size 64 --enable-hierarchical-cache
  --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{"backend_name": "kvstore",
  "module_path": "engine_adapters.sglang", "class_name": "KVStoreBackend", "interface_v1": 1,
  "hicache_storage_pass_prefix_keys": true, "address": "unix:/run/kvstore.sock"}'
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine_adapters.sglang.backend import KVStoreBackend

__all__ = ["KVStoreBackend"]


def __getattr__(name: str) -> object:
    """The engine is imported when its class is asked for: the other modules here do without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from engine_adapters.sglang.backend import KVStoreBackend

    return KVStoreBackend
