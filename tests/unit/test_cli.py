"""The command line: what stands for which setting, and how refusals are told."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kvstore import __version__
from kvstore.admin.cli import main as store_admin
from kvstore.cli import FLAGS, main, read_settings
from kvstore.config import SECTIONS
from kvstore.errors import Misconfigured

NONE: dict[str, str | None] = dict.fromkeys(FLAGS)


def test_flags_go_over_set_and_file(tmp_path: Path) -> None:
    path = tmp_path / "kv.toml"
    path.write_text('[memory]\nbytes = "1GiB"\npolicy = "s3_fifo"\n')
    config = read_settings(path, ("memory.bytes=2GiB", "node.name=x"), False, {**NONE, "memory": "3GiB"})
    assert (config.memory.bytes, config.memory.policy, config.node.name) == (3 << 30, "s3_fifo", "x")
    assert read_settings(path, (), True, NONE).security.insecure


def test_every_flag_stands_for_a_setting() -> None:
    for key, _, _ in FLAGS.values():
        section, _, name = key.partition(".")
        assert section in SECTIONS
        assert read_settings(None, (), False, NONE) is not None
        with pytest.raises(Misconfigured, match="not a setting"):
            read_settings(None, (f"{section}.{name}_=1",), False, NONE)


def test_refusals_name_the_flag() -> None:
    with pytest.raises(Misconfigured, match=r"--memory: memory\.bytes = 'x'"):
        read_settings(None, (), False, {**NONE, "memory": "x"})
    with pytest.raises(Misconfigured, match="--set memory"):
        read_settings(None, ("memory",), False, NONE)


def test_a_command_that_is_refused_ends_with_two_and_one_line() -> None:
    done = CliRunner().invoke(main, ["node", "--set", "memory.policy=mru"])
    assert done.exit_code == 2
    assert done.stderr == "kvstore node: --set: memory.policy = 'mru': must be one of leaf_lru, s3_fifo\n"


def test_doctor_tells_programs(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--json", "--data-dir", str(tmp_path)])
    findings = json.loads(done.stdout)
    assert {"subject", "state", "found", "advice"} == set(findings[0])
    assert done.exit_code == (1 if any(finding["state"] == "bad" for finding in findings) else 0)


def test_version_is_that_of_the_project() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'version = "{__version__}"' in text


@pytest.mark.parametrize("program", [main, store_admin])
def test_version_is_told_from_a_source_tree_too(program: click.Group) -> None:
    """Where no package is installed whose version could be asked for."""
    done = CliRunner().invoke(program, ["--version"])
    assert done.exit_code == 0, done.exception
    assert __version__ in done.stdout
