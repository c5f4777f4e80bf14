"""The codecs: exactly the documented bytes, within the documented bounds, nothing else accepted."""

import math
import struct
from dataclasses import replace

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch

from fedlora.adapter import TensorSpec
from fedlora.errors import AdapterError, WireError
from fedlora.wire.encodings import (
    ENCODINGS,
    NF4_LEVELS,
    _int8_scales,
    encoded_size,
    rounded,
)
from tests.oracles import rows_of_int8, rows_of_nf4
from tests.strategies import make_spec, make_state

LARGEST = torch.finfo(torch.float32).max
LOSSY = ["bf16", "int8", "nf4"]
BY_ROW = ["int8", "nf4"]
SHAPES = {  # a block of 64 that is whole, short, missing by one, exceeded by one; odd sizes
    "whole": TensorSpec(module="m", factor="A", shape=(3, 128)),
    "short": TensorSpec(module="m", factor="A", shape=(3, 5)),
    "less": TensorSpec(module="m", factor="B", shape=(63, 2)),
    "more": TensorSpec(module="m", factor="B", shape=(65, 3)),
    "one": TensorSpec(module="m", factor="A", shape=(1, 1)),
}
ROW = TensorSpec(module="m", factor="A", shape=(1, 3))


def heavy_tailed(tensor: TensorSpec, *, seed: int = 0) -> torch.Tensor:
    """Return values whose rows differ in scale by orders, as those of trained increments do."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tensor.shape, generator=generator) ** 3
    rank = tensor.shape[0 if tensor.factor == "A" else 1]
    scales = torch.logspace(-4, 0, rank)
    return values * (scales[:, None] if tensor.factor == "A" else scales)


def rows(tensor: TensorSpec, values: torch.Tensor) -> torch.Tensor:
    return values if tensor.factor == "A" else values.t()


def encoded(codec: str, tensor: TensorSpec, values: torch.Tensor) -> np.ndarray:
    return ENCODINGS[codec].encode(tensor, values.numpy())


def decoded(codec: str, tensor: TensorSpec, block: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ENCODINGS[codec].decode(tensor, block))


def there_and_back(codec: str, tensor: TensorSpec, values: torch.Tensor) -> torch.Tensor:
    return decoded(codec, tensor, encoded(codec, tensor, values))


def block_of(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


@pytest.mark.parametrize("tensor", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("codec", ENCODINGS)
def test_a_block_has_the_bytes_that_its_size_says(codec, tensor):
    """For every shape, so that offsets can be known before anything is encoded."""
    block = encoded(codec, tensor, heavy_tailed(tensor))
    assert block.dtype == np.uint8
    assert block.shape == (ENCODINGS[codec].size(tensor),)


@pytest.mark.parametrize(
    ("codec", "size"),
    [
        ("fp32", 4 * 48),
        ("bf16", 2 * 48),
        ("int8", 48 + 4 * 6),
        ("nf4", 8 + 17 + 4 * 6 + 6),  # 15 codes in 8 bytes, 33 in 17; 6 rows of one short block
    ],
)
def test_encoded_size_is_that_of_all_blocks(codec, size):
    """Counted by hand: A has 3 rows of 5 values, B 3 rows of 11."""
    assert encoded_size(make_spec(rank=3, modules={"m": (5, 11)}), codec) == size


@pytest.mark.parametrize("tensor", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("codec", ENCODINGS)
def test_what_was_decoded_stays_as_it_is(codec, tensor):
    """Encoding again gives the same bytes; nf4's blocks may rescale, so it promises less."""
    values = heavy_tailed(tensor)
    block = encoded(codec, tensor, values)
    again = encoded(codec, tensor, decoded(codec, tensor, block))
    assert codec == "nf4" or again.tobytes() == block.tobytes()


@pytest.mark.parametrize("tensor", SHAPES.values(), ids=SHAPES)
def test_bf16_is_near_in_proportion(tensor):
    """Within 2⁻⁸ of each value."""
    values = heavy_tailed(tensor)
    assert ((there_and_back("bf16", tensor, values) - values).abs() <= values.abs() / 256).all()


def test_bf16_rounds_halves_to_even():
    """Between 1 and the next number, and between that and the one after."""
    values = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]])
    assert there_and_back("bf16", ROW, values).tolist() == [[1.0, 1 + 2**-6, -1.0]]


@pytest.mark.parametrize("tensor", SHAPES.values(), ids=SHAPES)
def test_int8_is_within_half_a_scale(tensor):
    """The scale of each row is its largest magnitude over 127."""
    values = heavy_tailed(tensor)
    errors = rows(tensor, there_and_back("int8", tensor, values) - values).abs()
    halves = rows(tensor, values).abs().amax(1, keepdim=True) / 127 / 2
    assert (errors <= halves * (1 + 1e-4)).all()


