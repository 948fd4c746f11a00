"""Prefill and decode apart: what stands between clients and an engine's servers of both kinds."""
