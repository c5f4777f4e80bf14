"""The same adapter in the plainest form: one rank, one whole alpha, names of modules."""

import math
from dataclasses import replace

from fedlora.adapter import AdapterState
from fedlora.errors import ReleaseError

_ROUNDING = 1e-9
"""Relative; float32 has no values that near to each other."""


def padded(state: AdapterState, *, rank: int) -> AdapterState:
    """Return an adapter with factors of a rank that changes every weight as ``state`` does.

    Guarantees:
        - ``scaling * B @ A`` is the same, up to rounding in float32; exactly the same factors,
          with zeros beside them, where alpha can stay a whole number.
        - alpha is a whole number: where ``scaling * rank`` is none, the scaling moves into B, and
          alpha is the rank.

    Raises:
        ReleaseError: the adapter has a higher rank.
    """
    if rank < state.spec.rank:
        raise ReleaseError(
            f"Rank {rank} is below the adapter's, {state.spec.rank}, and that would be another "
            "adapter. The best one of that rank: fedlora adapters combine FOLDER --rank "
            f"{rank} --out DIR."
        )
    wide = state.part(state.spec.part(rank=rank))
    alpha = round(wide.spec.alpha)
    if alpha and math.isclose(alpha, wide.spec.alpha, rel_tol=_ROUNDING):
        return replace(wide, spec=replace(wide.spec, alpha=float(alpha)))
    folded = replace(wide, spec=replace(wide.spec, alpha=float(rank)), values=wide.values.clone())
    for tensor, values in folded.factors():
        if tensor.factor == "B":
            values.mul_(wide.spec.scaling)
    return folded
