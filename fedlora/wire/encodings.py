"""How an adapter's values become bytes, a tensor at a time: as they are, or in 16, 8 or 4 bits.

``int8`` and ``nf4`` work on *rows*, the values of one rank component of a factor: row k of A and
column k of B. A head's are the rows of its matrix, or its whole vector. What each codec makes of a
finite value x, next to the rounding of float32 itself:

=====  =================================  ==========================================================
codec  bytes                              ``abs(decoded - x)`` is at most
=====  =================================  ==========================================================
fp32   4 a value                          0
bf16   2 a value                          2⁻⁸·abs(x), or 2⁻¹³⁴ for the smallest
int8   1 a value, 4 a row                 half the row's scale, its largest magnitude / 127
nf4    ½ a value, 1 a block of 64, 4 a    0.152 of the block's scale, its largest magnitude rounded
       row                                up to a 255th of the row's
=====  =================================  ==========================================================

Guarantees:
    Rounding is to the nearest, and the same everywhere. Zero stays zero, and a row of ``int8`` or
    ``nf4`` whose largest magnitude is below 2⁻¹¹⁸ becomes zero. Other codecs than ``fp32`` take and
    give finite values only. Encoding what was decoded gives the same bytes again, but for ``nf4``.

References:
    NF4: Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E. Scales in 8 bits: the
    same section, there against the mean of all blocks and rounded to the nearest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.adapter import AdapterSpec, TensorSpec
from fedlora.errors import AdapterError, WireError
from fedlora.sections import Codec

# NumPy's loops rather than torch's: a tensor is so small that waking torch's threads for it gains
# little, and on a busy machine waiting for them costs a hundred times the work.

Values = NDArray[np.float32]
Block = NDArray[np.uint8]
"""The bytes of one tensor, flat."""

NF4_BLOCK = 64
"""Values of a row that share a scale."""
NF4_LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
], np.float32)  # fmt: skip

_BETWEEN_LEVELS = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
_PAIRS = np.array([(high, low) for high in NF4_LEVELS for low in NF4_LEVELS]).view(np.uint64)
"""The two levels that each byte stands for, as one number."""
_STEPS = np.float32(255)
"""What the scale of a row's largest block counts."""
_LARGEST_CODE = np.float32(127)
_LARGEST = np.finfo(np.float32).max
_LARGEST_BF16 = np.float32(torch.finfo(torch.bfloat16).max)
_LARGEST_SCALE = np.nextafter(_LARGEST / _LARGEST_CODE, np.float32(0))
"""Of int8: 127 times the next number is infinite."""
_SMALLEST_PEAK = np.float32(2.0**-118)
"""Of a row that is not zero: 1/255 of it is a normal number, which keeps its precision."""
_ZERO, _INFINITY = np.float32(0), np.float32(np.inf)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """A codec: pure functions between the values of a tensor and its bytes."""

    itemsize: int
    """Bytes that belong together; compression shuffles them apart."""
    size: Callable[[TensorSpec], int]
    """Bytes of a tensor's block."""
    encode: Callable[[TensorSpec, Values], Block]
    """Return the block of a tensor's values, which have its shape.

    Raises ``AdapterError``, but not for ``fp32``, when a value is not finite.
    """
    decode: Callable[[TensorSpec, Block], Values]
    """Return the values of a block of the right size, in the tensor's shape; perhaps a view of it.

    Raises ``WireError``, naming the tensor, when ``encode`` would never have written the block; for
    ``nf4``, when its scales or its unused bits are not as ``encode`` writes them.
    """


def encoded_size(spec: AdapterSpec, codec: Codec) -> int:
    """Return the bytes of an adapter's values, without a header and before compression."""
    return sum(map(ENCODINGS[codec].size, spec.tensors))


def rounded(values: Tensor, spec: AdapterSpec, *, codec: Codec) -> Tensor:
    """Return what a reader gets of ``values`` when they travel with ``codec``.

    Args:
        values: ``(spec.size,)`` float32 on the CPU.
        spec: the adapter, or its part, that they are of.
        codec: how they are encoded.

    Returns:
        As ``values``, in memory of its own.

    Raises:
        AdapterError: a value is not finite, and the codec is not ``fp32``.
    """
    result, encoding = torch.empty_like(values), ENCODINGS[codec]
    for tensor, start in spec.offsets():
        part = slice(start, start + tensor.size)
        block = encoding.encode(tensor, values[part].numpy().reshape(tensor.shape))
        result[part].numpy().reshape(tensor.shape)[...] = encoding.decode(tensor, block)
    return result


