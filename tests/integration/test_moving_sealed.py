"""A client of another machine as an operator would have it: TLS on every way, a token in the first frame."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client
from kvstore.client.tls import Tls
from kvstore.errors import Rejected, Unavailable
from tests.certificates import Authority
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens
from transfer.paths import Path as Way

TOKEN = "a token of thirty-two random bytes, as it were"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def node(tmp_path: Path, authority: Authority) -> Iterator[NodeProcess]:
    pair = authority.sign("node", server=True)
    access = tmp_path / "access.toml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    access.write_text(f'[[token]]\nname = "engine"\nsha256 = "{digest}"\ntenants = ["chat"]\n')
    access.chmod(0o600)
    sets = (
        f"security.certificate={pair.certificate}",
        f"security.private_key={pair.private_key}",
        f"security.access_file={access}",
    )
    with NodeProcess(tmp_path, *sets, address="127.0.0.1:0") as node:
        yield node


@pytest.fixture(autouse=True)
def _as_from_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither memory nor sockets of this machine are shared."""
    monkeypatch.setattr("transfer.offers.Home.same_files", lambda *_: False)


def test_blocks_move_in_tls_for_whoever_has_a_token(node: NodeProcess, authority: Authority) -> None:
    with Client(node.facts["address"], token=TOKEN, tls=Tls(authority.path)) as client:
        ns = client.namespace(layout(), tenant="chat")
        chain = ns.chain(tokens(9))
        expected, into = blocks_of(chain), np.zeros((9, SIZE), np.uint8)
        assert ns.put(chain, expected).stored == 9
        assert ns.get(chain, into).blocks == 9 and np.array_equal(into, expected)
        reached = client._channel._away._ways._reached[1]  # type: ignore[attr-defined]
        assert reached.fetching.chosen.path is Way.TCP and reached.fetching.chosen.address.startswith("tcp://")
        with pytest.raises(Rejected, match="tenant"):
            client.namespace(layout(), tenant="another")
    eventually(lambda: node.holds() == 0)


def test_who_believes_another_authority_does_not_connect(
    node: NodeProcess, tmp_path: Path, authority: Authority
) -> None:
    strange = Authority(tmp_path, "strange")
    for client in (
        Client(node.facts["address"], token=TOKEN, tls=Tls(strange.path), deadline_s=5),
        Client(node.facts["address"], token=TOKEN, deadline_s=5),
    ):
        with client, pytest.raises(Unavailable):
            client.namespace(layout(), tenant="chat")
    with Client(node.facts["address"], token="wrong", tls=Tls(authority.path)) as client, pytest.raises(Rejected):
        client.namespace(layout(), tenant="chat")
