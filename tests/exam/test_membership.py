"""Every Membership passes the exam."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest

from kvstore.directory.base import Membership
from kvstore.directory.etcd import Etcd
from kvstore.directory.etcd_client import EtcdClient
from kvstore.directory.standalone import Standalone
from kvstore.directory.static import StaticList
from kvstore.testing.exam_membership import MembershipExam
from tests.etcd_server import EtcdServer, needs_etcd


class TestStandalone(MembershipExam):
    finds = watches = False

    def membership(self, town: Sequence[str]) -> Membership:
        return Standalone()


class TestStatic(MembershipExam):
    watches = False

    def membership(self, town: Sequence[str]) -> Membership:
        return StaticList(town)


@pytest.fixture(scope="class")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as started:
        yield started


@needs_etcd
class TestEtcd(MembershipExam):
    numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def place(self, server: EtcdServer) -> None:
        self._server = server
        self._prefix = f"clusters/exam{next(self.numbers)}"

    def membership(self, town: Sequence[str]) -> Membership:
        return Etcd(EtcdClient([self._server.endpoint]), self._prefix, join_s=10, ttl_s=60)

    async def silence(self, one: Membership) -> None:
        assert isinstance(one, Etcd)
        one._lease = 0  # which is not revoked then: the record stays, as after kill -9
        await one.leave()
