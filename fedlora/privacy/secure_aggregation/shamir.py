"""A secret of 32 bytes, shared so that any ``threshold`` holders have it and fewer know nothing."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import comb, prod

from fedlora.errors import SecureSumError

PRIME = 2**256 + 297
"""The least prime above all secrets."""
SECRET_BYTES = 32
SHARE_BYTES = 33
TRIES = 1000
"""Sets of holders that ``join_fitting`` looks at, at most."""


def split(secret: bytes, *, threshold: int, holders: int) -> list[bytes]:
    """Return one share of 33 bytes for each holder.

    Guarantees:
        ``threshold`` shares give the secret; to whoever has fewer, all secrets remain equally
        likely.

    Args:
        secret: 32 bytes.
        threshold: at least 1, at most ``holders``.
        holders: how many there are; holder ``i``, from 0, gets the polynomial's value at ``i + 1``.

    Raises:
        SecureSumError: the threshold is not possible, or the secret not 32 bytes long.

    References:
        Shamir 1979, "How to share a secret", Communications of the ACM 22(11).
    """
    if not 1 <= threshold <= holders:
        raise SecureSumError(
            f"A secret for {holders} holders was to be shared with the threshold {threshold}; it "
            f"must be between 1 and {holders}."
        )
    if len(secret) != SECRET_BYTES:
        raise SecureSumError(
            f"A secret of {SECRET_BYTES} bytes was expected, but {len(secret)} came."
        )
    coefficients = [
        int.from_bytes(secret),
        *(secrets.randbelow(PRIME) for _ in range(threshold - 1)),
    ]
    return _shares(coefficients, holders)


def join(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """Return the secret that shares belong to.

    Of more than ``threshold`` shares those of the lowest holders are taken. Whether the secret is
    the one that was split is for the caller to find out: a wrong share gives a wrong secret.

    Args:
        shares: by holder, from 0.
        threshold: as in ``split``.

    Raises:
        SecureSumError: too few shares; one of them is none, or they are no secret's.
    """
    secret = _joined(_values(shares, threshold), sorted(shares)[:threshold])
    if secret is None:
        raise SecureSumError(
            "The shares of a secret do not belong together: some holder sent a wrong one."
        )
    return secret


def join_fitting(
    shares: Mapping[int, bytes], *, threshold: int, fits: Callable[[bytes], bool]
) -> bytes:
    """Return the secret that fits, although some shares may be wrong.

    Guarantees:
        It is found if ``threshold`` shares are right and there are at most ``TRIES`` sets of so
        many. Of more sets that many are drawn at random: of 100 shares at the threshold 67 with
        three wrong ones, it is missed less often than once in 10¹⁴.

    Args:
        shares: by holder, from 0.
        threshold: as in ``split``.
        fits: whether a secret is the one that was split, such as by its public key.

    Raises:
        SecureSumError: too few shares, not counting what is none, or none of the secrets fits.
    """
    values = _values({i: share for i, share in shares.items() if _is_share(share)}, threshold)
    for holders in _subsets(sorted(values), threshold):
        secret = _joined(values, holders)
        if secret is not None and fits(secret):
            return secret
    raise SecureSumError(
        f"Of {len(shares)} shares of a secret, no {threshold} that were tried give the one that "
        "was shared: too many holders sent wrong ones, or its owner did. Begin anew."
    )


def _shares(coefficients: Sequence[int], holders: int) -> list[bytes]:
    """Return the values of a polynomial, its constant first, at 1 … ``holders``."""
    shares = []
    for x in range(1, holders + 1):
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES))
    return shares


def _values(shares: Mapping[int, bytes], threshold: int) -> dict[int, int]:
    """Return what may be shares as members of the field."""
    if len(shares) < threshold:
        raise SecureSumError(
            f"{threshold} shares of a secret were expected, but {len(shares)} came."
        )
    for holder, share in shares.items():
        if not _is_share(share):
            raise SecureSumError(
                f"Holder {holder} sent no share of a secret: {SHARE_BYTES} bytes below 2²⁵⁶ + 297 "
                "were expected. Leave it out."
            )
    return {holder: int.from_bytes(share) for holder, share in shares.items()}


def _is_share(share: bytes) -> bool:
    return len(share) == SHARE_BYTES and int.from_bytes(share) < PRIME


def _joined(values: Mapping[int, int], holders: Sequence[int]) -> bytes | None:
    """Return the secret by the shares of exactly these holders, none if it is no secret."""
    terms = zip(_weights(tuple(holders)), holders, strict=True)
    secret = sum(weight * values[holder] for weight, holder in terms) % PRIME
    return None if secret >> (8 * SECRET_BYTES) else secret.to_bytes(SECRET_BYTES)


@lru_cache(maxsize=64)
def _weights(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Return Lagrange's coefficients at 0, which are the same for every secret of these holders."""
    points = [holder + 1 for holder in holders]
    weights = []
    for own in points:
        others = [x for x in points if x != own]
        above, below = prod(others), prod(x - own for x in others)
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)


def _subsets(holders: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    """Return all sets of so many holders, or, where there are too many, some at random."""
    if comb(len(holders), size) <= TRIES:
        return combinations(holders, size)
    draw = secrets.SystemRandom()
    return (sorted(draw.sample(holders, size)) for _ in range(TRIES))
