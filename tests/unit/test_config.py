"""Settings: what is allowed, who wins, and that every refusal names file, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore import config as settings
from kvstore.config import ADDRESS_VARIABLE, Config, LimitsConfig, Said, assemble, human, load
from kvstore.errors import Misconfigured


def test_no_settings_at_all_are_settings() -> None:
    assert load(environ={}) == Config()
    assert Config().memory.bytes is None


def test_a_file_then_variables_then_flags(tmp_path: Path) -> None:
    path = tmp_path / "kv.toml"
    path.write_text('[memory]\nbytes = "1GiB"\npolicy = "s3_fifo"\n[limits]\nkeys_per_call_max = 100\n')
    environ = {"KVSTORE_MEMORY_BYTES": "2GiB", "KVSTORE_NODE_NAME": "fromenv", "OTHER": "x"}
    flags = {"node.name": Said("--name", "fromflag")}
    config = load(path, flags, environ)
    assert config.memory.bytes == 2 << 30
    assert config.memory.policy == "s3_fifo"
    assert config.limits.keys_per_call_max == 100
    assert config.node.name == "fromflag"


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    path = tmp_path / "kv.toml"
    path.write_text('[node]\nname = "named"\n')
    assert load(environ={"KVSTORE_CONFIG": str(path)}).node.name == "named"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("memory.bytes", "much", "a size of"),
        ("memory.bytes", "12 parsecs", "a size of"),
        ("memory.bytes", 5, "a size of 256 KiB"),
        ("memory.bytes", True, "a size of"),
        ("memory.slab_bytes", "3MiB", "power of two"),
        ("memory.slab_bytes", "128MiB", "a size of"),
        ("memory.policy", "random", "leaf_lru, s3_fifo"),
        ("memory.bytes", "9" * 400 + ".5", "a size of"),
        ("memory.keep", "maybe", "true or false"),
        ("grpc.address", "127.0.0.1:65536", "a port is 0 to 65535"),
        ("metrics.address", "9464", "HOST:PORT"),
        ("node.name", "../x", "letters"),
        ("node.name", "", "letters"),
        ("node.socket", "a\0b", "a path"),
        ("limits.connections_max", 0, "1 to 65,536"),
        ("limits.connections_max", 1.5, "whole number"),
        ("limits.connections_max", "_", "whole number"),
        ("limits.connections_max", "9" * 5000, "whole number"),
        ("limits.hold_wait_ms_max", -1, "milliseconds"),
        ("security.trusted_uids", ["root"], "a list of numbers"),
        ("security.anonymous_tenants", 7, "a list of texts"),
        ("security.insecure", "perhaps", "true or false"),
    ],
)
def test_a_refusal_names_place_key_value_and_what_is_allowed(key: str, value: object, allowed: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        assemble({key: Said("kv.toml", value)})
    text = str(refused.value)
    assert text.startswith(f"kv.toml: {key} = {value!r}: must be ")
    assert allowed in text


@pytest.mark.parametrize("key", ["memory.byte", "memmory.bytes", "node", "node.", "cluster.secret"])
def test_what_nobody_reads_is_refused(key: str) -> None:
    with pytest.raises(Misconfigured, match="not a setting; allowed: "):
        assemble({key: Said("--set", "1")})


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "kv.toml"
    with pytest.raises(Misconfigured, match="No such file"):
        load(path, environ={})
    path.write_text("memory = [")
    with pytest.raises(Misconfigured, match="not TOML"):
        load(path, environ={})
    path.write_text("bytes = 3")
    with pytest.raises(Misconfigured, match=r"kv\.toml: bytes: not a section"):
        load(path, environ={})


def test_variables_nobody_reads_are_refused_but_those_of_kubernetes() -> None:
    with pytest.raises(Misconfigured, match="KVSTORE_MEMORY_BITES"):
        load(environ={"KVSTORE_MEMORY_BITES": "1GiB"})
    with pytest.raises(Misconfigured, match="KVSTORE_MEMRY_BYTES"):
        load(environ={"KVSTORE_MEMRY_BYTES": "1GiB"})
    pod = {
        "KVSTORE_SERVICE_HOST": "10.0.0.1",
        "KVSTORE_SERVICE_PORT": "7401",
        "KVSTORE_PORT": "tcp://10.0.0.1:7401",
        "KVSTORE_PORT_7401_TCP_ADDR": "10.0.0.1",
        "KVSTORE_NODE_SERVICE_HOST": "10.0.0.1",
    }
    assert load(environ=pod) == Config()


def test_the_address_of_store_admin_is_no_setting_of_the_node() -> None:
    """Both are typed in one shell."""
    assert load(environ={ADDRESS_VARIABLE: "unix:/run/kvstore.sock.grpc"}) == Config()


def test_lists_in_variables_are_separated_by_commas() -> None:
    config = load(environ={"KVSTORE_SECURITY_TRUSTED_UIDS": "1000, 1001", "KVSTORE_SECURITY_ANONYMOUS_TENANTS": "a"})
    assert config.security.trusted_uids == (1000, 1001)
    assert config.security.anonymous_tenants == ("a",)


def test_limits_that_do_not_go_together() -> None:
    with pytest.raises(Misconfigured, match=r"memory\.slab_bytes = 64 MiB: must be at most half of memory\.bytes"):
        assemble({"memory.bytes": Said("f", "64MiB"), "memory.slab_bytes": Said("f", "64MiB")})
    with pytest.raises(Misconfigured, match=r"limits\.keys_per_call_max = 1048576: at 32 bytes a key"):
        assemble({"limits.keys_per_call_max": Said("f", 1 << 20)})


def test_every_default_is_allowed() -> None:
    """A default that its own rule would refuse could not be written down in a file."""
    config = Config()
    for section in settings.SECTIONS:
        values = getattr(config, section)
        said = {
            f"{section}.{name}": Said("f", value)
            for name in values.__dataclass_fields__
            if (value := getattr(values, name)) is not None
        }
        assert getattr(assemble(said), section) == values


def test_sections_are_frozen() -> None:
    with pytest.raises(AttributeError):
        LimitsConfig().keys_per_call_max = 3  # type: ignore[misc]


def test_places(tmp_path: Path) -> None:
    config = assemble({"node.data_dir": Said("f", str(tmp_path))})
    assert settings.data_dir(config, {}) == tmp_path
    assert settings.socket_path(config, {}) == tmp_path / "kvstore.sock"
    assert settings.socket_path(config, {"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "kvstore.sock"
    long = assemble({"node.socket": Said("f", "/" + "x" * 120)})
    with pytest.raises(Misconfigured, match="at most 101 bytes"):
        settings.socket_path(long, {})


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (4096, "4 KiB"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB"), (1500, "1.5 KiB")]
)
def test_sizes_for_people(number: int, text: str) -> None:
    assert human(number) == text
