"""Weights are named by their bytes, wherever they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from engine_adapters.base.weights import WeightsUnknown, name_of, revision_of, weights_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    rng = np.random.default_rng(3)
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (made / name).write_bytes(rng.bytes(1 << 20))
    (made / "config.json").write_text("{}")
    return made


def test_a_copy_elsewhere_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    digest = weights_digest(folder)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("other")
    assert weights_digest(tmp_path / "copy") == digest
    assert len(digest) == 32


@pytest.mark.parametrize("place", [0, 70_000, (1 << 20) - 1])
def test_weights_trained_further_have_another(folder: Path, place: int) -> None:
    """Training moves every number a little; a sample sees it wherever it looks."""
    before = weights_digest(folder)
    file = folder / "model-2.safetensors"
    data = bytearray(file.read_bytes())
    for at in range(place % 3, len(data), 3):
        data[at] ^= 1
    file.write_bytes(data)
    assert weights_digest(folder) != before


def test_a_file_more_a_file_less_and_another_name_are_other_weights(folder: Path) -> None:
    digests = {weights_digest(folder)}
    (folder / "model-1.safetensors").rename(folder / "model-0.safetensors")
    digests.add(weights_digest(folder))
    (folder / "model-0.safetensors").unlink()
    digests.add(weights_digest(folder))
    (folder / "model-2.safetensors").write_bytes((folder / "model-2.safetensors").read_bytes()[:-1])
    digests.add(weights_digest(folder))
    assert len(digests) == 4


def test_no_weights_no_digest_and_one_file_is_its_own(folder: Path, tmp_path: Path) -> None:
    assert weights_digest(tmp_path) == ""
    one = weights_digest(folder / "model-1.safetensors")
    assert one not in ("", weights_digest(folder / "model-2.safetensors"))


def test_weights_are_named_by_who_says_so_then_by_their_bytes(folder: Path, tmp_path: Path) -> None:
    assert revision_of(str(folder), None, "auto", "v7") == "v7"
    assert revision_of(str(folder), None, "auto", "") == weights_digest(folder)
    assert revision_of(str(folder / "model-1.safetensors"), None, "gguf", "") not in ("", weights_digest(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert revision_of(str(empty), None, "dummy", "") == "dummy"
    with pytest.raises(WeightsUnknown, match="say which they are with `revision`"):
        revision_of(str(empty), None, "auto", "")
    with pytest.raises(WeightsUnknown, match="not to be found here"):
        revision_of("nobody/nothing", None, "auto", "")


def test_a_model_is_called_as_its_folder_is_wherever_that_lies(folder: Path) -> None:
    assert name_of(str(folder)) == "model"
    assert name_of("org/model") == "org/model"
    assert len(name_of("x" * 300)) == 64
