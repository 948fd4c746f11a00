"""Which weights an engine has: a digest of a sample of their bytes.

KV cache of other weights is wrong in a way that nothing downstream can see, and neither a path nor a branch name says
which weights lie behind it. Reading all of them would take minutes; a sample of each file, taken at the same places by
everyone, differs wherever a checkpoint was trained further, merged or quantised.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

__all__ = ["WEIGHT_SUFFIXES", "weights_digest"]

WEIGHT_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
SAMPLES: Final = 64  # of each file, evenly spread
SAMPLE_BYTES: Final = 4 << 10
HEAD_BYTES: Final = 64 << 10  # formats keep names and shapes there


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
