"""Frames: lossless, checked before they are decompressed, and never larger than expected."""

import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
import torch
import zstandard

from fedlora.errors import WireError
from fedlora.wire.compression import decompress, split_frames, write_frames

SIZE = 4096
ZSTD = zstandard.ZstdCompressor(level=3, write_checksum=True)
MEBIBYTE = 2**20


def floats(count: int, *, seed: int = 0) -> np.ndarray:
    """Return the bytes of random numbers as training makes them: of about the same magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * 1e-4).numpy().view(np.uint8)


def noise(size: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def written(*blocks: np.ndarray, itemsize: int = 1) -> bytes:
    stream = BytesIO()
    write_frames(stream, iter(blocks), count=len(blocks), itemsize=itemsize)
    return stream.getvalue()


def joined(*frames: bytes) -> bytes:
    return struct.pack(f"<{len(frames)}I", *map(len, frames)) + b"".join(frames)


def read(data: bytes, *sizes: int, itemsize: int = 1) -> list[bytes]:
    names = [f"m{i}" for i in range(len(sizes))]
    frames = split_frames(memoryview(data), names, sizes)
    return [
        decompress(frame, name, itemsize=itemsize).tobytes()
        for frame, name in zip(frames, names, strict=True)
    ]


@contextmanager
def little_memory(limit: int = MEBIBYTE) -> Iterator[None]:
    """Fail if Python and zstandard together take more than ``limit`` bytes at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("make", [floats, noise, lambda n: np.zeros(n, np.uint8)])
def test_blocks_come_back(make, itemsize):
    """Small and large, alike or all different; the largest is larger than zstd's window."""
    blocks = [make(size) for size in (4, 400, 40_000, 3 * MEBIBYTE)]
    data = written(*blocks, itemsize=itemsize)
    sizes = [block.size for block in blocks]
    assert read(data, *sizes, itemsize=itemsize) == [block.tobytes() for block in blocks]


def test_shuffled_floats_take_less():
    """Signs and exponents have frames' blocks of their own, also in small tensors."""
    for count in (1536, 65_536):
        block = floats(count)
        assert len(written(block, itemsize=4)) < 0.9 * block.size
        assert len(written(block, itemsize=1)) > 0.9 * block.size
        short = block.reshape(-1, 4)[:, 2:].reshape(-1).copy()  # as bfloat16
        assert len(written(short, itemsize=2)) < 0.77 * short.size


@pytest.mark.parametrize("size", [1, 2, 100, 128_001, 300_000])
def test_what_cannot_be_compressed_still_fits(size):
    """The longest frame that the writer makes is one that the reader takes."""
    block = noise(size)
    assert read(written(block), size) == [block.tobytes()]
    longest = noise(4 * size)
    assert read(written(longest, itemsize=4), 4 * size, itemsize=4) == [longest.tobytes()]


def test_a_bomb_is_refused_by_what_it_claims():
    """64 MiB of zeros in a few kilobytes; the frame's own number is compared first."""
    bomb = ZSTD.compress(bytes(64 * MEBIBYTE))
    with little_memory(), pytest.raises(WireError, match=r"m0: .* the frame claims 67,108,864"):
        read(joined(bomb), SIZE * 100)


def test_a_bomb_that_lies_is_stopped():
    """It claims what is expected and holds more: nothing is written past what it claims."""
    bomb = bytearray(ZSTD.compress(bytes(64 * MEBIBYTE)))
    assert bomb[4] >> 6 == 2  # four bytes of content size, behind one of window size
    struct.pack_into("<I", bomb, 6, SIZE * 100)
    with little_memory(), pytest.raises(WireError, match="m0: its zstd frame is broken"):
        read(joined(bytes(bomb)), SIZE * 100)


@pytest.mark.parametrize("window", [22, 27, 31])
def test_a_frame_that_wants_a_large_window_is_refused(window):
    """Cut off, so that it would have to be decompressed piece by piece through its window."""
    descriptor = bytes([0b1000_0100, (window - 10) << 3])  # content size in four bytes, checksum
    frame = zstandard.MAGIC_NUMBER.to_bytes(4, "little") + descriptor + struct.pack("<I", SIZE)
    with pytest.raises(WireError, match=r"m0: .* requires too much memory"):
        read(joined(frame + b"\x00\x01\x00"), SIZE)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (zstandard.ZstdCompressor(write_checksum=False).compress(bytes(SIZE)), "with checksum"),
        (ZSTD.compress(bytes(SIZE - 1)), "claims 4,095"),
        (ZSTD.compress(bytes(SIZE + 1)), "claims 4,097"),
        (
            zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(
                bytes(SIZE)
            ),
            "the frame claims",
        ),
        (ZSTD.compress(bytes(SIZE)) + b"\x00", "broken"),
        (ZSTD.compress(bytes(SIZE)) * 2, "broken"),
        (ZSTD.compress(bytes(SIZE)) + b"\x50\x2a\x4d\x18\x00\x00\x00\x00", "broken"),
        (ZSTD.compress(bytes(SIZE))[:-1], "broken"),
        (
            b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + ZSTD.compress(bytes(SIZE)),
            "the frame claims 4\\.",
        ),
        (ZSTD.compress(bytes(SIZE))[:-4] + bytes(4), "checksum"),
        (b"", "it is not a zstd frame"),
        (b"\x28\xb5", "it is not a zstd frame"),
        (noise(100).tobytes(), "it is not a zstd frame"),
        (noise(SIZE + 1000).tobytes(), "too long for a block of 4,096"),
    ],
)
def test_a_frame_that_is_not_ours_is_refused_by_name(frame, says):
    """Checksum, content size, nothing before or behind, nothing broken, nothing padded."""
    with little_memory(), pytest.raises(WireError, match=f"m0: .*{says}"):
        read(joined(frame), SIZE)


def test_a_frame_of_a_dictionary_is_refused():
    """Its content would depend on something that is not in the message."""
    dictionary = zstandard.ZstdCompressionDict(b"fedlora" * 100, zstandard.DICT_TYPE_RAWCONTENT)
    trained = zstandard.train_dictionary(1024, [noise(200, seed=i).tobytes() for i in range(50)])
    for content in (dictionary, trained):
        made = zstandard.ZstdCompressor(dict_data=content, write_checksum=True)
        with pytest.raises(WireError):
            read(joined(made.compress(b"fedlora" * 585 + b"x")), SIZE)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[:7], "2 lengths of frames were expected"),
        (lambda data: data[:-1], "bytes of compressed values were expected"),
        (lambda data: data + b"\x00", "bytes of compressed values were expected"),
        (lambda data: b"\xff" * 8 + data[8:], "8,589,934,598 bytes of compressed values"),
        (lambda data: data[4:8] + data[:4] + data[8:], "m"),
    ],
    ids=["no lengths", "short", "long", "false", "swapped"],
)
def test_lengths_must_add_up(spoil, says):
    """Before any frame is looked at; frames that share bytes cannot be written."""
    data = written(floats(SIZE // 4), noise(SIZE))
    read(data, SIZE, SIZE)
    with little_memory(), pytest.raises(WireError, match=says):
        read(spoil(data), SIZE, SIZE)


def test_a_flipped_bit_anywhere_is_noticed():
    """By the frame's structure or by its checksum."""
    block = floats(64)
    data = written(block, itemsize=4)
    for place in range(len(data)):
        for bit in range(8):
            spoilt = bytearray(data)
            spoilt[place] ^= 1 << bit
            try:
                assert read(bytes(spoilt), 256, itemsize=4) == [block.tobytes()]
            except WireError:
                continue
