"""The store as a KV connector of vLLM. One flag:

vllm serve MODEL --kv-transfer-config '{"kv_connector": "KVStoreConnector",
  "kv_connector_module_path": "engine_adapters.vllm", "kv_role": "kv_both",
  "kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"address": "unix:/run/kvstore.sock"}}'
"""

from engine_adapters.vllm.connector import KVStoreConnector

__all__ = ["KVStoreConnector"]
