"""What went wrong, as the contract tells it: a field, a reason, a limit. Pure; knows neither gRPC nor frames.

Texts of refusals begin with the name of the field and a colon, everywhere in the project; so the field can be told
apart here, once, for both doors.
"""

from __future__ import annotations

import re
from typing import Final

from kvstore.wire import store

DETAIL_KEY: Final = "kvstore-error-bin"  # in the trailing metadata
_FIELD: Final = re.compile(r"([a-z_][\w.\[\]]{0,127})(?:: | (?=must|has|have|is|are|cut))", re.ASCII)
REASON_BYTES_MAX: Final = 1024


def detail(text: str, *, limit_name: str = "", limit: int = 0) -> store.ErrorDetail:
    """From a refusal's text. `limit_name` stands in where the text names no field."""
    found = _FIELD.match(text)
    field, reason = (found[1], text[found.end() :]) if found else (limit_name, text)
    cut = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
    return store.ErrorDetail(field=field, reason=cut, limit=limit)


def text_of(told: store.ErrorDetail) -> str:
    """The refusal's text again."""
    return f"{told.field}: {told.reason}" if told.field else told.reason
