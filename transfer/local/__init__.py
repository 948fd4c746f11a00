"""Copies and views between processes of one host, through mapped segments."""

from transfer.local.endpoint import LocalEndpoint
from transfer.local.transport import LocalConfig, LocalTransport
from transfer.local.view import LocalView

__all__ = ["LocalConfig", "LocalEndpoint", "LocalTransport", "LocalView"]
