"""How much an adapter can change what a module makes of its input: the spectral norm."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapter import AdapterState
from fedlora.products.spread import Workspace, spread


def spectral_norms(state: AdapterState) -> dict[str, float]:
    """Return the largest singular value of ``scaling * B @ A`` of each module.

    That is how much longer the module's output can become for an input of length 1.

    Guarantees:
        The error is at most 1e-12 of ``scaling * ‖B‖ ‖A‖``. Memory beyond the adapter is that of
        a few modules for each thread.

    Args:
        state: of finite values.

    Raises:
        AdapterError: a module has only one of its two factors.

    References:
        With ``B = Q R`` and ``Aᵀ = P S``, Q and P of orthonormal columns, the singular values of
        ``B A`` are those of ``R Sᵀ``, a matrix of the rank's size (Golub and Van Loan 2013,
        section 5.2).
    """
    modules = [_Module(name=name, down=down, up=up) for name, down, up in state.pairs()]
    norms = spread(_norm, modules)
    scaling = state.spec.scaling
    return {module.name: scaling * norm for module, norm in zip(modules, norms, strict=True)}


@dataclass(frozen=True, kw_only=True)
class _Module:
    name: str
    down: Tensor
    up: Tensor

    @property
    def size(self) -> int:
        return self.down.numel() + self.up.numel()


def _norm(module: _Module, _: Workspace) -> float:
    triangles = [
        torch.linalg.qr(factor.double(), mode="r").R for factor in (module.up, module.down.T)
    ]
    return float(torch.linalg.matrix_norm(triangles[0] @ triangles[1].T, ord=2))
