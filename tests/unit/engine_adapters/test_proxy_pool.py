"""Which server gets a request, which is left out, and what the proxy may be told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine_adapters.pd.pool import Pool, Server
from engine_adapters.pd.settings import LIMITS, Settings, urls_of
from kvstore.errors import Misconfigured


def pool(count: int = 3, failures_max: int = 3) -> Pool:
    made = Pool("decode", [f"http://s{number}" for number in range(count)], failures_max)
    for server in made.servers:
        made.looked(server, well=True, since=server.looked)
    return made


def taken(of: Pool, *but: Server) -> Server:
    server = of.take(but)
    assert server is not None
    return server


def test_the_least_busy_server_is_next_and_equals_take_turns() -> None:
    three = pool()
    first = [taken(three) for _ in range(3)]
    assert len(set(first)) == 3
    three.give_back(first[1])
    assert taken(three) is first[1]
    for server in first:
        three.give_back(server)
    assert [taken(three) for _ in range(3)] == [first[0], first[2], first[1]]


def test_a_server_that_nobody_has_looked_at_gets_nothing() -> None:
    new = Pool("prefill", ["http://a"], 3)
    assert new.take() is None
    assert (new.up, new.down) == (False, ["http://a"])


def test_one_that_was_tried_is_not_tried_again() -> None:
    two = pool(2)
    first = taken(two)
    second = taken(two, first)
    assert second is not first
    assert two.take((first, second)) is None


def test_gone_is_out_at_once_and_failing_after_a_few_in_a_row() -> None:
    two = pool(2)
    one, other = two.servers
    two.failed(one, gone=True)
    assert two.down == [one.url]
    for _ in range(2):
        two.failed(other)
    two.served(other)
    two.failed(other)
    two.failed(other)
    assert other.up
    two.failed(other)
    assert not two.up


def test_it_comes_back_with_a_look_that_began_after_it_failed() -> None:
    one = pool(1)
    (server,) = one.servers
    before = server.looked
    one.failed(server, gone=True)
    one.looked(server, well=True, since=before)
    assert not server.up, "it said so before it failed"
    one.looked(server, well=False, since=server.looked, gone=True)
    assert not server.up
    one.looked(server, well=True, since=server.looked)
    assert (server.up, server.failures) == (True, 0)


def test_a_look_that_goes_well_forgives_no_request() -> None:
    """An engine's health is fine while each request fails."""
    one = pool(1, failures_max=2)
    (server,) = one.servers
    one.failed(server)
    one.looked(server, well=True, since=server.looked)
    one.failed(server)
    assert not server.up


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("", ()),
        ("http://a:1", ("http://a:1",)),
        (" http://a:1/ , https://[::1]:2,", ("http://a:1", "https://[::1]:2")),
    ],
)
def test_urls(text: str, urls: tuple[str, ...]) -> None:
    assert urls_of("decode", text) == urls


@pytest.mark.parametrize(
    "text", ["a:1", "ftp://a", "http://", "http://a:0", "http://a:x", "http://u@a", "http://a?b", "http://a,http://a/"]
)
def test_what_is_no_server(text: str) -> None:
    with pytest.raises(Misconfigured, match="decode = "):
        urls_of("decode", text)


@pytest.mark.parametrize("name", list(LIMITS))
def test_each_limit_has_bounds_and_names_itself(name: str) -> None:
    least, most = LIMITS[name]
    for value in (least, most):
        assert getattr(Settings(decode=("http://a",), **{name: value}), name) == value
    for value in (least - 1, most + 1):
        with pytest.raises(Misconfigured, match=f"{name} = {value}: must be {least} to {most}"):
            Settings(decode=("http://a",), **{name: value})


def test_without_decode_there_is_no_proxy() -> None:
    with pytest.raises(Misconfigured, match="decode: missing"):
        Settings(decode=(), prefill=("http://a",))


def test_the_page_has_each_limit_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text()
    told = {name: int(default) for name, default in re.findall(r"^\| `--([a-z-]+)` \| (\d+) \|", page, re.MULTILINE)}
    plain = Settings(decode=("http://a",))
    assert told == {name.replace("_", "-"): getattr(plain, name) for name in LIMITS}
