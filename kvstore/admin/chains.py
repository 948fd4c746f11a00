"""Chains as they are named on a command line: a file of token ids, or keys in hex."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Final

import aiofiles

from kvstore.wire import store

TOKEN_FILE_BYTES_MAX: Final = 64 << 20
KEY_BYTES: Final = 32


async def read_tokens(path: Path) -> list[int]:
    """Token ids from a JSON list, or whole numbers separated by white space. ValueError names file and place."""
    try:
        async with aiofiles.open(path, "rb") as file:
            data = await file.read(TOKEN_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"--tokens {path}: {error.strerror}") from error
    if len(data) > TOKEN_FILE_BYTES_MAX:
        raise ValueError(f"--tokens {path}: more than {TOKEN_FILE_BYTES_MAX} bytes")
    return parse_tokens(data, str(path))


def parse_tokens(data: bytes, name: str) -> list[int]:
    try:
        text = data.decode()
        found = json.loads(text) if text.lstrip().startswith("[") else [int(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(f"--tokens {name}: neither a JSON list nor whole numbers: {error}") from error
    for index, token in enumerate(found):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < 1 << 32:
            raise ValueError(f"--tokens {name}: number {index}: {token!r} is no token id (0 to 4294967295)")
    return list(found)


def parse_keys(text: str) -> bytes:
    """Keys in hex, separated by commas, as one bytes object."""
    keys = []
    for index, word in enumerate(text.split(",")):
        digits = word.strip()
        if not re.fullmatch(f"[0-9a-fA-F]{{{2 * KEY_BYTES}}}", digits):
            raise ValueError(
                f"--keys: key {index}: {digits[:80]!r}, must be {2 * KEY_BYTES} hexadecimal digits "
                "(tables show the first 12 of a key, --json all)"
            )
        keys.append(bytes.fromhex(digits))
    return b"".join(keys)


def chain_message(tokens: Path | None, keys: str | None) -> store.Chain:
    """Exactly one of both must be given."""
    if (tokens is None) == (keys is None):
        raise ValueError("--tokens or --keys: one of them")
    if keys is not None:
        return store.Chain(keys=parse_keys(keys))
    assert tokens is not None
    return store.Chain(tokens=store.Tokens(ids=asyncio.run(read_tokens(tokens))))
