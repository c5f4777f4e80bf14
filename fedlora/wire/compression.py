"""Lossless compression: the bytes of each block shuffled, then one zstd frame a block.

A float's sign and exponent repeat from value to value, its fraction hardly does. Shuffling puts the
first bytes of all values together, then the second ones; each such plane has zstd blocks of its
own, and so a statistic of its own. A frame for each tensor keeps memory at one tensor's.
"""

from collections.abc import Iterable, Sequence
from io import BytesIO

import numpy as np
import zstandard

from fedlora.errors import WireError
from fedlora.wire.encodings import Block

_LEVEL = 3
_LARGEST_WINDOW = 2**21
"""Bytes of zstd's window at this level; a frame that wants more memory is not ours."""
_LENGTH = np.dtype("<u4")


def write_frames(stream: BytesIO, blocks: Iterable[Block], *, count: int, itemsize: int) -> None:
    """Write the lengths of ``count`` frames, then the frames.

    Args:
        stream: where to write, at its end.
        blocks: the blocks; one at a time is in memory.
        count: their number.
        itemsize: bytes of one value, which are shuffled apart.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    table = stream.tell()
    stream.write(bytes(count * _LENGTH.itemsize))
    lengths = [stream.write(_frame(compressor, block, itemsize)) for block in blocks]
    stream.seek(table)
    stream.write(np.array(lengths, _LENGTH).tobytes())


def split_frames(data: memoryview, names: Sequence[str], sizes: Sequence[int]) -> list[memoryview]:
    """Return the frames of ``data`` without decompressing any.

    Args:
        data: what ``write_frames`` wrote, and nothing else.
        names: what errors call each block.
        sizes: bytes that each block must have.

    Raises:
        WireError: the lengths do not add up, or a frame is not exactly of its block's size.
    """
    start = len(names) * _LENGTH.itemsize
    if len(data) < start:
        raise WireError(f"{len(names)} lengths of frames were expected; the message was cut off.")
    lengths = np.frombuffer(data[:start], _LENGTH)
    total = start + int(lengths.sum(dtype=np.uint64))
    if len(data) != total:
        raise WireError(
            f"{total:,} bytes of compressed values were expected, but {len(data):,} came."
        )
    ends = start + np.cumsum(lengths, dtype=np.uint64).astype(np.int64)
    starts = (ends - lengths).tolist()
    frames = [data[a:b] for a, b in zip(starts, ends.tolist(), strict=True)]
    for frame, name, size in zip(frames, names, sizes, strict=True):
        _require_own(frame, name, size)
    return frames


def decompress(frame: memoryview, name: str, *, itemsize: int) -> Block:
    """Return the block of a frame that ``split_frames`` let pass.

    Raises:
        WireError: the frame is broken, or more follows it.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    try:
        shuffled = decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"{name}: its zstd frame is broken: {error}.") from None
    planes = np.frombuffer(shuffled, np.uint8).reshape(itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1)


def _frame(compressor: zstandard.ZstdCompressor, block: Block, itemsize: int) -> bytes:
    frame = compressor.compressobj(size=block.size)
    parts: list[bytes] = []
    for plane in np.ascontiguousarray(block.reshape(-1, itemsize).T):
        parts += frame.compress(plane.data), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return b"".join((*parts, frame.flush()))


def _require_own(frame: memoryview, name: str, size: int) -> None:
    """Refuse what would decompress to another size, has no checksum, or is longer than need be."""
    if len(frame) > size + size // 128 + 128:
        raise WireError(f"{name}: {len(frame):,} bytes are too long for a block of {size:,}.")
    try:
        came = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:
        raise WireError(f"{name}: it is not a zstd frame: {error}.") from None
    if came.content_size != size:
        raise WireError(
            f"{name}: a block of {size:,} bytes was expected, but the frame claims "
            f"{came.content_size:,}."
        )
    if not came.has_checksum or came.dict_id:
        raise WireError(f"{name}: a zstd frame with checksum and without dictionary was expected.")
