"""What the sync and the async face share because none of it waits: what a client and a namespace are told and tell."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final

from kvstore import identity
from kvstore.client.buffers import Registry
from kvstore.client.calls import positive
from kvstore.client.space import Space, parent_of
from kvstore.client.steps import Keys

__all__ = ["DEADLINE_S", "ClientFace", "NamespaceFace", "Registration"]

DEADLINE_S: Final = 30.0


class Registration:
    """Buffers that were looked at; ended by close or `with`."""

    def __init__(self, registry: Registry, buffers: Sequence[object]) -> None:
        self._registry = registry
        self._buffers: tuple[object, ...] = tuple(buffers)

    def close(self) -> None:
        buffers, self._buffers = self._buffers, ()
        self._registry.remove(buffers)

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ClientFace:
    """`deadline_s`: of every call that is not given its own."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = positive("deadline_s", deadline_s)
        self._registry = Registry()

    def register(self, buffers: Sequence[object]) -> Registration:
        """Looks at buffers once. Calls that name the same objects later need not; they must not be moved or resized
        until the registration is closed.
        """
        self._registry.add(buffers)
        return Registration(self._registry, buffers)


class NamespaceFace:
    """An opened namespace, as far as it is known without asking the node again."""

    def __init__(self, space: Space, deadline_s: float) -> None:
        self._space = space
        self._deadline_s = deadline_s

    @property
    def digest(self) -> bytes:
        return self._space.known.digest

    @property
    def generation(self) -> int:
        """How often it was cleared."""
        return self._space.known.generation

    @property
    def block_tokens(self) -> int:
        return self._space.block_tokens

    @property
    def shard_bytes(self) -> tuple[int, ...]:
        return self._space.shard_bytes

    def chain(
        self, token_ids: identity.Tokens, *, extras: Sequence[identity.Extra] = (), parent: object = None
    ) -> Keys:
        """Keys of all full blocks, (n, 32) uint8. With `parent`, of tokens that follow the block of that key. A chain
        made before a clear finds nothing after it. Arithmetic in the calling thread, in both faces.
        """
        return self._space.chain(token_ids, extras, parent_of(parent) or None)

    def chain_of_hashes(self, hashes: Sequence[bytes], *, parent: object = None) -> Keys:
        """The same from an engine's own hashes of its full blocks, 1 to 64 bytes each, each of the whole prefix with
        its extras: they stand in for tokens.
        """
        return self._space.chain_of_hashes(hashes, parent_of(parent) or None)
