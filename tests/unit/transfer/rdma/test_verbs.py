"""A pyverbs that is broken, or not one that is known here, turns RDMA off with the reason, and is never an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from kvstore.config import TransferConfig
from kvstore.transfers import Transfers
from transfer import _native
from transfer.offers import Carrier
from transfer.rdma import RdmaUnavailable, unavailable
from transfer.rdma.verbs import open_devices

NEEDED = b"\0PyObject_Repr\0"  # of Python's, by every extension module


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty pyverbs, found before any other, on a machine with a device."""
    monkeypatch.setattr("transfer.rdma.verbs.rdma_missing", lambda: "")
    monkeypatch.setattr("transfer.rdma.verbs.device_names", lambda: ["mlx5_0"])
    monkeypatch.syspath_prepend(str(tmp_path))
    others = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "pyverbs"}
    for name in others:
        del sys.modules[name]
    folder = tmp_path / "pyverbs"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "pyverbs"]:
        del sys.modules[name]
    sys.modules.update(others)


def lacks_a_symbol() -> bytes:
    """An extension module that asks the loader for a symbol that nobody has."""
    whole = Path(str(_native.__file__)).read_bytes()
    assert NEEDED in whole
    return whole.replace(NEEDED, b"\0PyObject_Rept\0")


async def turned_off(why: str, sysfs: Path) -> None:
    assert why in unavailable()
    await refused(why, sysfs)


async def refused(why: str, sysfs: Path) -> None:
    with pytest.raises(RdmaUnavailable, match=why):
        open_devices((), 4, 64)
    transfers = Transfers(TransferConfig(), trusted_uids=(0,), now_ns=lambda: 0, sysfs=sysfs)
    try:
        await transfers.start()
        assert why in transfers.connector.offer.why_not(Carrier.RDMA)
    finally:
        await transfers.close()


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        ("ImportError('version `IBVERBS_PRIVATE_59\\' not found')", "of different releases"),
        ("ImportError('no such thing')", "no such thing"),
        ("OSError(5, 'Input/output error')", "OSError"),
        ("AttributeError('gone')", "AttributeError: gone"),
        ("ValueError('QP size changed, may indicate binary incompatibility')", "size changed"),
        ("SystemError('initialization failed')", "SystemError"),
    ],
)
async def test_an_import_that_fails(package: Path, raised: str, why: str, tmp_path: Path) -> None:
    (package / "device.py").write_text(f"raise {raised}\n")
    await turned_off(why, tmp_path)


async def test_a_module_that_the_loader_refuses(package: Path, tmp_path: Path) -> None:
    module = package / f"device{EXTENSION_SUFFIXES[0]}"
    module.write_bytes(lacks_a_symbol())
    await turned_off("undefined symbol", tmp_path)


async def test_a_module_that_is_cut_short(package: Path, tmp_path: Path) -> None:
    (package / f"device{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF")
    await turned_off("pyverbs cannot be imported", tmp_path)


CONTEXT = "class Context:\n    def __init__(self, name): pass\n"
QUEUES = "class CompChannel:\n    def __init__(self, *_): pass\nCQ = CompChannel\n"


@pytest.mark.parametrize(
    ("modules", "why"),
    [
        ({"device": ""}, "no attribute 'Context'"),
        ({"device": CONTEXT.replace("name", "")}, "not of a release that is known"),
        ({"device": CONTEXT, "cq": QUEUES}, "No module named 'pyverbs.pd'"),
        ({"device": "class Context:\n    def __init__(self, name): raise OSError(13, 'not allowed')\n"}, "not allowed"),
    ],
)
async def test_one_that_is_not_known(package: Path, modules: dict[str, str], why: str, tmp_path: Path) -> None:
    for name, text in ({"cq": QUEUES, "pyverbs_error": "class PyverbsError(Exception): pass\n"} | modules).items():
        (package / f"{name}.py").write_text(text)
    assert unavailable() == ""  # it imports
    await refused(why, tmp_path)
