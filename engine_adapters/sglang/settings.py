"""The backend's settings: --hicache-storage-backend-extra-config, less what SGLang reads of it itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine_adapters.base.settings import AdapterSettings
from kvstore.errors import Misconfigured

__all__ = ["settings_of"]

_ENGINES_OWN: Final = frozenset({"backend_name", "module_path", "class_name", "interface_v1"})
# A flush or a detach waits 10 s for the threads that ask us, and an engine whose threads are late then ends.
_WAITS_MS: Final = {"lookup_ms": 1_000, "load_ms": 5_000, "save_ms": 5_000}
_WAIT_MS_MAX: Final = 8_000
_UNREAD: Final = frozenset({"save_share_max", "load_threads"})  # SGLang has threads and pins of its own


def settings_of(extra_config: Mapping[str, Any] | None) -> tuple[AdapterSettings, bool]:
    """Ours, and whether the engine uses its zero-copy interface. Raises Misconfigured."""
    given = dict(extra_config or {})
    direct = bool(given.get("interface_v1", 0))
    ours = {key: value for key, value in given.items() if key not in _ENGINES_OWN}
    settings = AdapterSettings.of({**_WAITS_MS, **ours}, _UNREAD)
    for key in _WAITS_MS:
        if getattr(settings, key) > _WAIT_MS_MAX:
            raise Misconfigured(f"{key} = {getattr(settings, key)}: must be at most {_WAIT_MS_MAX}: SGLang waits 10 s")
    if settings.load == "layerwise":
        raise Misconfigured("load = 'layerwise': SGLang loads whole pages; must be async or none")
    if settings.save == "prompt":
        raise Misconfigured("save = 'prompt': SGLang does not say which pages are a prompt's; must be all or none")
    return settings, direct
