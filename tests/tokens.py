"""Tokens for tests, and their entries for an access file, as an operator writes them (docs/security.md, 3)."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable


def mint_token(name: str, tenants: Iterable[str], rights: Iterable[str] = ()) -> tuple[str, str]:
    token = secrets.token_urlsafe(32)

    def quoted(texts: Iterable[str]) -> str:
        return "[" + ", ".join(_toml_text(text) for text in sorted(texts)) + "]"

    entry = (
        f'[[token]]\nname = {_toml_text(name)}\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
        f"tenants = {quoted(tenants)}\nrights = {quoted(rights)}\n"
    )
    return token, entry


def _toml_text(text: str) -> str:
    escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x20 or c in '"\\\x7f' else c for c in text)
    return f'"{escaped}"'
