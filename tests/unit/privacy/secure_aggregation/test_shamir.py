"""Shares of a secret: known answers, what they must look like, and what wrong ones do."""

import random

import pytest

from fedlora.errors import SecureSumError
from fedlora.privacy.secure_aggregation import shamir
from fedlora.privacy.secure_aggregation.shamir import PRIME, join, join_fitting, split

SECRET = bytes(range(32))


def test_the_modulus_is_prime():
    """By Miller and Rabin, to 40 random bases, and no number between it and the secrets is."""
    assert _is_prime(PRIME)
    assert not any(_is_prime(number) for number in range(2**256, PRIME))


def test_shares_are_the_polynomials_values(monkeypatch):
    """Computed here term by term, from coefficients that are chosen here."""
    coefficients = [PRIME - 1, 2**200 + 7, 5]
    drawn = iter(coefficients)
    monkeypatch.setattr(shamir.secrets, "randbelow", lambda bound: next(drawn) % bound)
    constant = int.from_bytes(SECRET)
    expected = [
        (constant - x + (2**200 + 7) * x**2 + 5 * x**3) % (2**256 + 297) for x in (1, 2, 3, 4, 5)
    ]
    shares = split(SECRET, threshold=4, holders=5)
    assert shares == [value.to_bytes(33, "big") for value in expected]


def test_coefficients_are_from_the_whole_field(monkeypatch):
    """One for each share but one; the highest may be zero, or shares would tell of the secret."""
    bounds = []
    monkeypatch.setattr(shamir.secrets, "randbelow", lambda bound: bounds.append(bound) or 0)
    shares = split(SECRET, threshold=3, holders=4)
    assert bounds == [PRIME, PRIME]
    assert shares == [b"\x00" + SECRET] * 4


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, SECRET])
@pytest.mark.parametrize(("threshold", "holders"), [(1, 1), (1, 3), (3, 3), (67, 100)])
def test_shares_give_the_secret(secret, threshold, holders):
    """Also the least and the largest one."""
    shares = split(secret, threshold=threshold, holders=holders)
    assert [len(share) for share in shares] == [33] * holders
    assert join(dict(enumerate(shares)), threshold=threshold) == secret


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (-1, 3), (4, 3)])
def test_impossible_thresholds_are_refused(threshold, holders):
    """Nothing could be shared so, or never be joined."""
    with pytest.raises(SecureSumError, match=f"must be between 1 and {holders}"):
        split(SECRET, threshold=threshold, holders=holders)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_has_32_bytes(size):
    """A longer one would not come back whole."""
    with pytest.raises(SecureSumError, match=f"32 bytes was expected, but {size} came"):
        split(bytes(size), threshold=2, holders=3)


def test_too_few_shares_are_refused():
    """They would give another secret."""
    shares = dict(enumerate(split(SECRET, threshold=3, holders=5)[:2]))
    with pytest.raises(SecureSumError, match="3 shares of a secret were expected, but 2 came"):
        join(shares, threshold=3)


@pytest.mark.parametrize(
    "share", [b"", bytes(32), bytes(34), PRIME.to_bytes(33), b"\xff" * 33], ids=len
)
def test_what_is_no_share_is_refused(share):
    """Its holder is named, its value is not shown."""
    shares = dict(enumerate(split(SECRET, threshold=2, holders=3)))
    with pytest.raises(SecureSumError, match="Holder 1 sent no share of a secret: 33 bytes"):
        join(shares | {1: share}, threshold=2)


def test_shares_of_no_secret_are_refused():
    """Their polynomial's constant is in the field, but has more than 32 bytes."""
    with pytest.raises(SecureSumError, match="do not belong together"):
        join({0: (2**256).to_bytes(33)}, threshold=1)


@pytest.mark.parametrize("wrong", [(0,), (0, 1), (2, 4), (0, 3, 5)])
def test_a_fitting_secret_is_found_among_wrong_shares(wrong):
    """As long as the threshold of right ones is there."""
    shares = dict(enumerate(split(SECRET, threshold=4, holders=7)))
    for holder in wrong:
        shares[holder] = shares[(holder + 1) % 7]
    assert join_fitting(shares, threshold=4, fits=SECRET.__eq__) == SECRET


@pytest.mark.parametrize("share", [b"", bytes(32), b"\xff" * 33], ids=len)
def test_what_is_no_share_is_as_good_as_a_wrong_one(share):
    """One holder alone does not spoil what the others can open."""
    shares = dict(enumerate(split(SECRET, threshold=2, holders=3))) | {0: share}
    assert join_fitting(shares, threshold=2, fits=SECRET.__eq__) == SECRET
    with pytest.raises(SecureSumError, match="2 shares of a secret were expected, but 1 came"):
        join_fitting(shares | {2: share}, threshold=2, fits=SECRET.__eq__)


def test_one_right_share_too_few_fits_nothing():
    """There is nothing to be found then."""
    shares = dict(enumerate(split(SECRET, threshold=4, holders=7)))
    shares |= dict.fromkeys((0, 1, 2, 3), bytes(33))
    with pytest.raises(SecureSumError, match="Of 7 shares of a secret, no 4"):
        join_fitting(shares, threshold=4, fits=SECRET.__eq__)


def test_many_shares_are_tried_a_bounded_number_of_times(monkeypatch):
    """There are more sets of 67 among 100 than anybody can look at."""
    monkeypatch.setattr(shamir, "TRIES", 5)
    shares = dict(enumerate(split(SECRET, threshold=67, holders=100)))
    tried = []
    with pytest.raises(SecureSumError, match="Of 100 shares"):
        join_fitting(shares, threshold=67, fits=tried.append)
    assert tried == [SECRET] * 5


def test_wrong_shares_of_many_are_left_out():
    """Three wrong ones of 100 are missed with a probability below 1e-14."""
    shares = dict(enumerate(split(SECRET, threshold=67, holders=100)))
    shares |= dict.fromkeys((0, 50, 99), bytes(33))
    assert join_fitting(shares, threshold=67, fits=SECRET.__eq__) == SECRET


def _is_prime(number):
    """Whether a number is prime, wrong with a probability of at most 4^-40."""
    if number % 2 == 0:
        return False
    twos = ((number - 1) & -(number - 1)).bit_length() - 1
    odd = (number - 1) >> twos
    draw = random.Random(0)
    for _ in range(40):
        power = pow(draw.randrange(2, number - 1), odd, number)
        if power in {1, number - 1}:
            continue
        if all((power := power * power % number) != number - 1 for _ in range(twos - 1)):
            return False
    return True
