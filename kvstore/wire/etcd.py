"""etcd's messages and stubs (generated from proto/etcd): the part of its public API that membership uses."""

from typing import TYPE_CHECKING

from kvstore.wire import etcd_kv_pb2 as kv
from kvstore.wire import etcd_rpc_pb2 as rpc
from kvstore.wire.etcd_rpc_pb2_grpc import AuthStub, KVStub, LeaseStub, WatchStub

if TYPE_CHECKING:
    from kvstore.wire.etcd_rpc_pb2_grpc import AuthAsyncStub, KVAsyncStub, LeaseAsyncStub, WatchAsyncStub

__all__ = [
    "AuthAsyncStub",
    "AuthStub",
    "KVAsyncStub",
    "KVStub",
    "LeaseAsyncStub",
    "LeaseStub",
    "WatchAsyncStub",
    "WatchStub",
    "kv",
    "rpc",
]