@pytest.mark.parametrize("tensor", SHAPES.values(), ids=SHAPES)
def test_nf4_takes_the_nearest_level_of_a_scale_that_clips_nothing(tensor):
    """Tried out: no other level is nearer, and no block's scale is below its largest value."""
    values = rows(tensor, heavy_tailed(tensor)).contiguous()
    block = encoded("nf4", tensor, heavy_tailed(tensor))
    result = rows(tensor, decoded("nf4", tensor, block))
    levels = torch.from_numpy(NF4_LEVELS)
    rank, width = values.shape
    for k in range(rank):
        peak = float(values[k].abs().max())
        for i in range(-(-width // 64)):
            piece = values[k, 64 * i : 64 * (i + 1)]
            step = block[4 * rank + k * -(-width // 64) + i]
            scale = torch.tensor(peak) * (torch.tensor(float(step)) / 255)
            assert piece.abs().max() <= scale <= piece.abs().max() + peak / 255 * 1.0001
            nearest = (piece[:, None] - levels * scale).abs().amin(1)
            errors = (piece - result[k, 64 * i : 64 * (i + 1)]).abs()
            assert (errors <= nearest + 1e-6 * scale).all()
            assert (errors <= 0.152 * scale).all()


def test_nf4_is_that_of_bitsandbytes():
    """Levels, codes, their order in a byte and the values, where a row is one block."""
    tensor = TensorSpec(module="m", factor="A", shape=(8, 64))
    values = heavy_tailed(tensor)
    codes, state = bnb.quantize_4bit(values, blocksize=64, quant_type="nf4")
    block = encoded("nf4", tensor, values)
    assert NF4_LEVELS.tolist() == state.code.tolist()
    assert block[-codes.numel() :].tolist() == codes.flatten().tolist()
    result = decoded("nf4", tensor, block)
    assert torch.equal(result, bnb.dequantize_4bit(codes, state))


@pytest.mark.parametrize("tensor", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("codec", BY_ROW)
def test_the_bytes_are_what_the_specification_of_the_wire_says(codec, tensor):
    """Rows of rank components, their scales in front, read by an oracle number by number."""
    block = encoded(codec, tensor, heavy_tailed(tensor))
    result = rows(tensor, decoded(codec, tensor, block))
    if codec == "int8":
        expected = rows_of_int8(block.tobytes(), *result.shape)
    else:
        expected = rows_of_nf4(block.tobytes(), *result.shape, NF4_LEVELS.tolist())
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("codec", LOSSY)
def test_rounded_is_what_a_reader_gets(codec):
    """A site's error feedback sees the aggregator's very values; its own stay as they are."""
    state = make_state(make_spec(rank=3))
    before = state.values.clone()
    result = rounded(state.values, state.spec, codec=codec)
    for tensor, start in state.spec.offsets():
        values = before[start : start + tensor.size].view(tensor.shape)
        came = there_and_back(codec, tensor, values)
        assert torch.equal(result[start : start + tensor.size].view(tensor.shape), came)
    assert torch.equal(state.values, before)
    assert not torch.equal(result, before)


def test_fp32_rounds_nothing():
    """Values that are not finite included; the result is a copy."""
    values = torch.tensor([math.nan, math.inf, -0.0])
    one = replace(make_spec(), tensors=(ROW,))
    result = rounded(values, one, codec="fp32")
    assert result.numpy().tobytes() == values.numpy().tobytes()
    assert result.data_ptr() != values.data_ptr()


@pytest.mark.parametrize("codec", BY_ROW)
def test_each_row_has_a_scale_of_its_own(codec):
    """A large component, a row of A or a column of B, takes no precision from a small one."""
    for tensor in (SHAPES["whole"], SHAPES["more"]):
        values = heavy_tailed(tensor)
        louder = values.clone()
        rows(tensor, louder)[0] *= 1e6
        quiet = rows(tensor, there_and_back(codec, tensor, values))[1:]
        assert torch.equal(quiet, rows(tensor, there_and_back(codec, tensor, louder))[1:])


@pytest.mark.parametrize("codec", ENCODINGS)
def test_zero_stays_zero(codec):
    """Alone, in a row or block of zeros, and beside large values."""
    values = torch.zeros(2, 200)
    values[0, [3, 150]] = torch.tensor([-7.0, 1e-3])
    tensor = TensorSpec(module="m", factor="A", shape=(2, 200))
    result = there_and_back(codec, tensor, values)
    assert (result[values == 0].view(torch.int32) == 0).all()
    assert result[0, 3] == -7.0


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("largest", [LARGEST, -LARGEST, LARGEST / 1.0001, 3e38])
def test_the_largest_values_stay_finite(codec, largest):
    """No scale and no rounding carries a finite value over the edge, nor past the bounds."""
    values = torch.tensor([[largest, largest / 3, -largest / 2]])
    result = there_and_back(codec, ROW, values)
    bound = {"bf16": 2**-8, "int8": 0.5 / 127, "nf4": 0.152}[codec] * abs(largest)
    assert result.isfinite().all()
    assert ((result - values).abs() <= bound * (1 + 1e-4)).all()


@pytest.mark.parametrize("codec", BY_ROW)
@pytest.mark.parametrize(
    ("peak", "is_kept"), [(2.0**-118, True), (2.0**-118 * (1 - 2**-24), False), (1e-45, False)]
)
def test_rows_too_small_for_a_normal_scale_are_zero(codec, peak, is_kept):
    """Below 2⁻¹¹⁸; from there on scales keep their precision."""
    values = torch.tensor([[peak, -peak, 0.0]])
    expected = values if is_kept else torch.zeros(1, 3)
    result = there_and_back(codec, ROW, values)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


def test_an_int8_scale_is_that_of_what_it_decodes_to():
    """Tried for all peaks between two powers of two: a decoded row is encoded as it was."""
    peaks = np.arange(2**23, 2**24, dtype=np.float32)
    scales = _int8_scales(peaks)
    assert np.array_equal(_int8_scales(np.float32(127) * scales), scales)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_encoded(codec, value):
    """They are refused with the tensor's name before they leave the site."""
    with pytest.raises(AdapterError, match=r"m\.lora_A holds values that are not finite"):
        encoded(codec, ROW, torch.tensor([[1.0, value, 0.0]]))


def int8_block(scale: float, codes: tuple[int, int, int] = (127, -127, 3)) -> bytes:
    return struct.pack("<f3b", scale, *codes)


def nf4_block(peak: float, step: int = 255, codes: bytes = b"\xf0\x70") -> bytes:
    return struct.pack("<fB", peak, step) + codes


@pytest.mark.parametrize("codec", BY_ROW)
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, -0.0, 1e-45, 2.0**-127])
def test_a_scale_that_no_encoder_writes_is_refused(codec, scale):
    """Not finite, negative, or not normal; the tensor is named."""
    block = int8_block(scale) if codec == "int8" else nf4_block(scale)
    with pytest.raises(WireError, match=r"m\.lora_A: the scale of row 0 is"):
        decoded(codec, ROW, block_of(block))


def test_an_int8_scale_that_would_overflow_is_refused():
    """127 times it is infinite; the largest that is not is what the largest value gets."""
    settled = encoded("int8", ROW, torch.tensor([[LARGEST, 0.0, 0.0]]))
    [largest] = struct.unpack_from("<f", settled)
    above = float(np.nextafter(np.float32(largest), np.float32(np.inf)))
    assert decoded("int8", ROW, block_of(int8_block(largest))).isfinite().all()
    with pytest.raises(WireError, match="the scale of row 0"):
        decoded("int8", ROW, block_of(int8_block(above)))


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (int8_block(1.0, (-128, 127, 0)), "to be 127, but it is 128"),
        (int8_block(1.0, (126, -126, 0)), "to be 127, but it is 126"),
        (int8_block(0.0, (0, 0, -1)), "to be 0, but it is 1"),
        (int8_block(0.0, (-128, 0, 0)), "to be 0, but it is 128"),
    ],
)
def test_int8_codes_that_no_encoder_writes_are_refused(block, says):
    """There is one way to write a row: its largest magnitude is 127, or all of it is zero."""
    with pytest.raises(WireError, match=f"m.lora_A: the largest int8 of row 0 was expected {says}"):
        decoded("int8", ROW, block_of(block))


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (nf4_block(1.0, 254), "the largest scale of a block must be 255"),
        (nf4_block(1.0, 0, b"\x77\x70"), "the largest scale of a block must be 255"),
        (nf4_block(0.0, 255, b"\x77\x70"), "the largest scale of a block must be 255"),
        (nf4_block(0.0, 0, b"\x77\x80"), "a block with a scale of zero must hold zeros"),
        (nf4_block(1.0, 255, b"\xf0\x71"), "half of a byte behind its values must be zero"),
    ],
)
def test_nf4_bits_that_no_encoder_writes_are_refused(block, says):
    """Scales, codes without a scale, and the unused half of the last byte."""
    with pytest.raises(WireError, match=f"m.lora_A: .*{says}"):
        decoded("nf4", ROW, block_of(block))


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_bf16_values_that_are_not_finite_are_refused(bits):
    """Infinity, its negative, and what is not a number."""
    with pytest.raises(WireError, match=r"m\.lora_A: finite values were expected"):
        decoded("bf16", ROW, block_of(struct.pack("<3H", 0, 0, bits)))
