"""Every setting is checked by name; what nobody reads is refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine_adapters.base.settings import AdapterSettings
from kvstore.errors import Misconfigured

ADDRESS = {"address": "unix:/run/kvstore.sock"}


def test_only_the_address_is_needed() -> None:
    settings = AdapterSettings.of(ADDRESS)
    assert (settings.load, settings.save, settings.tenant, settings.seal) == ("async", "all", "default", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "address: missing"),
        ({"address": "nowhere"}, "address: 'nowhere', must be unix:PATH or HOST:PORT"),
        ({**ADDRESS, "adress": 1}, "adress = 1: no such setting"),
        ({**ADDRESS, "load": "later"}, "load = 'later': must be one of async, layerwise, none"),
        ({**ADDRESS, "save": "some"}, "save = 'some': must be one of all, prompt, none"),
        ({**ADDRESS, "load_ms": "10"}, "load_ms = '10': must be a whole number"),
        ({**ADDRESS, "load_ms": True}, "load_ms = True: must be a whole number"),
        ({**ADDRESS, "load_ms": 0}, "load_ms = 0: must be 1 to 600000"),
        ({**ADDRESS, "save_share_max": 2}, "save_share_max = 2: must be 0.01 to 0.9"),
        ({**ADDRESS, "tls_authority": "a", "tls_key": "k"}, "tls.certificate and tls.private_key: both or neither"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured) as raised:
        AdapterSettings.of(given).seal  # noqa: B018 - looks at the files' names
    assert said in str(raised.value)


def test_what_an_adapter_does_not_read_is_no_setting_of_it() -> None:
    assert AdapterSettings.of({"address": "unix:/x"}, ("load_threads",)).load_threads == 2
    with pytest.raises(Misconfigured, match="load_threads = 3: no such setting"):
        AdapterSettings.of({"address": "unix:/x", "load_threads": 3}, ("load_threads",))
