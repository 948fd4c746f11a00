"""Which way NICs get at device memory, over a driver and NICs made for the test."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from transfer.devices.base import CudaError, DmaBuf
from transfer.devices.memory import DeviceMemory
from transfer.devices.ways import NoWay, Reached, Way, WaySettings, reach

PAGE = 4096
BASE = 0x7F0000000000
MEMORY = DeviceMemory(BASE + 100, 10_000, 1)


class Driver:
    """`exports`: the driver's attribute. A descriptor is a number that must be closed once."""

    def __init__(self, *, exports: bool = True, refuses: int = 0, syncs: bool = True) -> None:
        self.exports, self.refuses, self.syncs = exports, refuses, syncs
        self.exported: list[tuple[int, int]] = []
        self.synced: list[int] = []
        self.open: set[int] = set()

    def address_range(self, address: int) -> tuple[int, int]:
        if not BASE <= address < BASE + (2 << 20):
            raise CudaError("cuMemGetAddressRange_v2", 1)
        return BASE, 2 << 20

    def exports_dma_buf(self, device: int) -> bool:
        assert device == 1
        return self.exports

    def export_dma_buf(self, address: int, count: int) -> int:
        if self.refuses:
            raise CudaError("cuMemGetHandleForAddressRange", self.refuses)
        self.exported += [(address, count)]
        self.open.add(70)
        return 70

    def sync_memops(self, address: int) -> None:
        if not self.syncs:
            raise CudaError("cuPointerSetAttribute", 801)
        self.synced += [address]

    def pci_address(self, device: int) -> str:
        return f"0000:0{device}:00.0"

    def close(self, fd: int) -> None:
        self.open.remove(fd)


class Card:
    def __init__(self, name: str, driver: Driver, *, dma_buf: int = 0, address: int = 0) -> None:
        self.name, self.driver = name, driver
        self.dma_buf, self.address = dma_buf, address
        self.held: dict[int, tuple[object, ...]] = {}
        self.stuck = False

    def register_dma_buf(self, part: DmaBuf, address: int) -> int:
        assert part.fd in self.driver.open
        assert address % PAGE == part.offset % PAGE, "verbs refuse it"
        return self._register(self.dma_buf, part, address)

    def register_address(self, address: int, count: int) -> int:
        return self._register(self.address, address, count)

    def deregister(self, handle: int) -> None:
        if self.stuck:
            raise OSError(errno.EBUSY, "busy")
        del self.held[handle]

    def _register(self, error: int, *what: object) -> int:
        if error:
            raise OSError(error, os.strerror(error))
        self.held[len(self.held) + 1] = what
        return len(self.held)


def run(
    cards: list[Card],
    driver: Driver | None,
    settings: WaySettings | None = None,
    *,
    kernel: str = "6.1.0-56-amd64",
) -> Reached:
    close = driver.close if driver is not None else os.close
    settings = settings or WaySettings()
    try:
        return reach(MEMORY, cards, driver, settings, kernel=kernel, page_bytes=PAGE, close=close)
    finally:
        assert driver is None or not driver.open, "a descriptor is left open"


def only(*ways: Way) -> WaySettings:
    return WaySettings(frozenset(ways))


def test_a_dma_buf_of_the_wanted_pages_for_every_nic() -> None:
    driver = Driver()
    cards = [Card("a", driver), Card("b", driver)]
    assert run(cards, driver) == Reached(Way.DMA_BUF, (1, 1), ())
    assert driver.exported == [(BASE, 3 * PAGE)]
    assert driver.synced == [MEMORY.address]
    assert [card.held for card in cards] == [{1: (DmaBuf(70, 100, 10_000), MEMORY.address)}] * 2


def test_a_dma_buf_that_the_owner_has_made_is_taken_and_left_open() -> None:
    driver = Driver(exports=False, refuses=1)
    cards = [Card("a", driver), Card("b", driver)]
    part = DmaBuf(9, 5 * PAGE + 100, 10_000)
    driver.open.add(9)
    try:
        assert reach(
            replace(MEMORY, dma_buf=part), cards, driver, WaySettings(), kernel="6.1.0", close=driver.close
        ) == (Reached(Way.DMA_BUF, (1, 1), ()))
        assert driver.open == {9} and driver.synced == [MEMORY.address]
        assert [card.held for card in cards] == [{1: (part, MEMORY.address)}] * 2
    finally:
        driver.open.clear()
    for wrong in (DmaBuf(-1, 0, 10_000), DmaBuf(9, -1, 10_000), DmaBuf(9, 0, 9_999)):
        with pytest.raises(ValueError, match="dma_buf must be"):
            replace(MEMORY, dma_buf=wrong)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT])
