"""Starting, hearing and ending the machine of tests/rdma, with a stand-in for QEMU."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.rdma.vm.bootfiles import BootFiles
from tests.rdma.vm.machine import MachineFailed, Settings, run, script

# Finds the exchange folder and the output port in its arguments, as QEMU does. It leaves its own process id in `pid`.
STAND_IN = """#!/bin/sh
for each; do
  case $each in
    *id=exchange,*) exchange=${each#*path=}; exchange=${exchange%%,*} ;;
    file,id=said,path=*) port=${each#*path=} ;;
  esac
done
echo $$ >PID
echo "a line on the console" >$exchange/console
BODY
"""


@pytest.fixture
def boot(tmp_path: Path) -> BootFiles:
    (tmp_path / "initrd").write_bytes(b"rest")
    return BootFiles(tmp_path / "vmlinux", tmp_path / "initrd")


def qemu(tmp_path: Path, body: str) -> str:
    path = tmp_path / "qemu"
    path.write_text(STAND_IN.replace("BODY", body).replace("PID", str(tmp_path / "pid")))
    path.chmod(0o755)
    return str(path)


def gone(tmp_path: Path) -> bool:
    return not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_output_and_status_are_handed_on(tmp_path: Path, boot: BootFiles) -> None:
    body = "echo 2.5 >$exchange/started; echo one >$port; echo two >$port; echo 7 >$exchange/status"
    said: list[bytes] = []
    ended = run(["true"], boot, Settings(qemu=qemu(tmp_path, body)), say=said.append)
    assert (ended.status, ended.boot_s) == (7, 2.5)
    assert b"".join(said) == b"one\ntwo\n"


def test_a_folder_for_results_has_the_same_name_inside(tmp_path: Path, boot: BootFiles) -> None:
    out = tmp_path / "results"
    told = f'cp $exchange/out {tmp_path}/told; echo "$*" >{tmp_path}/arguments'
    body = f"{told}; echo 1 >$exchange/started; echo 0 >$exchange/status"
    run(["true"], boot, Settings(qemu=qemu(tmp_path, body)), out=out)
    assert (tmp_path / "told").read_text() == str(out)
    assert out.is_dir()
    arguments = (tmp_path / "arguments").read_text()
    assert f"id=out,path={out},security_model=none" in arguments
    assert "path=/,security_model=none,readonly=on" in arguments


@pytest.mark.parametrize(
    ("body", "settings", "why"),
    [
        ("exec sleep 60", {"boot_max_s": 2.0}, "not up after 2 s"),
        ("echo 1 >$exchange/started; exec sleep 60", {"boot_max_s": 2.0, "run_max_s": 3.0}, "its limit of 3 s"),
        ("echo cannot start >&2; exit 3", {}, "QEMU's exit status is 3"),
        ("echo 1 >$exchange/started", {}, "no result"),
    ],
)
def test_a_machine_that_fails(tmp_path: Path, boot: BootFiles, body: str, settings: dict[str, float], why: str) -> None:
    """It is ended, and the error has the end of its console."""
    with pytest.raises(MachineFailed, match=why) as failed:
        run(["true"], boot, Settings(qemu=qemu(tmp_path, body), **settings))
    assert "a line on the console" in str(failed.value)
    assert ("cannot start" in str(failed.value)) == ("cannot start" in body)
    assert gone(tmp_path)


def test_nothing_is_left_behind(tmp_path: Path, boot: BootFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the one who listens ends."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def say(some: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["true"], boot, Settings(qemu=qemu(tmp_path, "echo hello >$port; exec sleep 60")), say=say)
    assert gone(tmp_path)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_script_brings_environment_folder_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ODD", 'it\'s "odd"\nand long')
    text = script(["sh", "-c", 'printf "%s|" "$PWD" "$ODD" "$@"', "-", "two words", "$HOME"], rails=0)
    said = subprocess.run(["sh"], input=text, capture_output=True, text=True, check=True, env={}).stdout
    assert said == f'{tmp_path}|it\'s "odd"\nand long|two words|$HOME|'
    assert "rails.sh" not in text
    assert re.search(r"rails\.sh 2 \|\| exit", script(["true"], rails=2))
    assert shlex.split(script(["true"], rails=0).splitlines()[-1]) == ["exec", "true"]
    assert os.environ["PATH"] in text
