"""A node's settings as texts that an operator may see. Pure.

Paths of secrets are told, secrets are not: what may be one is told by an id that tells two of them apart, so that nodes
which have different ones are found, and that says nothing of it to whoever has not the cluster's secret.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import fields
from typing import Final

from kvstore.config import Config

__all__ = ["told"]

# What may be told of object.options: the names of the others, and an id. Whatever a provider adds is hidden so.
PLAIN_OPTIONS: Final = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "aws_", "google_", "azure_")
    for name in (
        *("endpoint", "endpoint_url", "region", "default_region", "bucket", "bucket_name"),
        *("virtual_hosted_style_request", "allow_http", "skip_signature", "unsigned_payload", "imdsv1_fallback"),
        *("conditional_put", "checksum_algorithm", "container_name", "account_name", "use_emulator"),
    )
)
# Of a URL: a user and a password, and what stands behind a question mark, such as a signature.
PRIVATE: Final = re.compile(r"(?<=//)[^/@\s]*(?=@)|(?<=\?).+")


def told(config: Config, secret: bytes) -> dict[str, str]:
    """By "section.key". What nobody has said, and is decided at the start, is "unset"."""
    out: dict[str, str] = {}
    for section in fields(config):
        values = getattr(config, section.name)
        for one in fields(values):
            name = f"{section.name}.{one.name}"
            out[name] = _text(name, getattr(values, one.name), secret)
    return out


def _text(name: str, value: object, secret: bytes) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        shown = [_option(one, secret) for one in value] if name == "object.options" else [str(one) for one in value]
        return ", ".join(shown) or "none"
    return _public(str(value), secret)


def _option(option: str, secret: bytes) -> str:
    name, _, value = option.partition("=")
    if name.lower() in PLAIN_OPTIONS:
        return _public(option, secret)
    return f"{name}={_hidden(value, secret)}"


def _public(text: str, secret: bytes) -> str:
    return PRIVATE.sub(lambda found: _hidden(found.group(), secret), text)


def _hidden(value: str, secret: bytes) -> str:
    return f"hidden ({hmac.digest(secret, b'kvstore setting 1' + value.encode(), 'sha256')[:4].hex()})"
