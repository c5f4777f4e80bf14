"""Flower's SecAgg+: what its mod does at a client, and its workflow's arithmetic at the server."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from flwr.app import ConfigRecord
from flwr.common import (
    NDArrays,
    Parameters,
    bytes_to_ndarray,
    ndarrays_to_parameters,
)
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from torch import Tensor

MAX_WEIGHT = 1000.0
_CLIPPING_RANGE = 8.0
_TARGET_RANGE = 2**22
_MOD_RANGE = 2**32
"""All four are the workflow's defaults."""

_MOD = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
"""The module; its package has a function of that name."""


def parameters_of(values: Tensor) -> Parameters:
    """Return a vector as a client's training returns it."""
    return ndarrays_to_parameters([values.numpy()])


class Attempt:
    """Clients, numbered from 0, who have shared their secrets, each with all others.

    Each can mask vectors as often as it likes.
    """

    def __init__(self, clients: int) -> None:
        self._clients = range(clients)
        self._threshold = 2 * clients // 3 + 1
        self._states = [_MOD.SecAggPlusState(nid=i, current_stage="setup") for i in self._clients]
        configs = self._configs()
        keys = [_MOD._setup(state, configs) for state in self._states]  # noqa: SLF001 - the peer's own work
        self._public = [(key[Key.PUBLIC_KEY_1], key[Key.PUBLIC_KEY_2]) for key in keys]
        told = {str(i): list(pair) for i, pair in enumerate(self._public)}
        shared = [_MOD._share_keys(state, told) for state in self._states]  # noqa: SLF001 - as above
        self._inboxes = [self._inbox(shared, i) for i in self._clients]
        for client in self._clients:  # a client opens others' shares where it masks its vector
            self.masked(parameters_of(torch.zeros(1)), num_examples=1, client=client)

    def masked(
        self, parameters: Parameters, *, num_examples: int, client: int = 0
    ) -> Sequence[bytes]:
        """Return what a client sends of its vector."""
        state, inbox = self._states[client], self._inboxes[client]
        answer = _MOD._collect_masked_vectors(state, inbox, num_examples, parameters)  # noqa: SLF001 - as above
        sent: Sequence[bytes] = answer[Key.MASKED_PARAMETERS]
        return sent

    def mean(self, vectors: Sequence[Sequence[bytes]]) -> Tensor:
        """Return the mean of what the first clients have sent; the others have dropped out.

        As ``SecAggPlusWorkflow.collect_masked_vectors_stage`` and ``unmask_stage`` do it.
        """
        total = self._unmasked(self._added(vectors), alive=len(vectors))
        q_total_ratio, values = factor_extract(total)
        [mean] = dequantize(values, _CLIPPING_RANGE, _TARGET_RANGE)
        mean += -(len(vectors) - 1) * _CLIPPING_RANGE
        mean *= _TARGET_RANGE / q_total_ratio
        return torch.from_numpy(mean)

    def _added(self, vectors: Sequence[Sequence[bytes]]) -> NDArrays:
        total: NDArrays | None = None
        for vector in vectors:
            arrays = [bytes_to_ndarray(part) for part in vector]
            total = arrays if total is None else parameters_addition(total, arrays)
        return parameters_mod(total or [], _MOD_RANGE)

    def _unmasked(self, total: NDArrays, *, alive: int) -> NDArrays:
        shapes = get_parameters_shape(total)
        for client, shares in enumerate(self._revealed(alive)):
            secret = combine_shares(shares)
            if client < alive:
                mask = pseudo_rand_gen(secret, _MOD_RANGE, shapes)
                total = parameters_subtraction(total, mask)
                continue
            private = bytes_to_private_key(secret)
            for other in set(self._clients) - {client}:
                public = bytes_to_public_key(self._public[other][0])
                mask = pseudo_rand_gen(generate_shared_key(private, public), _MOD_RANGE, shapes)
                add = parameters_addition if client > other else parameters_subtraction
                total = add(total, mask)
        return parameters_mod(total, _MOD_RANGE)

    def _revealed(self, alive: int) -> list[list[bytes]]:
        """Return of each client the shares of its secret that the survivors reveal."""
        asked = {
            Key.ACTIVE_NODE_ID_LIST: list(self._clients[:alive]),
            Key.DEAD_NODE_ID_LIST: list(self._clients[alive:]),
        }
        shares: list[list[bytes]] = [[] for _ in self._clients]
        for state in self._states[:alive]:
            answer = _MOD._unmask(state, asked)  # noqa: SLF001 - as above
            for owner, share in zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True):
                shares[owner].append(share)
        return shares

    def _inbox(self, shared: Sequence[dict[str, Any]], client: int) -> dict[str, Any]:
        sources = [i for i in self._clients if i != client]
        texts = [
            shared[i][Key.CIPHERTEXT_LIST][shared[i][Key.DESTINATION_LIST].index(client)]
            for i in sources
        ]
        return {Key.SOURCE_LIST: sources, Key.CIPHERTEXT_LIST: texts}

    def _configs(self) -> ConfigRecord:
        clients = len(self._clients)
        return ConfigRecord(
            {
                Key.SAMPLE_NUMBER: clients,
                Key.SHARE_NUMBER: clients,
                Key.THRESHOLD: self._threshold,
                Key.CLIPPING_RANGE: _CLIPPING_RANGE,
                Key.TARGET_RANGE: _TARGET_RANGE,
                Key.MOD_RANGE: _MOD_RANGE,
                Key.MAX_WEIGHT: MAX_WEIGHT,
            }
        )
