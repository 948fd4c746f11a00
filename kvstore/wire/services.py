"""The generated stubs and registrations of both services."""

from typing import TYPE_CHECKING

from kvstore.wire.admin_pb2_grpc import AdminServicer, AdminStub, add_AdminServicer_to_server
from kvstore.wire.store_pb2_grpc import StoreServicer, StoreStub, add_StoreServicer_to_server

if TYPE_CHECKING:
    from kvstore.wire.admin_pb2_grpc import AdminAsyncStub
    from kvstore.wire.store_pb2_grpc import StoreAsyncStub

__all__ = [
    "AdminAsyncStub",
    "AdminServicer",
    "AdminStub",
    "StoreAsyncStub",
    "StoreServicer",
    "StoreStub",
    "add_AdminServicer_to_server",
    "add_StoreServicer_to_server",
]
