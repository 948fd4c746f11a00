"""`make demo-vllm`: a prefill and a decode server of vLLM, the store between them, the proxy in front, real clients."""