def _encode_fp32(_: TensorSpec, values: Values) -> Block:
    return _bytes(values)


def _decode_fp32(tensor: TensorSpec, block: Block) -> Values:
    return block.view("<f4").reshape(tensor.shape)


def _encode_bf16(tensor: TensorSpec, values: Values) -> Block:
    _require_finite(tensor, values)
    bits = values.clip(-_LARGEST_BF16, _LARGEST_BF16).reshape(-1).view(np.uint32)
    # Of the half that is cut off, more than a half, or a half above an odd number, rounds up.
    rounded_up = bits + (bits >> 16 & 1) + np.uint32(0x7FFF)
    return (rounded_up >> 16).astype("<u2").view(np.uint8)


def _decode_bf16(tensor: TensorSpec, block: Block) -> Values:
    values = (block.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if not np.isfinite(values).all():
        raise WireError(f"{tensor.name}: finite values were expected, but one is not.")
    return values.reshape(tensor.shape)


def _encode_int8(tensor: TensorSpec, values: Values) -> Block:
    rows = _rows(tensor, values)
    peaks = np.abs(rows).max(1)
    _require_finite(tensor, peaks)
    scales = _int8_scales(peaks)
    units = rows / _divisor(scales)[:, None]
    codes = np.rint(units, out=units).astype(np.int8)
    return np.concatenate((_bytes(scales), codes.reshape(-1).view(np.uint8)))


def _decode_int8(tensor: TensorSpec, block: Block) -> Values:
    rank, width = _row_shape(tensor)
    scales = _floats(block[: 4 * rank])
    codes = block[4 * rank :].view(np.int8).reshape(rank, width)
    _require_scales(tensor, scales, lambda: _int8_scales(_LARGEST_CODE * scales))
    largest = np.maximum(codes.max(1), -codes.min(1).astype(np.int16))
    wrong = np.flatnonzero(largest != np.where(scales > 0, _LARGEST_CODE, 0))
    if wrong.size:
        row = wrong[0]
        raise WireError(
            f"{tensor.name}: the largest int8 of row {row} was expected to be "
            f"{127 if scales[row] else 0}, but it is {largest[row]}."
        )
    return _as_stored(tensor, codes.astype(np.float32) * scales[:, None])


def _int8_scales(peaks: Values) -> Values:
    """Return the scales of rows with such largest magnitudes, 0 for what counts as zero."""
    return (_peaks(peaks) / _LARGEST_CODE).clip(max=_LARGEST_SCALE)


def _encode_nf4(tensor: TensorSpec, values: Values) -> Block:
    rows = _rows(tensor, values)
    rank, width = rows.shape
    padded = np.pad(rows, ((0, 0), (0, -width % NF4_BLOCK))) if width % NF4_BLOCK else rows
    blocks = padded.reshape(rank, -1, NF4_BLOCK)
    block_peaks = np.abs(blocks).max(2)
    _require_finite(tensor, block_peaks)
    peaks = _peaks(block_peaks.max(1))
    block_peaks[peaks == 0] = 0
    shares = block_peaks.astype(np.float64) / _divisor(peaks)[:, None]
    steps = np.ceil(shares * _STEPS).astype(np.uint8)
    steps += _nf4_scales(peaks, steps) < block_peaks  # by a rounding
    units = blocks / _divisor(_nf4_scales(peaks, steps))[:, :, None]
    codes = np.zeros(units.shape, np.uint8)
    for middle in _BETWEEN_LEVELS:
        codes += units > middle
    flat = codes.reshape(rank, -1)[:, :width].reshape(-1)
    packed = flat[0::2] << 4
    packed[: flat.size // 2] |= flat[1::2]
    return np.concatenate((_bytes(peaks), steps.reshape(-1), packed))


def _decode_nf4(tensor: TensorSpec, block: Block) -> Values:
    rank, width = _row_shape(tensor)
    codes_at = block.size - (tensor.size + 1) // 2
    peaks = _floats(block[: 4 * rank])
    steps = block[4 * rank : codes_at].reshape(rank, -1)
    _require_scales(tensor, peaks, lambda: _peaks(peaks))
    if (steps.max(1) != np.where(peaks > 0, _STEPS, 0)).any():
        raise WireError(f"{tensor.name}: in each row, the largest scale of a block must be 255.")
    if tensor.size % 2 and block[-1] & 15:
        raise WireError(f"{tensor.name}: the half of a byte behind its values must be zero.")
    units = _PAIRS.take(block[codes_at:]).view(np.float32)[: tensor.size].reshape(rank, width)
    scales = np.repeat(_nf4_scales(peaks, steps), NF4_BLOCK, axis=1)[:, :width]
    if units[scales == 0].any():
        raise WireError(f"{tensor.name}: a block with a scale of zero must hold zeros.")
    return _as_stored(tensor, units * scales)


def _nf4_scales(peaks: Values, steps: NDArray[np.uint8]) -> Values:
    """Return the blocks' scales: of the largest block exactly its row's largest magnitude."""
    return peaks[:, None] * (steps.astype(np.float32) / _STEPS)


def _size_nf4(tensor: TensorSpec) -> int:
    rank, width = _row_shape(tensor)
    return rank * (4 + -(-width // NF4_BLOCK)) + (tensor.size + 1) // 2


def _peaks(magnitudes: Values) -> Values:
    """Return the largest magnitudes of rows as they are encoded: 0 for what counts as zero."""
    return np.where(magnitudes >= _SMALLEST_PEAK, magnitudes.clip(max=_LARGEST), _ZERO)


def _divisor(scales: Values) -> Values:
    """Return the scales, but infinity for zero: what is divided by it becomes zero."""
    return np.where(scales > 0, scales, _INFINITY)


def _require_finite(tensor: TensorSpec, values: Values) -> None:
    if not np.isfinite(values).all():
        raise AdapterError(
            f"{tensor.name} holds values that are not finite; only codec fp32 carries such values."
        )


def _require_scales(tensor: TensorSpec, came: Values, expected: Callable[[], Values]) -> None:
    """Refuse scales that differ, in any bit, from what would have been written for them."""
    with np.errstate(over="ignore", invalid="ignore"):  # they may be anything
        wrong = np.flatnonzero(came.view(np.uint32) != expected().view(np.uint32))
    if wrong.size:
        raise WireError(
            f"{tensor.name}: the scale of row {wrong[0]} is {came[wrong[0]]}; zero or a positive "
            "number of float32's normal range was expected, rounded as the encoder rounds it."
        )


def _row_shape(tensor: TensorSpec) -> tuple[int, int]:
    """Return the number of rows and the values of each; a vector is one row."""
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
    return (columns, rows) if _is_turned(tensor) else (rows, columns)


def _rows(tensor: TensorSpec, values: Values) -> Values:
    """Return the rows one after another in memory."""
    turned = values.T if _is_turned(tensor) else values
    return np.ascontiguousarray(turned).reshape(_row_shape(tensor))


def _as_stored(tensor: TensorSpec, rows: Values) -> Values:
    """Return the values in the tensor's own shape."""
    return rows.T if _is_turned(tensor) else rows.reshape(tensor.shape)


def _is_turned(tensor: TensorSpec) -> bool:
    """Tell whether the rows are the columns of the tensor's own shape, the rank being those."""
    return tensor.kind.rank_axis == 1


def _bytes(values: Values) -> Block:
    return values.astype("<f4", copy=False).reshape(-1).view(np.uint8)


def _floats(block: Block) -> Values:
    return block.view("<f4").astype(np.float32)


ENCODINGS: Mapping[Codec, Encoding] = {
    "fp32": Encoding(
        itemsize=4,
        size=lambda tensor: 4 * tensor.size,
        encode=_encode_fp32,
        decode=_decode_fp32,
    ),
    "bf16": Encoding(
        itemsize=2,
        size=lambda tensor: 2 * tensor.size,
        encode=_encode_bf16,
        decode=_decode_bf16,
    ),
    "int8": Encoding(
        itemsize=1,
        size=lambda tensor: 4 * _row_shape(tensor)[0] + tensor.size,
        encode=_encode_int8,
        decode=_decode_int8,
    ),
    "nf4": Encoding(itemsize=1, size=_size_nf4, encode=_encode_nf4, decode=_decode_nf4),
}
