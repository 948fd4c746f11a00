"""Pure models of the store's rules: no clock, randomness or I/O. Slow and plain, so that they are obviously right.

The native core is held against these by `tests/model`; the simulation runs on them.
"""
