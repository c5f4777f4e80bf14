"""How an adapter's values become bytes, a tensor at a time: as they are, or in 16, 8 or 4 bits.

``int8`` and ``nf4`` work on *rows*, the values of one rank component of a factor: row k of A and
column k of B. What each codec makes of a finite value x, next to the rounding of float32 itself:

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
from torch.nn.functional import pad

from fedlora.adapter import AdapterSpec, TensorSpec
from fedlora.errors import AdapterError, WireError
from fedlora.sections import Codec

Block = NDArray[np.uint8]
"""The bytes of one tensor, flat."""

NF4_BLOCK = 64
"""Values of a row that share a scale."""
NF4_LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
])  # fmt: skip

_BETWEEN_LEVELS = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
_PAIRS = torch.cartesian_prod(NF4_LEVELS, NF4_LEVELS).numpy().view(np.uint64).ravel()
"""The two levels that each byte stands for."""
_STEPS = 255
"""What the scale of the row's largest block counts."""
_LARGEST_CODE = 127
_LARGEST = torch.finfo(torch.float32).max
_LARGEST_BF16 = torch.finfo(torch.bfloat16).max
_LARGEST_SCALE = float(np.nextafter(np.float32(_LARGEST / _LARGEST_CODE), np.float32(0)))
"""Of int8: 127 times the next number is infinite."""
_SMALLEST_PEAK = 2.0**-118
"""Of a row that is not zero: 1/255 of it is a normal number, which keeps its precision."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """A codec: pure functions between the values of a tensor and its bytes."""

    itemsize: int
    """Bytes that belong together; compression shuffles them apart."""
    size: Callable[[TensorSpec], int]
    """Bytes of a tensor's block."""
    encode: Callable[[TensorSpec, Tensor], Block]
    """Return the block of a tensor's values, which have its shape.

    Raises ``AdapterError``, but not for ``fp32``, when a value is not finite.
    """
    decode: Callable[[TensorSpec, Block], Tensor]
    """Return the values of a block of the right size, in the tensor's shape and its own memory.

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
        block = encoding.encode(tensor, values[part].view(tensor.shape))
        result[part].view(tensor.shape).copy_(encoding.decode(tensor, block))
    return result


def _encode_fp32(_: TensorSpec, values: Tensor) -> Block:
    return _bytes(values)


def _decode_fp32(tensor: TensorSpec, block: Block) -> Tensor:
    return _floats(block).view(tensor.shape)


def _encode_bf16(tensor: TensorSpec, values: Tensor) -> Block:
    _require_finite(tensor, values)
    short = values.clamp(-_LARGEST_BF16, _LARGEST_BF16).to(torch.bfloat16)
    return short.view(torch.int16).numpy().astype("<i2", copy=False).reshape(-1).view(np.uint8)


def _decode_bf16(tensor: TensorSpec, block: Block) -> Tensor:
    short = torch.from_numpy(block.view("<i2").astype(np.int16)).view(torch.bfloat16)
    if not short.isfinite().all():
        raise WireError(f"{tensor.name}: finite values were expected, but one is not.")
    return short.float().view(tensor.shape)


def _encode_int8(tensor: TensorSpec, values: Tensor) -> Block:
    rows = _rows(tensor, values)
    peaks = rows.abs().amax(1)
    _require_finite(tensor, peaks)
    scales = _int8_scales(peaks)
    codes = (rows / _divisor(scales)[:, None]).round_().to(torch.int8)
    return np.concatenate((_bytes(scales), codes.numpy().reshape(-1).view(np.uint8)))


def _decode_int8(tensor: TensorSpec, block: Block) -> Tensor:
    rank, width = _row_shape(tensor)
    scales = _floats(block[: 4 * rank])
    codes = torch.from_numpy(block[4 * rank :].view(np.int8).copy()).view(rank, width)
    _require_scales(tensor, scales, _int8_scales(_LARGEST_CODE * scales))
    low, high = (end.int() for end in codes.aminmax(dim=1))
    largest = torch.maximum(-low, high)
    wrong = largest != torch.where(scales > 0, _LARGEST_CODE, 0)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise WireError(
            f"{tensor.name}: the largest int8 of row {row} was expected to be "
            f"{_LARGEST_CODE if scales[row] else 0}, but it is {int(largest[row])}."
        )
    return _as_stored(tensor, codes * scales[:, None])


def _int8_scales(peaks: Tensor) -> Tensor:
    """Return the scales of rows with such largest magnitudes, 0 for what counts as zero."""
    return (_peaks(peaks) / _LARGEST_CODE).clamp_(max=_LARGEST_SCALE)


def _encode_nf4(tensor: TensorSpec, values: Tensor) -> Block:
    rows = _rows(tensor, values)
    rank, width = rows.shape
    blocks = pad(rows, (0, -width % NF4_BLOCK)).view(rank, -1, NF4_BLOCK)
    block_peaks = blocks.abs().amax(2)
    _require_finite(tensor, block_peaks)
    peaks = _peaks(block_peaks.amax(1))
    shares = block_peaks.double() / _divisor(peaks)[:, None]
    steps = (shares * _STEPS).ceil_().to(torch.uint8)
    steps += _nf4_scales(peaks, steps) < block_peaks * (peaks > 0)[:, None]  # by a rounding
    units = blocks / _divisor(_nf4_scales(peaks, steps))[:, :, None]
    codes = torch.bucketize(units, _BETWEEN_LEVELS, out_int32=True).to(torch.uint8)
    flat = codes.view(rank, -1)[:, :width].reshape(-1)
    flat = pad(flat, (0, flat.numel() % 2))
    packed = flat[0::2] << 4 | flat[1::2]
    return np.concatenate((_bytes(peaks), steps.numpy().reshape(-1), packed.numpy()))


def _decode_nf4(tensor: TensorSpec, block: Block) -> Tensor:
    rank, width = _row_shape(tensor)
    codes_at = _size_nf4(tensor) - (tensor.size + 1) // 2
    peaks = _floats(block[: 4 * rank])
    steps = torch.from_numpy(block[4 * rank : codes_at].copy()).view(rank, -1)
    _require_scales(tensor, peaks, _peaks(peaks))
    if not torch.equal(steps.amax(1), torch.where(peaks > 0, _STEPS, 0).to(torch.uint8)):
        raise WireError(f"{tensor.name}: in each row, the largest scale of a block must be 255.")
    units = torch.from_numpy(_PAIRS.take(block[codes_at:]).view(np.float32))
    if tensor.size % 2 and block[-1] & 15:
        raise WireError(f"{tensor.name}: the half of a byte behind its values must be zero.")
    scales = _nf4_scales(peaks, steps).repeat_interleave(NF4_BLOCK, 1)[:, :width]
    rows = units[: tensor.size].view(rank, width)
    if rows[scales == 0].any():
        raise WireError(f"{tensor.name}: a block with a scale of zero must hold zeros.")
    return _as_stored(tensor, rows * scales)


def _nf4_scales(peaks: Tensor, steps: Tensor) -> Tensor:
    """Return the blocks' scales: of the largest block exactly its row's largest magnitude."""
    return peaks[:, None] * (steps / _STEPS)


def _size_nf4(tensor: TensorSpec) -> int:
    rank, width = _row_shape(tensor)
    return rank * (4 + -(-width // NF4_BLOCK)) + (tensor.size + 1) // 2


def _peaks(magnitudes: Tensor) -> Tensor:
    """Return the largest magnitudes of rows as they are encoded: 0 for what counts as zero."""
    return torch.where(magnitudes >= _SMALLEST_PEAK, magnitudes.clamp(max=_LARGEST), 0.0)


def _divisor(scales: Tensor) -> Tensor:
    """Return the scales, but infinity for zero: what is divided by it becomes zero."""
    return torch.where(scales > 0, scales, torch.inf)


def _require_finite(tensor: TensorSpec, values: Tensor) -> None:
    if not values.isfinite().all():
        raise AdapterError(
            f"{tensor.name} holds values that are not finite; only codec fp32 carries such values."
        )


def _require_scales(tensor: TensorSpec, came: Tensor, expected: Tensor) -> None:
    """Refuse scales that differ, in any bit, from what would have been written for them."""
    wrong = came.view(torch.int32) != expected.view(torch.int32)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise WireError(
            f"{tensor.name}: the scale of row {row} is {float(came[row])}; zero or a positive "
            "number of float32's normal range was expected, rounded as the encoder rounds it."
        )


def _row_shape(tensor: TensorSpec) -> tuple[int, int]:
    """Return the number of rows, which is the rank, and the values of each."""
    rows, columns = tensor.shape
    return (rows, columns) if tensor.factor == "A" else (columns, rows)


def _rows(tensor: TensorSpec, values: Tensor) -> Tensor:
    """Return the rows one after another in memory."""
    return values.contiguous() if tensor.factor == "A" else values.t().contiguous()


def _as_stored(tensor: TensorSpec, rows: Tensor) -> Tensor:
    """Return the values in the tensor's own shape."""
    return rows if tensor.factor == "A" else rows.t()


def _bytes(values: Tensor) -> Block:
    return values.numpy().astype("<f4", copy=False).reshape(-1).view(np.uint8)


def _floats(block: Block) -> Tensor:
    return torch.from_numpy(block.view("<f4").astype(np.float32))


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
