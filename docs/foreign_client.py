"""A client with none of our code. PYTHONPATH=proto/kvstore/v1 python docs/foreign_client.py HOST:PORT [TOKEN-ID...]"""

import hashlib
import struct
import sys

import grpc


def chain(parent, tokens, n, extras=()):  # docs/format/keys.md, 3
    for i in range(len(tokens) // n):
        block = struct.pack(f"<I{n}I", n, *tokens[i * n : (i + 1) * n])
        extra = extras[i] if i < len(extras) else b""
        parent = hashlib.sha256(b"kvk1" + parent + block + struct.pack("<I", len(extra)) + extra).digest()
        yield parent


def main(address, tokens):
    pb, services = grpc.protos_and_services("store.proto")  # grpcio-tools; or protoc, once
    store = services.StoreStub(grpc.insecure_channel(address))
    layout = {"engine": "mine", "model": "tiny", "revision": "1", "dtype": "float32", "block_tokens": 4}
    shards = [pb.Shard(part_bytes=[4096, 4096])]
    ns = store.OpenNamespace(pb.OpenNamespaceRequest(layout=pb.Layout(**layout, shards=shards)), timeout=5)
    keys = list(chain(ns.seed, tokens, ns.block_tokens))
    payload = b"".join(hashlib.sha256(key).digest() * 256 for key in keys)  # 8192 bytes a block
    header = pb.PutHeader(namespace=ns.digest, chain=pb.Chain(keys=b"".join(keys)))
    messages = [pb.PutRequest(header=header), pb.PutRequest(data=pb.PutData(payload=payload))]
    put = store.Put(iter(messages), timeout=5)
    named = pb.Chain(tokens=pb.Tokens(ids=tokens))  # now let the node make the keys
    found = store.Lookup(pb.LookupRequest(namespace=ns.digest, chain=named, return_keys=True), timeout=5)
    got = b"".join(m.data.payload for m in store.Get(pb.GetRequest(namespace=ns.digest, chain=named), timeout=5))
    print(put.stored + put.held, found.blocks, found.keys == b"".join(keys), got == payload)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], [int(token) for token in sys.argv[2:]] or list(range(10)))
