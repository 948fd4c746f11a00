"""The Python client: two faces over one sans-I/O module (journeys). docs/python.md is the manual."""

from kvstore.client.aio import AsyncClient, AsyncNamespace
from kvstore.client.buffers import Extents
from kvstore.client.held import Held
from kvstore.client.hints import Hints
from kvstore.client.journeys import Ended, Found, Got, Stored
from kvstore.client.space import Cleared
from kvstore.client.steps import PutOutcome
from kvstore.client.sync import Client, Namespace
from kvstore.client.views import View

__all__ = [
    "AsyncClient",
    "AsyncNamespace",
    "Cleared",
    "Client",
    "Ended",
    "Extents",
    "Found",
    "Got",
    "Held",
    "Hints",
    "Namespace",
    "PutOutcome",
    "Stored",
    "View",
]