def test_peer_memory_where_a_nic_takes_no_dma_buf(number: int) -> None:
    driver = Driver()
    cards = [Card("a", driver), Card("b", driver, dma_buf=number)]
    found = run(cards, driver)
    assert (found.way, found.handles) == (Way.PEERMEM, (1, 1))
    assert len(found.why) == 1 and found.why[0].startswith("dma_buf: b:") and errno.errorcode[number] in found.why[0]
    assert [card.held for card in cards] == [{1: (MEMORY.address, 10_000)}] * 2, "half-way registrations are let go"


def test_staged_where_neither_works_and_both_reasons_are_told() -> None:
    driver = Driver()
    cards = [Card("a", driver), Card("b", driver, dma_buf=errno.EOPNOTSUPP, address=errno.EFAULT)]
    found = run(cards, driver)
    assert (found.way, found.handles) == (Way.STAGED, ())
    assert [text.split(":")[0] for text in found.why] == ["dma_buf", "peermem"]
    assert "nvidia_peermem" in found.why[1]
    assert not cards[0].held


@pytest.mark.parametrize(
    ("driver", "kernel", "said"),
    [
        (Driver(), "5.11.22", "kernel 5.11.22 is older than 5.12"),
        (Driver(), "odd", "older than 5.12"),
        (Driver(exports=False), "6.1", "does not export"),
        (Driver(refuses=1), "6.1", "CUDA error 1"),
    ],
)
def test_why_there_is_no_dma_buf(driver: Driver, kernel: str, said: str) -> None:
    found = run([Card("a", driver)], driver, kernel=kernel)
    assert found.way is Way.PEERMEM
    assert said in found.why[0]


@pytest.mark.parametrize("kernel", ["5.12.0", "5.100", "10.0-rc1"])
def test_kernels_that_are_new_enough(kernel: str) -> None:
    driver = Driver()
    assert run([Card("a", driver)], driver, kernel=kernel).way is Way.DMA_BUF


def test_a_refused_export_says_what_is_odd_about_the_memory() -> None:
    driver = Driver(refuses=1)
    settings = WaySettings()
    for memory, said in (
        (DeviceMemory(BASE + 4096, 2 << 20, 1), "beyond the allocation of 2097152 bytes"),
        (DeviceMemory(4096, 10, 1), "does not know this address"),
    ):
        found = reach(memory, [Card("a", driver)], driver, settings, kernel="6.1", page_bytes=PAGE, close=driver.close)
        assert said in found.why[0]


def test_memory_whose_copies_cannot_be_waited_for_is_staged_unless_the_caller_waits() -> None:
    driver = Driver(syncs=False)
    found = run([Card("a", driver)], driver)
    assert found.way is Way.STAGED
    assert all("SYNC_MEMOPS" in text for text in found.why)
    promised = WaySettings(caller_synchronizes=True)
    assert run([Card("a", driver)], driver, promised).way is Way.DMA_BUF


def test_without_driver_or_nic_it_is_staged() -> None:
    settings = WaySettings()
    found = reach(MEMORY, [Card("a", Driver())], None, settings, no_driver="no libcuda", kernel="6.1", page_bytes=PAGE)
    assert (found.way, found.why) == (Way.STAGED, ("dma_buf: no libcuda", "peermem: no libcuda"))
    assert run([], Driver()).why == ("dma_buf: there is no NIC", "peermem: there is no NIC")


def test_a_way_can_be_forced_or_forbidden() -> None:
    driver = Driver()
    forbidden = run([Card("a", driver)], driver, only(Way.PEERMEM, Way.STAGED))
    assert (forbidden.way, forbidden.why) == (Way.PEERMEM, ("dma_buf: not allowed by the settings",))
    assert run([Card("a", driver)], driver, only(Way.STAGED)).way is Way.STAGED
    with pytest.raises(NoWay, match=r"dma_buf: a: .*EINVAL.*staged: not allowed"):
        run([Card("a", driver, dma_buf=errno.EINVAL)], driver, only(Way.DMA_BUF))
    with pytest.raises(ValueError, match="ways"):
        only()


def test_a_nic_that_will_not_let_go_is_an_error_and_the_others_are_let_go() -> None:
    driver = Driver()
    cards = [Card("a", driver), Card("b", driver), Card("c", driver, dma_buf=errno.EINVAL)]
    cards[0].stuck = True
    with pytest.raises(OSError, match="busy"):
        run(cards, driver)
    assert cards[0].held and not cards[1].held


def test_a_mistake_is_no_reason_for_another_way() -> None:
    driver = Driver()

    class Wrong(Card):
        def register_dma_buf(self, part: DmaBuf, address: int) -> int:
            raise RuntimeError("ours")

    cards = [Card("a", driver), Wrong("b", driver)]
    with pytest.raises(RuntimeError, match="ours"):
        run(cards, driver)
    assert not cards[0].held
