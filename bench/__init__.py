"""Measurements, each beside the machine's own limit on the same work in the same run: `python -m bench`."""
