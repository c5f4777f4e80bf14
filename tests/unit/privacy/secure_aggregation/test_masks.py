"""Masks: AES's known answers, and that they hide nothing else."""

import numpy as np
import pytest

from fedlora.privacy.secure_aggregation import masks
from fedlora.privacy.secure_aggregation.masks import add_mask, subtract_mask

KEY = bytes(range(32))
MORE_THAN_A_BLOCK = masks._BLOCK + 5


def test_a_mask_is_the_key_stream_of_sp_800_38a(monkeypatch):
    """Section F.5.5 (AES-256 in counter mode), with its first counter: its output blocks."""
    monkeypatch.setattr(masks, "_COUNTER", bytes(range(0xF0, 0x100)))
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    values = np.zeros(16, dtype=np.uint32)
    add_mask(values, key)
    assert values.astype("<u4").tobytes().hex() == (
        "0bdf7df1591716335e9a8b15c860c502"
        "5a6e699d536119065433863c8f657b94"
        "1bc12c9c01610d5d0d8bd6a3378eca62"
        "2956e1c8693536b1bee99c73a31576b6"
    )


def test_the_counter_begins_at_zero():
    """The first block under a key of zeros is the hash key of test case 13 of the GCM paper."""
    values = np.zeros(4, dtype=np.uint32)
    add_mask(values, bytes(32))
    assert values.astype("<u4").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 2 * masks._BLOCK, MORE_THAN_A_BLOCK])
def test_a_mask_comes_off_again(size):
    """Whatever the length, at the blocks' seams too; modulo 2³²."""
    values = np.full(size, 2**32 - 1, dtype=np.uint32)
    add_mask(values, KEY)
    subtract_mask(values, KEY)
    assert (values == 2**32 - 1).all()


def test_blocks_go_on_where_the_last_ended():
    """The mask of a long vector is no repetition, and begins as that of a short one."""
    long, short = np.zeros(MORE_THAN_A_BLOCK, np.uint32), np.zeros(8, np.uint32)
    add_mask(long, KEY)
    add_mask(short, KEY)
    assert long[:8].tolist() == short.tolist()
    assert long[masks._BLOCK :].tolist() != long[:5].tolist()


def test_a_mask_is_added():
    """Value by value, modulo 2³², and taken off likewise."""
    mask, values = np.zeros(1000, np.uint32), np.arange(1000, dtype=np.uint32) * 4_000_037
    add_mask(mask, KEY)
    added, taken = values.copy(), values.copy()
    add_mask(added, KEY)
    subtract_mask(taken, KEY)
    assert added.tolist() == [
        (a + b) % 2**32 for a, b in zip(values.tolist(), mask.tolist(), strict=True)
    ]
    assert taken.tolist() == [
        (a - b) % 2**32 for a, b in zip(values.tolist(), mask.tolist(), strict=True)
    ]
