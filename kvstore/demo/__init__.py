"""`kvstore demo`: synthetic KV through a real node, written by one process and read by another. Needs no torch."""
