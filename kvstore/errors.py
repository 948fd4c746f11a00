"""What can go wrong, by what the caller can do about it. A miss is never an error: it is a shorter number.

What the caller itself got wrong is a `ValueError` or `TypeError` that names the argument.
"""

__all__ = ["Corrupted", "KvStoreError", "Misconfigured", "NotJoined", "Rejected", "Unavailable"]


class KvStoreError(Exception):
    """Everything that the store raises of its own; the message is one sentence for a person."""


class Unavailable(KvStoreError):
    """A node, peer or bucket cannot be reached or did not answer in time. Go on without the store; ask again later."""


class Rejected(KvStoreError):
    """A limit was reached, or the caller may not do this. Ask for less, or for something else.

    `limit` is the limit's name as docs and configuration write it ("keys_per_call_max"); "" where none was reached.
    """

    def __init__(self, message: str, *, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class Corrupted(KvStoreError):
    """Bytes did not verify; they are dropped and counted already. Only verifying commands raise it: a get just ends."""


class Poisoned(KvStoreError):
    """A transfer did not end in time, and something may still touch memory that was given to a call. What was to be
    written must be neither reused nor freed, what was to be read must keep its bytes, until this process ends.
    """


class Misconfigured(KvStoreError):
    """Refused at start. The message names the file, the key, the value and what is allowed."""


class NotJoined(Misconfigured):
    """Ended at start, since nobody answered whom it must ask first. Another start may find them."""
