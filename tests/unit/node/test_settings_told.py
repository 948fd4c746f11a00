"""Settings as an operator sees them: all of them, and no secret in any."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from kvstore.config import ClusterConfig, Config, ObjectConfig
from kvstore.node.settings_told import told

SECRET = b"s" * 32


def of(secret: bytes = SECRET, **options: str) -> str:
    config = Config(object=ObjectConfig(options=tuple(f"{name}={value}" for name, value in options.items())))
    return told(config, secret)["object.options"]


def test_every_setting_is_told() -> None:
    found = told(Config(), SECRET)
    config = Config()
    names = {
        f"{section.name}.{one.name}" for section in fields(config) for one in fields(getattr(config, section.name))
    }
    assert set(found) == names and all(found.values())
    assert (found["cluster.family_blocks"], found["file.enabled"], found["node.data_dir"]) == ("4", "true", "unset")
    paths = told(Config(cluster=ClusterConfig(secret_file=Path("/etc/secret"))), SECRET)
    assert paths["cluster.secret_file"] == "/etc/secret"


@pytest.mark.parametrize("name", ["aws_secret_access_key", "access_key_id", "token", "sas_key", "what_comes_next_year"])
def test_what_may_be_a_secret_is_told_by_an_id(name: str) -> None:
    shown = of(**{name: "sesame", "region": "here"})
    assert "sesame" not in shown and shown.startswith(f"{name}=hidden (") and shown.endswith(", region=here")
    assert of(**{name: "sesame", "region": "here"}) == shown != of(**{name: "other", "region": "here"})
    assert of(b"t" * 32, **{name: "sesame", "region": "here"}) != shown  # nobody else can try values against it


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:sesame@host:9000/p", "http://hidden ("),
        ("http://host/p?X-Signature=sesame", "http://host/p?hidden ("),
    ],
)
def test_urls_are_told_without_who_may(url: str, shown: str) -> None:
    assert of(endpoint=url).startswith(f"endpoint={shown}") and "sesame" not in of(endpoint=url)
    assert "sesame" not in told(Config(object=ObjectConfig(url=url)), SECRET)["object.url"]
