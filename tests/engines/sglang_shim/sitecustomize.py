"""Lets SGLang's own code run on a CPU without its compiled kernels. On PYTHONPATH, so Python runs it in each process.

SGLang's scheduler, radix tree, host pools and storage tier are Python over torch; only what they call at the bottom is
compiled for CUDA, or not on PyPI for CPUs. Three things stand in for it here:
  - modules that are not there (sgl_kernel, torchvision): importable, and whoever calls into them is told so; the few
    calls that a text model on a CPU makes are written out in `kernels.py`;
  - host memory is not pinned, since there is no device to pin it for;
  - the copies between "device" and host pools (io backend "direct") are torch indexing, in `copies.py`.
It changes no decision of SGLang's. Nothing here is imported before SGLang asks for it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

_ABSENT = ("sgl_kernel", "torchaudio", "torchvision")
_WAYS = "sglang.srt.models.deepseek_common.attention_backend_handler"


class _Anything(type):
    """A name of an absent module: may be imported, subclassed, compared and looked into, but not called."""

    def __getattr__(cls, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _anything(f"{cls.__name__}.{name}")


def _refuse(cls: type, *given: object, **named: object) -> object:
    raise RuntimeError(
        f"{cls.__name__} was called, which tests/engines/sglang_shim has not: it is not there on this CPU"
    )


def _anything(name: str) -> type:
    return _Anything(name, (), {"__new__": _refuse})


class _AbsentModule(ModuleType):
    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _anything(f"{self.__name__}.{name}")
        setattr(self, name, made)
        return made


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module below the absent packages."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in _ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "sgl_kernel":
            import kernels

            for name in kernels.__all__:
                setattr(module, name, getattr(kernels, name))


class _Then(importlib.abc.Loader):
    """Loads a module of SGLang's as it is, and then gives it what it could not import."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if module.__name__ == _WAYS:
            module.AttentionBackendRegistry.register("torch_native", lambda *_: module.AttnForwardMethod.MLA)
            return
        import copies

        copies.complete(module)


class _Afterwards(importlib.abc.MetaPathFinder):
    """Has the host pools completed once they are loaded."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("sglang.srt.mem_cache.") and name != _WAYS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)  # type: ignore[arg-type]
        return spec


sys.meta_path.insert(0, _Absent())
sys.meta_path.insert(0, _Afterwards())
