"""House rules as tests: sizes, who may read the environment, who imports native code, words not said."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kvstore", "transfer", "engine_adapters")
FILE_LINES_MAX = 500  # a longer one must be argued for in LONG_FILES
FUNCTION_LINES_MAX = 70
LONG_FILES: dict[str, str] = {}


def python_files() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in found if "_pb2" not in path.name]


def native_files() -> list[Path]:
    return sorted(path for suffix in ("cpp", "hpp") for path in (ROOT / "native").rglob(f"*.{suffix}"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_stay_small() -> None:
    long = {
        relative(path): count
        for path in python_files() + native_files()
        if (count := len(path.read_text().splitlines())) > FILE_LINES_MAX and relative(path) not in LONG_FILES
    }
    assert not long, f"split these, or argue in LONG_FILES: {long}"


def test_functions_stay_short() -> None:
    long: list[str] = []
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{relative(path)}:{node.lineno} {node.name} {lines}")
    assert not long, long


def test_only_config_reads_the_environment() -> None:
    readers = [
        relative(path)
        for path in python_files()
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text()) and path.name != "config.py"
    ]
    # A demo starts other processes and hands them the environment it has.
    assert not [path for path in readers if "/demo" not in path], readers


def test_one_module_a_package_imports_native() -> None:
    importers = {
        relative(path)
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and any(alias.name == "_native" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_native"))
        or (isinstance(node, ast.Import) and any(alias.name.endswith("._native") for alias in node.names))
    }
    assert importers <= {"kvstore/native.py", "transfer/native.py"}, importers


def test_nothing_untrusted_is_executed() -> None:
    banned = re.compile(r"\b(pickle|marshal|shelve)\b|(?<![.\w])(eval|exec)\(")
    found = [relative(path) for path in python_files() if banned.search(path.read_text())]
    assert not found, found


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("dependencies = [", 1)[1].split("]", 1)[0]
    bare = [line for line in block.splitlines() if line.strip().startswith('"') and "#" not in line]
    assert not bare, bare


WORDS_NOT_SAID = {
    r"\bchunk": "block",
    r"\bmaster\b": "node or directory",
    r"\bref_?cnt\b": "lease, view or hold",
    r"\boffload": "put, demote",
}


@pytest.mark.parametrize("word", sorted(WORDS_NOT_SAID))
def test_words_not_said(word: str) -> None:
    """Names of ours only: comments may speak of other projects' words, and an adapter of its engine's."""
    found: list[str] = []
    for path in python_files():
        if "engine_adapters" in relative(path):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword):
                continue  # somebody else's word
            name = getattr(node, "name", None) or getattr(node, "arg", None) or getattr(node, "id", None)
            if isinstance(name, str) and re.search(word, name, re.IGNORECASE):
                found.append(f"{relative(path)}: {name}: say {WORDS_NOT_SAID[word]}")
    assert not found, found


def test_documents_that_must_exist() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "STYLE.md", "CHANGELOG.md", "LICENSE", "docs/glossary.md"):
        assert (ROOT / name).is_file(), name
