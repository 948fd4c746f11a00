"""What is allowed for one setting: readers that turn what somebody wrote into a value, or raise ValueError saying what
would be allowed. Pure; config.py says which setting has which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

GIB: Final = 1 << 30
MIB: Final = 1 << 20

WILDCARDS: Final = frozenset({"0.0.0.0", "[::]", "*"})  # noqa: S104 - where one listens, and nobody connects to

Read = Callable[[object], object]  # raises ValueError saying what is allowed

_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}
_UNITS_BY_LOWER: Final = {unit.lower(): factor for unit, factor in _UNITS.items()}


def human(number: int) -> str:
    """A size for people, exact where it is whole in its unit."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = _UNITS[unit]
        if number >= factor:
            return f"{number // factor} {unit}" if number % factor == 0 else f"{number / factor:.1f} {unit}"
    return f"{number} B"


def size(least: int, most: int = 1 << 50) -> Read:
    allowed = f"a size of {human(least)} to {human(most)}, in bytes or such as 512MiB"

    def read(value: object) -> object:
        if isinstance(value, str):
            found = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)\s*", value)
            factor = _UNITS_BY_LOWER.get(found[2].lower()) if found else None
            if found is None or factor is None:
                raise ValueError(allowed)
            value = int(float(found[1]) * factor) if "." in found[1] else int(found[1]) * factor
        return _whole(value, least, most, allowed)

    return read


def count(least: int, most: int, unit: str = "") -> Read:
    allowed = f"a whole number of {least:,} to {most:,}{' ' if unit else ''}{unit}"

    def read(value: object) -> object:
        if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,20}(?:_\d{1,20}){0,6}\s*", value):
            value = int(value)
        return _whole(value, least, most, allowed)

    return read


def _whole(value: object, least: int, most: int, allowed: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(allowed)
    return value


def one_of(names: Sequence[str]) -> Read:
    def read(value: object) -> object:
        if value not in names:
            raise ValueError("one of " + ", ".join(names))
        return value

    return read


def matching(pattern: str, allowed: str) -> Read:
    def read(value: object) -> object:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(allowed)
        return value

    return read


def address(value: object) -> object:
    """HOST:PORT, or none."""
    found = re.fullmatch(r"(?:\[[^\s\[\]]+\]|[^\s\[\]]+):(\d{1,5})", value) if isinstance(value, str) else None
    if value != "none" and (found is None or int(found[1]) > 65_535):
        raise ValueError("HOST:PORT, or none; a port is 0 to 65535")
    return value


def one_address(value: object) -> object:
    """HOST:PORT that somebody can connect to."""
    allowed = "HOST:PORT that other machines can connect to: no wildcard, a port of 1 to 65535"
    try:
        address(value)
    except ValueError:
        raise ValueError(allowed) from None
    assert isinstance(value, str)
    host, _, port = value.rpartition(":")
    if value == "none" or int(port) == 0 or host in WILDCARDS:
        raise ValueError(allowed)
    return value


def zmq_address(value: object) -> object:
    """tcp://HOST:PORT or ipc://PATH as ZeroMQ binds them, or none."""
    allowed = "tcp://HOST:PORT, ipc:///PATH or none; a port is 0 to 65535"
    if value == "none" or (isinstance(value, str) and re.fullmatch(r"ipc:///\S{1,100}", value)):
        return value
    if not isinstance(value, str) or not value.startswith("tcp://"):
        raise ValueError(allowed)
    try:
        if address(value.removeprefix("tcp://")) == "none":
            raise ValueError(allowed)
    except ValueError:
        raise ValueError(allowed) from None
    return value


def power_of_two(inner: Read) -> Read:
    def read(value: object) -> object:
        number = inner(value)
        assert isinstance(number, int)
        if number & (number - 1):
            raise ValueError("a power of two, such as 64MiB")
        return number

    return read


def multiple_of(step: int, inner: Read) -> Read:
    def read(value: object) -> object:
        number = inner(value)
        assert isinstance(number, int)
        if number % step:
            raise ValueError(f"a multiple of {human(step)}")
        return number

    return read


def boolean(value: object) -> object:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, str):
        value = words.get(value.strip().lower())
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def a_path(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("a path")
    return Path(value).expanduser()


def a_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def tuple_of(inner: Read, allowed: str) -> Read:
    def read(value: object) -> object:
        if isinstance(value, str):
            value = [item.strip() for item in value.split(",") if item.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError(allowed)
        try:
            return tuple(inner(item) for item in value)
        except ValueError as error:
            raise ValueError(f"{allowed}, each {error}") from None

    return read
