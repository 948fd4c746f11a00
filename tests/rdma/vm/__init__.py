"""A throw-away QEMU machine with soft-RoCE, in which a command of this checkout runs."""
