"""Generates kvstore/wire/*_pb2* from proto/kvstore/v1/*.proto and proto/etcd/*.proto: `make proto`.

The files are committed, so that building and installing need no protoc; tests/architecture/test_generated.py compares
them with a fresh run. protoc names modules after the path of the .proto (kvstore.v1, etcd); they live in kvstore.wire,
hence the rewritten imports. What reflection tells the world (kvstore/v1/store.proto) is untouched.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = (
    "kvstore/v1/store.proto",
    "kvstore/v1/admin.proto",
    "kvstore/v1/framed.proto",
    "kvstore/v1/peers.proto",
    "etcd/etcd_kv.proto",
    "etcd/etcd_rpc.proto",
)


def generate(out: Path) -> list[Path]:
    """Writes the generated modules and their types into `out`; returns their paths, sorted."""
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{ROOT / 'proto'}",
                f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
                *(f"--{plugin}_out={scratch}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")),
                *PROTOS,
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        written = []
        for source in sorted(Path(scratch).rglob("*_pb2*"), key=lambda path: path.name):
            target = out / source.name
            ours = re.sub(r"\bkvstore\.v1(?= import|\.\w+_pb2)", "kvstore.wire", source.read_text())
            target.write_text(re.sub(r"(?<![\w./])etcd(?= import|\.\w+_pb2)", "kvstore.wire", ours))
            written.append(target)
    return written


if __name__ == "__main__":
    wire = ROOT / "kvstore" / "wire"
    for stale in wire.glob("*_pb2*.py*"):
        stale.unlink()
    for path in generate(wire):
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    shutil.rmtree(wire / "__pycache__", ignore_errors=True)
