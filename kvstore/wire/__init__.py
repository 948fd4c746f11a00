"""Messages of the public contract (generated from proto/kvstore/v1) and their conversion.

Take the messages from here (`from kvstore.wire import store`); nobody else imports the generated modules. What needs
gRPC itself is in kvstore.wire.services, so that the framed client never loads it.
"""

from kvstore.wire import admin_pb2 as admin
from kvstore.wire import framed_pb2 as framed
from kvstore.wire import peers_pb2 as peers
from kvstore.wire import store_pb2 as store

__all__ = ["admin", "framed", "peers", "store"]
