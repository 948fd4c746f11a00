"""Programs of tests/engines that are run by name, in another Python: what they import is there."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("name", ["models", "venvs", "pins", "upstream.run", "upstream.source", "upstream.stand_in"])
def test_it_imports(name: str) -> None:
    importlib.import_module(f"tests.engines.{name}")
