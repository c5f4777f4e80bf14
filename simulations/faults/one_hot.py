"""A trainer whose every increment can be told from every other in the sum, and no model.

In round n, site i adds 1 at a value that is theirs alone. With uniform weights, no momentum and
float32 on the wire, the global adapter then has 1/3 there, of three sites: an update that was lost
shows as 0, one that was counted twice as 2/3.

``python -m simulations.faults.one_hot DIR`` serves a site's gate in the trainer's place.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.errors import WireError
from fedlora.recipe import Recipe
from fedlora.runtime.charges import training_charge
from fedlora.runtime.client.frames import (
    LONGEST_QUESTION,
    Answer,
    Ask,
    Channel,
    Charged,
    ChargeRequest,
    FromGate,
    Hello,
)
from fedlora.runtime.client.probes import report
from fedlora.runtime.lock import spec_of
from fedlora.runtime.records import envelope_of_update
from fedlora.wire.codec import Envelope, encode_trained

SITES = ("north", "east", "west")
"""In the order of a recipe's datasets."""

_WORK = 0.5
"""Seconds that an answer takes, so that faults fall into them too."""
_SPARE = len(SITES)
"""Values at the end that are drawn anew for each private answer, as noise would be: one a site."""
_LISTENING = 3
_LARGEST = 2**30
_FINGERPRINT = "0" * 64


def recipe(*, rounds: int, private: bool = False) -> Recipe:
    """Return a recipe whose adapter shows which updates are in it."""
    federation: dict[str, Any] = {
        "method": "freeze-a",
        "rounds": rounds,
        "local_steps": 1,
        "weighting": "uniform",
        "server_momentum": 0.0,
        "evaluate_every": 0 if private else 4,
    }
    promised = {"unit": "example", "epsilon": 8.0, "delta": 1e-5, "records": 1000}
    return Recipe.model_validate(
        {
            "name": "one-hot",
            "lora_r": 1,
            "lora_alpha": 1.0,
            "sequence_len": 64,
            "micro_batch_size": 8,
            "privacy": promised if private else {"unit": "none"},
            "federation": federation,
            "wire": {"codec": "fp32"},
            "datasets": [
                {"path": "standard-library", "site": site, "packages": ["json"]} for site in SITES
            ],
        }
    )


POLICY: Mapping[str, Any] = {"adapter": {"spectral_norm": 1e9, "growth_per_round": 1e9}}
"""Lets an adapter in that no training made."""


def place(number: int, site: str) -> int:
    """Return which of the values that a round sends is that of a round and a site."""
    return (number - 1) * len(SITES) + SITES.index(site)


def counted(state: AdapterState) -> Tensor:
    """Return the values of a global adapter that rounds send, but for those that are drawn."""
    sent = [values.flatten() for tensor, values in state.factors() if tensor.factor == "B"]
    return torch.cat(sent)[:-_SPARE]


def miscounted(state: AdapterState, *, rounds: int) -> Sequence[str]:
    """Name each update of so many rounds that is not in an adapter once, and each that is too much.

    A running mean rounds: of a value's 24 bits the last two may differ.
    """
    values, expected = counted(state), torch.zeros(counted(state).shape)
    expected[: rounds * len(SITES)] = 1 / len(SITES)
    wrong: list[str] = []
    close = torch.isclose(values, expected, rtol=2**-22, atol=0)
    for index in (~close).nonzero().flatten().tolist():
        number, site = index // len(SITES) + 1, SITES[index % len(SITES)]
        wrong.append(f"round {number}, {site}: {values[index]:.6g} and not {expected[index]:.6g}")
    return wrong


def main() -> None:
    """Serve until killed."""
    hello = Hello(report=report(Path(sys.argv[1])))
    listener = socket.socket(fileno=_LISTENING)
    while True:
        connection, _ = listener.accept()
        channel = Channel(connection)
        try:
            channel.send(hello)
            while True:
                _answer(channel)
        except ConnectionError:
            channel.close()


def _answer(channel: Channel) -> None:
    question, _ = channel.receive(FromGate, longest=LONGEST_QUESTION, longest_body=_LARGEST)
    if not isinstance(question, Ask):
        raise WireError("The gate committed what nobody asked for.")
    time.sleep(_WORK)
    if question.purpose == "evaluate":
        channel.send(Answer(metrics={"eval_loss_sum": 1.0, "eval_tokens": 1}))
        return
    asked = Recipe.from_yaml(question.recipe)
    private = asked.privacy.unit == "example"
    if private:
        _charge(channel, question, asked)
    metrics: dict[str, int | float] = {} if private else {"train_loss": 1.0}
    channel.send(Answer(metrics=metrics), _increment(question, asked, drawn=private))


def _charge(channel: Channel, question: Ask, asked: Recipe) -> None:
    charge = training_charge(asked, question.site, steps=asked.federation.local_steps)
    channel.send(
        ChargeRequest(purpose="train", number=question.round, charge=charge, data=_FINGERPRINT)
    )
    said, _ = channel.receive(FromGate, longest=LONGEST_QUESTION, longest_body=0)
    if not isinstance(said, Charged):
        raise WireError("The gate did not commit what is to be drawn.")


def _increment(question: Ask, asked: Recipe, *, drawn: bool) -> bytes:
    whole = Envelope(spec=spec_of(asked), run=question.run, round=question.round)
    envelope = envelope_of_update(whole, asked, question.site)
    values = torch.zeros(envelope.spec.size)
    values[place(question.round, question.site)] = 1
    if drawn:
        values[-1 - SITES.index(question.site)] = int.from_bytes(os.urandom(2), "little") / 2**16
    examples = asked.examples_of_round[0]
    update = AdapterUpdate(spec=envelope.spec, values=values, num_examples=examples)
    return encode_trained(update, envelope)


if __name__ == "__main__":
    main()
