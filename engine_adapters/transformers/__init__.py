"""Hugging Face transformers: prefix caches fetched from the store and published to it."""

from .connector import Fetched, StoreConnector
from .layout import layout_of

__all__ = ["Fetched", "StoreConnector", "layout_of"]
