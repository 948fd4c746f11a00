"""The container file, as far as it can be read without a builder: what it copies is what a wheel is made of, what it
installs is what the wheel has, and what it runs is a command of ours.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import tomllib
from pathlib import Path

from tests.deploy.shipped import DEPLOY, ROOT, parsed, port_of

FILE = DEPLOY / "container/Containerfile"
KNOWN = {
    "FROM",
    "RUN",
    "WORKDIR",
    "COPY",
    "ENV",
    "USER",
    "EXPOSE",
    "VOLUME",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}


def steps() -> list[tuple[str, str]]:
    """Instructions and what they are told, of all stages."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def told(instruction: str) -> list[str]:
    return [rest for name, rest in steps() if name == instruction]


def copied() -> list[str]:
    """From the source tree."""
    words = [rest.split() for rest in told("COPY") if not rest.startswith("--from")]
    return [source for row in words for source in row[:-1]]


def test_every_instruction_is_one() -> None:
    assert {name for name, _ in steps()} <= KNOWN
    assert steps()[0][0] == "FROM"


def test_what_it_copies_is_what_a_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["scikit-build"]
    needed = {
        "pyproject.toml",
        "LICENSE",
        project["project"]["readme"],
        build["cmake"]["source-dir"],
        *build["wheel"]["packages"],
    }
    assert set(copied()) == needed
    assert all((ROOT / one).exists() for one in copied())
    # The native build looks at nothing outside of its folder but the two packages' type stubs.
    outside = set(re.findall(r"\.\./([\w.-]+)", (ROOT / "native/CMakeLists.txt").read_text()))
    assert outside <= set(copied())


def test_nothing_that_was_built_here_gets_in() -> None:
    lines = [one for one in Path(f"{FILE}.dockerignore").read_text().splitlines() if one and not one.startswith("#")]
    assert lines[0] == "*"
    assert {one.removeprefix("!") for one in lines if one.startswith("!")} == set(copied())
    left_out = [one.removeprefix("**/") for one in lines[1:] if not one.startswith("!")]
    ignored = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard", *copied()],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    got_in = [
        path
        for path in ignored
        if not any(fnmatch.fnmatch(part, pattern) for part in Path(path).parts for pattern in left_out)
    ]
    assert not got_in


def test_what_it_runs_is_ours() -> None:
    (entry,), (command,), (health,) = told("ENTRYPOINT"), told("CMD"), told("HEALTHCHECK")
    parsed([*json.loads(entry), *json.loads(command)])
    assert parsed(json.loads(health.partition("CMD ")[2]))["nodes"] == ("self",)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {json.loads(entry)[0], json.loads(health.partition("CMD ")[2])[0]} <= set(scripts)


def test_it_runs_as_nobody_special_and_says_its_ports() -> None:
    assert told("USER") == ["10400:10400"] and "--uid 10400 --gid 10400" in FILE.read_text()
    (ports,) = told("EXPOSE")
    assert ports.split() == ["7400", "7401", "7402", "9464"]
    assert port_of("127.0.0.1:7400") == 7400


def test_both_stages_are_of_one_release() -> None:
    """pyverbs and libibverbs must be: so Python is the distribution's, and the link is to its version."""
    images = [rest.split()[0] for rest in told("FROM")]
    assert len(images) == 2 and len(set(images)) == 1 and images[0].endswith("debian:bookworm-slim")
    assert "python3.11/site-packages/pyverbs" in FILE.read_text()
