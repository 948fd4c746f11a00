"""S3-FIFO: resists scans, knows no chains. Rules and parameters: native/core/policy_s3_fifo.cpp."""

from kvstore.eviction.base import NativePolicy


class S3Fifo(NativePolicy):
    """A small queue for newcomers, a main one for what was asked for again, and ghosts of what left the small one."""

    name = "s3_fifo"
