"""Tokens, certificates and addresses: who may, and what is refused at start."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kvstore.errors import Misconfigured
from kvstore.node import auth
from kvstore.node.auth import RIGHTS, Denied, Guard, Peer, load_access, parse_access
from kvstore.security import SecurityConfig, check_addresses, is_local
from tests.tokens import mint_token


def access_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "access.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def guard_with(tmp_path: Path, *entries: str, client_ca: bool = False) -> Guard:
    security = SecurityConfig(
        access_file=access_file(tmp_path, "\n".join(entries)),
        certificate=Path("c") if client_ca else None,
        private_key=Path("k") if client_ca else None,
        client_ca=Path("ca") if client_ca else None,
    )
    return Guard(security)


def test_a_token_gives_its_tenants_and_nothing_else(tmp_path: Path) -> None:
    token, entry = mint_token("prefill", ["acme", "zebra"])
    other, other_entry = mint_token("operator", ["*"], ["admin"])
    guard = guard_with(tmp_path, entry, other_entry)
    peer = guard.authorize({"authorization": f"Bearer {token}"})
    assert (peer.name, peer.tenants, peer.rights) == ("prefill", frozenset({"acme", "zebra"}), frozenset())
    assert peer.may_use("acme") and not peer.may_use("default")
    operator = guard.authorize({"authorization": f"bearer  {other}"})
    assert operator.may_use("anything") and operator.rights == {"admin"}


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer ",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        "Bearer " + "x" * 1_000_000,
        "",
        "Bearer \udcff".encode("utf-8", "replace").decode(),
    ],
)
def test_what_is_not_a_token_of_ours_is_denied(tmp_path: Path, authorization: str) -> None:
    token, entry = mint_token("a", ["acme"])
    guard = guard_with(tmp_path, entry)
    with pytest.raises(Denied) as caught:
        guard.authorize({"authorization": authorization})
    assert not caught.value.known
    with pytest.raises(Denied):
        guard.authorize({"authorization": f"Bearer {token[:-1]}"})
    with pytest.raises(Denied):
        guard.authorize(
            {"authorization": f"Bearer {hashlib.sha256(token.encode()).hexdigest()}"}
        )  # the stored form is no token
    with pytest.raises(Denied):
        guard.authorize({})


def test_what_doors_turned_away_is_counted(tmp_path: Path) -> None:
    guard = guard_with(tmp_path, mint_token("a", ["acme"])[1])
    assert set(guard.denials().values()) == {0} and len(guard.denials()) == 6
    guard.denied("grpc", Denied("who", known=False))
    guard.denied("grpc", Denied("you", known=True))
    guard.denied("metrics", Denied("who", known=False))
    told = {key: count for key, count in guard.denials().items() if count}
    assert told == {("grpc", False): 1, ("grpc", True): 1, ("metrics", False): 1}


def test_names_and_tenants_are_any_text(tmp_path: Path) -> None:
    _, entry = mint_token('quote " and \\ and \n line', ['ten"ant'])
    ((_, peer),) = load_access(access_file(tmp_path, entry)).tokens
    assert peer.name == 'quote " and \\ and \n line' and peer.tenants == {'ten"ant'}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = access_file(tmp_path, mint_token("a", ["acme"])[1], mode)
    with pytest.raises(Misconfigured, match="chmod 600"):
        load_access(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[token]]\nname='a'\nsha256='AB'\ntenants=['t']", r"token\[0\].sha256"),
        ("[[token]]\nname='a'\ntenants=['t']", r"token\[0\].sha256"),
        ("[[token]]\nsha256='" + "0" * 64 + "'", r"token\[0\].name"),
        ("[[certificate]]\nname='a'\ntenants='t'", r"certificate\[0\].tenants"),
        ("[[certificate]]\nname='a'\ntenants=['']", r"certificate\[0\].tenants"),
        ("[[certificate]]\nname='a'\ntenants=['*', 't']", r"stands alone"),
        ("[[certificate]]\nname='a'\nrights=['root']", r"certificate\[0\].rights"),
        ("[[certificate]]\nname='a'\n[[certificate]]\nname='a'", r"certificate\[1\].name: given twice"),
        ("[[certificate]]\nname='a'\ntenant=['t']", r"certificate\[0\].tenant: not a key"),
        ("[[token]]\nname='a'\nright=['admin']", r"token\[0\].right: not a key"),
        ("[[certificate]]\nname=''", r"certificate\[0\].name"),
        ("[token]\nname='a'", r"\[\[token\]\]"),
        ("token = [1]", r"\[\[token\]\]"),
        ("secret = 1", "secret: not a key"),
        ("[[token", "Expected|Invalid|expected"),
    ],
)
def test_a_bad_entry_is_named(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=named):
        load_access(access_file(tmp_path, text))


def test_what_just_fits_is_taken_and_one_more_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.node.auth.GRANTS_MAX", 2)
    monkeypatch.setattr("kvstore.node.auth.ACCESS_BYTES_MAX", 1000)
    long, rights = "t" * 255, sorted(RIGHTS)
    text = f"[[certificate]]\nname='a'\ntenants=['{long}']\nrights={rights}\n[[certificate]]\nname='b'\n"
    peer = load_access(access_file(tmp_path, text.ljust(1000))).certificates["a"]
    peer.require_tenant(long)
    assert peer.rights == RIGHTS
    for more, says in (
        (text + "[[certificate]]\nname='c'\n", "more than 2 entries"),
        (text.ljust(1001), "larger than 1000 bytes"),
        (text.replace(long, long + "t"), "1 to 255 bytes"),
    ):
        with pytest.raises(Misconfigured, match=says):
            load_access(access_file(tmp_path, more))


def test_a_tenant_that_is_not_ones_own_is_a_known_callers_mistake() -> None:
    with pytest.raises(Denied) as caught:
        Peer("a", frozenset({"acme"}), frozenset()).require_tenant("zebra")
    assert caught.value.known and "zebra" not in str(caught.value)


def test_a_missing_file_is_misconfigured(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"none\.toml"):
        load_access(tmp_path / "none.toml")


def test_what_is_no_plain_file_of_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(Misconfigured, match="chmod 600"):  # and nobody waits for who writes to it
        load_access(tmp_path / "pipe")
    path = access_file(tmp_path, "#" * 65)
    monkeypatch.setattr(auth, "ACCESS_BYTES_MAX", 64)
    with pytest.raises(Misconfigured, match="larger than 64 bytes"):
        load_access(path)
    path.write_bytes(b"\xff")
    with pytest.raises(Misconfigured, match="utf-8"):
        load_access(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = access_file(tmp_path, "")
    os.chown(path, 65_534, 65_534)
    with pytest.raises(Misconfigured, match="belongs to user 65534"):
        load_access(path)


def test_certificates_map_to_tenants(tmp_path: Path) -> None:
    guard = guard_with(tmp_path, "[[certificate]]\nname='decode.example'\ntenants=['acme']", client_ca=True)
    assert guard.authorize({}, ("CN-of-no-interest", "decode.example")).tenants == {"acme"}
    with pytest.raises(Denied, match="access file"):
        guard.authorize({}, ("stranger.example",))
    with pytest.raises(Denied):
        guard.authorize({})


def test_certificates_that_nobody_is_asked_for_are_refused(tmp_path: Path) -> None:
    """Such a row would give nobody anything, and its writer would look for the mistake elsewhere."""
    with pytest.raises(Misconfigured, match=r"certificate\[0\]: .* security\.client_ca"):
        guard_with(tmp_path, "[[certificate]]\nname='decode.example'\ntenants=['acme']", client_ca=False)


def test_a_client_authority_alone_gives_the_least() -> None:
    security = SecurityConfig(certificate=Path("c"), private_key=Path("k"), client_ca=Path("ca"))
    peer = Guard(security).authorize({}, ("someone",))
    assert peer.tenants == {"default"} and not peer.rights
    with pytest.raises(Denied):
        Guard(security).authorize({})


def test_anonymous_gets_what_the_operator_says_and_no_rights() -> None:
    peer = Guard(SecurityConfig()).authorize({})
    assert peer.tenants == {"default"} and not peer.rights
    assert Guard(SecurityConfig(anonymous_tenants=())).authorize({}).tenants == frozenset()


def test_metrics_need_their_right_once_anybody_must_say_who_they_are(tmp_path: Path) -> None:
    plain, plain_entry = mint_token("engine", ["acme"])
    scraper, scraper_entry = mint_token("prometheus", [], ["metrics"])
    admin, admin_entry = mint_token("operator", ["*"], ["admin"])
    guard = guard_with(tmp_path, plain_entry, scraper_entry, admin_entry)
    assert guard.authorize_metrics({"authorization": f"Bearer {scraper}"}).name == "prometheus"
    assert guard.authorize_metrics({"authorization": f"Bearer {admin}"}).name == "operator"
    with pytest.raises(Denied) as caught:
        guard.authorize_metrics({"authorization": f"Bearer {plain}"})
    assert caught.value.known
    with pytest.raises(Denied):
        guard.authorize_metrics({})
    assert Guard(SecurityConfig()).authorize_metrics({}).name == "anonymous"


def test_reload_swaps_tokens_or_changes_nothing(tmp_path: Path) -> None:
    old, old_entry = mint_token("old", ["acme"])
    new, new_entry = mint_token("new", ["acme"])
    guard = guard_with(tmp_path, old_entry)
    access_file(tmp_path, "nonsense = ")
    with pytest.raises(Misconfigured):
        guard.reload()
    assert guard.authorize({"authorization": f"Bearer {old}"}).name == "old"
    access_file(tmp_path, new_entry)
    guard.reload()
    assert guard.authorize({"authorization": f"Bearer {new}"}).name == "new"
    with pytest.raises(Denied):
        guard.authorize({"authorization": f"Bearer {old}"})


def test_a_peer_is_told_nothing_about_other_tenants() -> None:
    peer = Peer("engine", frozenset({"acme"}))
    texts = set()
    for tenant in ("zebra", "nobody-has-this-name"):
        with pytest.raises(Denied) as caught:
            peer.require_tenant(tenant)
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_too_many_entries_are_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        parse_access("\n".join(f"[[certificate]]\nname='{i}'" for i in range(10_001)))


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:7000", True),
        ("127.9.9.9:7000", True),
        ("[::1]:7000", True),
        ("localhost:7000", True),
        ("unix:/run/kvstore.sock", True),
        ("0.0.0.0:7000", False),
        ("[::]:7000", False),
        ("10.0.0.7:7000", False),
        ("node-1.example:7000", False),
        ("localhost.example:7000", False),
        (":7000", False),
    ],
)
def test_which_addresses_are_local(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_an_exposed_address_wants_tls_and_authentication() -> None:
    tls = {"certificate": Path("c"), "private_key": Path("k")}
    exposed = ("127.0.0.1:1", "0.0.0.0:7000")
    for lacking in (
        SecurityConfig(),
        SecurityConfig(certificate=Path("c"), private_key=Path("k")),
        SecurityConfig(access_file=Path("a")),
    ):
        assert check_addresses(lacking, ("127.0.0.1:1", "unix:/s")) == ()
        with pytest.raises(Misconfigured, match=r"0\.0\.0\.0:7000.*without.*--insecure"):
            check_addresses(lacking, exposed)
    assert check_addresses(SecurityConfig(**tls, access_file=Path("a")), exposed) == ()
    assert check_addresses(SecurityConfig(**tls, client_ca=Path("ca")), exposed) == ()
    (said,) = check_addresses(SecurityConfig(insecure=True), exposed)
    assert said.startswith("INSECURE: 0.0.0.0:7000")


def test_half_a_configuration_is_refused() -> None:
    with pytest.raises(Misconfigured, match="both or neither"):
        SecurityConfig(certificate=Path("c"))
    with pytest.raises(Misconfigured, match="client_ca"):
        SecurityConfig(client_ca=Path("ca"))
    with pytest.raises(Misconfigured, match="trusted_uids"):
        SecurityConfig(trusted_uids=(-1,))
