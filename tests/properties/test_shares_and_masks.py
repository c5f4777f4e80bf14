"""What holds for all secrets, sets of holders, and vectors."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedlora.privacy.secure_aggregation.masks import add_mask, subtract_mask
from fedlora.privacy.secure_aggregation.shamir import PRIME, join, join_fitting, split

SECRETS = st.binary(min_size=32, max_size=32)
SIZES = st.integers(1, 6).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))


@given(SECRETS, SIZES)
def test_any_threshold_of_holders_has_the_secret(secret, sizes):
    """All sets of so many holders, and all larger ones."""
    threshold, holders = sizes
    shares = dict(enumerate(split(secret, threshold=threshold, holders=holders)))
    for size in range(threshold, holders + 1):
        for some in combinations(shares, size):
            assert join({i: shares[i] for i in some}, threshold=threshold) == secret


@given(SECRETS, SECRETS, st.integers(2, 6))
def test_one_holder_less_has_nothing(secret, other, holders):
    """With any further share they would have another secret: exactly one share gives any of them.

    So each secret is as likely as any other, whatever the threshold's shares but one are.
    """
    shares = split(secret, threshold=holders, holders=holders)
    known = dict(enumerate(shares[:-1]))
    points, last = [i + 1 for i in range(holders - 1)], holders
    # the polynomial through (0, other) and the known shares, at the last holder
    xs = [0, *points]
    ys = [int.from_bytes(other), *(int.from_bytes(share) for share in shares[:-1])]
    value = 0
    for i, x in enumerate(xs):
        above = below = 1
        for j, z in enumerate(xs):
            if i != j:
                above, below = above * (last - z) % PRIME, below * (x - z) % PRIME
        value += ys[i] * above * pow(below, -1, PRIME)
    made = (value % PRIME).to_bytes(33)
    assert join(known | {holders - 1: made}, threshold=holders) == other
    assert (made == shares[-1]) == (other == secret)


@given(SECRETS, st.data())
def test_wrong_shares_do_not_hide_the_secret(secret, data):
    """Any of those that are to spare may be wrong, in any way."""
    threshold, holders = data.draw(SIZES)
    shares = dict(enumerate(split(secret, threshold=threshold, holders=holders)))
    count = data.draw(st.integers(0, holders - threshold))
    for holder in data.draw(st.permutations(range(holders)))[:count]:
        shares[holder] = data.draw(st.integers(0, PRIME - 1)).to_bytes(33)
    assert join_fitting(shares, threshold=threshold, fits=secret.__eq__) == secret


@given(st.integers(2, 5), st.integers(0, 40), st.randoms(use_true_random=False))
def test_pairwise_masks_cancel(clients, size, draw):
    """The sum of all masked vectors, their own masks taken off, is that of the vectors."""
    vectors = [
        np.array([draw.randrange(2**32) for _ in range(size)], dtype=np.uint32)
        for _ in range(clients)
    ]
    pairs = {pair: draw.randbytes(32) for pair in combinations(range(clients), 2)}
    own = [draw.randbytes(32) for _ in range(clients)]
    total = np.zeros(size, dtype=np.uint32)
    for i, vector in enumerate(vectors):
        masked = vector.copy()
        add_mask(masked, own[i])
        for (low, high), key in pairs.items():
            if i == low:
                add_mask(masked, key)
            elif i == high:
                subtract_mask(masked, key)
        total += masked
    for key in own:
        subtract_mask(total, key)
    assert total.tolist() == [sum(column) % 2**32 for column in np.array(vectors, dtype=object).T]
