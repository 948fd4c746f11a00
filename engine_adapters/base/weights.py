"""Which weights an engine has: a digest of a sample of their bytes.

KV cache of other weights is wrong in a way that nothing downstream can see, and neither a path nor a branch name says
which weights lie behind it. Reading all of them would take minutes; a sample of each file, taken at the same places by
everyone, differs wherever a checkpoint was trained further, merged or quantised.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

__all__ = ["WEIGHT_SUFFIXES", "WeightsUnknown", "name_of", "revision_of", "weights_digest"]

WEIGHT_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
SAMPLES: Final = 64  # of each file, evenly spread
SAMPLE_BYTES: Final = 4 << 10
HEAD_BYTES: Final = 64 << 10  # formats keep names and shapes there
NAME_BYTES_MAX: Final = 200  # of a model's name; longer ones are told by their digest


def weights_digest(path: Path) -> str:
    """Thirty-two hex digits over the weight files of a folder, or one file (names, sizes, samples); "" where there are
    none. The same files give the same digest on every machine, wherever they lie. Raises OSError for what cannot be
    read.
    """
    given = path.iterdir() if path.is_dir() else (path,)
    files = sorted(file for file in given if file.suffix in WEIGHT_SUFFIXES and file.is_file())
    if not files:
        return ""
    digest = hashlib.sha256(b"kvw1")
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(HEAD_BYTES))
            for place in range(SAMPLES):
                opened.seek(max(0, size - SAMPLE_BYTES) * place // max(1, SAMPLES - 1))
                digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]


class WeightsUnknown(Exception):
    """Nothing says which weights the engine has; the message says what to do."""


def name_of(model: str) -> str:
    """A folder's own name, so that it may lie elsewhere on another machine; the revision tells weights apart."""
    try:
        name = Path(model).name if Path(model).is_dir() else model
    except OSError:  # no path at all
        name = model
    return name if len(name.encode()) <= NAME_BYTES_MAX else hashlib.sha256(name.encode()).hexdigest()


def revision_of(model: str, revision: str | None, load_format: str, given: str) -> str:
    """Names the weights of a model: a folder, a file, or a hub's name of which `revision` was loaded. `given` where it
    is said, else their digest. Weights that are made, not read ("dummy"), are named by the caller, by their seed.
    Raises WeightsUnknown.
    """
    if given:
        return given
    path = Path(model)
    digest = weights_digest(path if path.exists() else _snapshot(model, revision))
    if not digest and load_format != "dummy":
        raise WeightsUnknown(f"{model}: no weights are there; say which they are with `revision`")
    return digest or "dummy"


def _snapshot(model: str, revision: str | None) -> Path:
    """Where the hub's files lie on this machine."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception as error:
        raise WeightsUnknown(
            f"{model}: its weights are not to be found here ({error}); say which they are with `revision`"
        ) from error
