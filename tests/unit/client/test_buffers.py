"""Callers' memory: every form that is taken, and every refusal, by the name of the argument."""

from __future__ import annotations

import ctypes
import gc
import mmap
import weakref

import numpy as np
import pytest

from kvstore.client.buffers import Extents, Places, Registry, Wanted, memory_of, places
from kvstore.client.face import ClientFace

SIZE = 4096


def into(given: object, blocks: int = 3, size: int = SIZE) -> Places:
    return places(given, Wanted("into", blocks, size, writing=True), Registry())


def source(given: object, blocks: int = 3, size: int = SIZE) -> Places:
    return places(given, Wanted("source", blocks, size, writing=False), Registry())


def read(found: Places) -> list[bytes]:
    """What lies at the places, block by block."""
    lengths = np.broadcast_to(
        found.lengths.reshape(-1, found.pieces), (len(found.addresses) // found.pieces, found.pieces)
    )
    rows = found.addresses.reshape(-1, found.pieces).tolist()
    return [
        b"".join(ctypes.string_at(a, n) for a, n in zip(row, sizes, strict=True))
        for row, sizes in zip(rows, lengths.tolist(), strict=True)
    ]


def data(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(256, size=count, dtype=np.uint8)


class Lent:
    """What a framework shows: DLPack and nothing else."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self._array, self._device = array, device

    def __dlpack__(self, **options: object) -> object:
        return self._array.__dlpack__(**options)  # type: ignore[arg-type]

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self._device, 0)


def test_one_buffer_of_every_kind() -> None:
    bytes_ = data(3 * SIZE)
    mapped = mmap.mmap(-1, 3 * SIZE)
    mapped[:] = bytes_.tobytes()
    kinds = (bytes_, bytes_.tobytes(), bytearray(bytes_.tobytes()), memoryview(bytes_), mapped, Lent(bytes_))
    for given in (*kinds, bytes_.view(np.float32).reshape(3, -1)):
        assert read(source(given)) == [bytes_[i * SIZE : (i + 1) * SIZE].tobytes() for i in range(3)]


def test_a_list_is_one_buffer_a_block() -> None:
    blocks = [data(SIZE + 0 * i) for i in range(3)]
    assert read(source(blocks)) == [block.tobytes() for block in blocks]
    assert read(source(tuple(blocks))) == [block.tobytes() for block in blocks]


def test_extents_are_read_in_their_order() -> None:
    first, second = data(4 * SIZE), data(5 * SIZE)
    table = np.array([[[0, 0, 1000], [1, 5, 96]], [[1, 4096, 96], [0, 2000, 1000]]], dtype=np.int64)
    found = source(Extents([first, second], table), blocks=2, size=1096)
    assert read(found) == [
        first[:1000].tobytes() + second[5:101].tobytes(),
        second[4096:4192].tobytes() + first[2000:3000].tobytes(),
    ]
    assert read(found.of(1, 2)) == read(found)[1:]
    assert read(found.pick([1, 0])) == read(found)[::-1]


def test_strided_extents() -> None:
    layers = [data(8 * 512) for _ in range(4)]
    found = source(Extents.strided(layers, [512, 2048], 512), blocks=2, size=2048)
    assert read(found)[0] == b"".join(layer[512:1024].tobytes() for layer in layers)
    assert read(found)[1] == b"".join(layer[2048:2560].tobytes() for layer in layers)


def test_windows_of_one_buffer() -> None:
    bytes_ = data(3 * SIZE)
    assert read(source(bytes_).of(1, 3)) == [bytes_[SIZE : 2 * SIZE].tobytes(), bytes_[2 * SIZE :].tobytes()]
    assert read(source(bytes_).pick([2])) == [bytes_[2 * SIZE :].tobytes()]


def test_no_blocks_need_no_memory() -> None:
    assert len(into(bytearray(), blocks=0).addresses) == 0
    assert len(into([], blocks=0).addresses) == 0
    assert len(into(Extents([], np.empty((0, 0, 3), np.int64)), blocks=0).addresses) == 0


def test_a_destination_may_be_longer_and_a_source_may_not() -> None:
    assert len(into(bytearray(4 * SIZE)).addresses) == 3
    with pytest.raises(ValueError, match=f"source: {4 * SIZE} bytes, must be {3 * SIZE}"):
        source(bytearray(4 * SIZE))


def read_only() -> np.ndarray:
    array = np.zeros(3 * SIZE, np.uint8)
    array.flags.writeable = False
    return array


GOOD = np.zeros(3 * SIZE, np.uint8)


def extents(*rows: tuple[int, int, int]) -> Extents:
    return Extents([GOOD], np.array([[row] for row in rows], dtype=np.int64))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (bytearray(SIZE), f"into: {SIZE} bytes, must be at least {3 * SIZE}"),
        (bytes(3 * SIZE), "into: is read-only"),
        (read_only(), "into: is read-only"),
        (Lent(read_only()), "into: is read-only"),
        (np.zeros((3, 2 * SIZE), np.uint8)[:, ::2], "into: is not contiguous"),
        (Lent(np.zeros((3, 2 * SIZE), np.uint8)[:, ::2]), "into: is not contiguous"),
        (memoryview(bytearray(6 * SIZE))[::2], "into: is not contiguous"),
        (Lent(GOOD, device=10), "into: lies in ROCm memory; taken are the host's and CUDA devices'"),
        (Lent(GOOD, device=8), "into: lies in Metal memory"),
        (Lent(GOOD, device=13), "into: lies in CUDA managed memory"),
        (Lent(GOOD, device=99), "into: lies in memory of DLPack device type 99"),
        ([GOOD, GOOD], "into: 2 buffers, must be one a block, 3"),
        ([bytearray(SIZE), bytearray(SIZE), bytearray(5)], r"into\[2\]: 5 bytes"),
        ([bytearray(SIZE), bytes(SIZE), bytearray(SIZE)], r"into\[1\]: is read-only"),
        (Extents([GOOD], np.zeros((3, 1, 3), np.int32)), r"into\.table: int32"),
        (Extents([GOOD], np.zeros((3, 3), np.int64)), r"into\.table: int64 \(3, 3\)"),
        (Extents([GOOD], [[1]]), r"into\.table: list"),  # type: ignore[arg-type]
        (Extents([GOOD], np.zeros((2, 1, 3), np.int64)), r"into\.table: 2 blocks, must be 3"),
        (Extents([GOOD], np.zeros((3, 0, 3), np.int64)), r"into\.table: 0 pieces a block"),
        (extents((0, 0, SIZE), (1, 0, SIZE), (0, 0, SIZE)), r"into\.table\[1, 0\]: 1 is no buffer index"),
        (extents((0, 0, SIZE), (-1, 0, SIZE), (0, 0, SIZE)), r"into\.table\[1, 0\]: -1 is no buffer index"),
        (extents((0, 0, SIZE), (0, 0, 0), (0, 0, SIZE)), r"into\.table\[1, 0\]: 0 is no length"),
        (extents((0, -1, SIZE), (0, 0, SIZE), (0, 0, SIZE)), r"into\.table\[0, 0\]: -1 is no offset"),
        (extents((0, 2 * SIZE + 1, SIZE), (0, 0, SIZE), (0, 0, SIZE)), r"into\.table\[0, 0\]: 8193 is no offset"),
        (extents((0, 2**63 - 1, SIZE), (0, 0, SIZE), (0, 0, SIZE)), r"into\.table\[0, 0\]: .* is no offset"),
        (extents((0, 0, 2**63 - 1), (0, 0, SIZE), (0, 0, SIZE)), r"into\.table\[0, 0\]: .* is no length"),
        (extents((0, 0, SIZE), (0, 0, SIZE), (0, 0, 5)), r"into\.table\[2\]: its lengths add up to 5, must be 4096"),
        (Extents([read_only()], np.zeros((3, 1, 3), np.int64)), r"into\.buffers\[0\]: is read-only"),
    ],
)
def test_refusals_name_the_argument(given: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        into(given)


@pytest.mark.parametrize("given", [3, "text", object(), None, {}, np.array([object()])])
def test_what_is_no_memory(given: object) -> None:
    with pytest.raises(TypeError, match=r"^into: "):
        into(given)


def test_registered_buffers_are_not_looked_at_again() -> None:
    looked: list[int] = []

    class Counted(Lent):
        def __dlpack_device__(self) -> tuple[int, int]:
            looked.append(1)
            return (1, 0)

    buffer, registry = Counted(np.zeros(3 * SIZE, np.uint8)), Registry()
    registry.add([buffer])
    registry.add([buffer])
    wanted = Wanted("into", 3, SIZE, writing=True)
    for _ in range(5):
        places(buffer, wanted, registry)
    assert len(looked) == 2
    registry.remove([buffer])
    places(buffer, wanted, registry)
    assert len(looked) == 2
    registry.remove([buffer])
    places(buffer, wanted, registry)
    assert len(looked) == 3


def test_a_registration_ends_once() -> None:
    """What was registered twice is known until both are closed, however often each is."""
    face = ClientFace(1.0)
    buffer = bytearray(SIZE)
    first = face.register([buffer])
    with face.register([buffer]):
        first.close()
        first.close()
        with pytest.raises(BufferError):
            buffer.extend(b"more")  # it is known where it lies
    buffer.extend(b"more")
    with face.register([buffer]):
        pass
    buffer.extend(b"more")  # the next time, too


def test_what_was_registered_is_kept_alive_no_longer() -> None:
    face = ClientFace(1.0)
    array = np.zeros(SIZE, np.uint8)
    there = weakref.ref(array)
    registration = face.register([array])
    registration.close()
    del array, registration
    gc.collect()
    assert there() is None


def test_memory_of_keeps_its_owner() -> None:
    buffer = bytearray(SIZE)
    memory = memory_of(buffer, "x")
    with pytest.raises(BufferError):
        buffer.extend(b"more")  # it could move
    del memory
    buffer.extend(b"more")


def test_torch_tensors_of_types_that_numpy_has_not() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(3 * SIZE // 2).to(torch.bfloat16)
    assert read(source(tensor)) == [
        tensor.view(torch.uint8).numpy()[i * SIZE : (i + 1) * SIZE].tobytes() for i in range(3)
    ]
    with pytest.raises(ValueError, match=r"^into: cannot be lent"):
        into(torch.zeros(3 * SIZE // 4, requires_grad=True))
