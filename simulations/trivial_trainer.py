"""A trainer without data or model: ``python -m simulations.trivial_trainer DIR``.

It stands where a site's trainer stands and answers at once, with an increment of the right shape
whose values mean nothing: what is left of a round is all but training.
"""

import socket
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from fedlora.adapter import AdapterSpec, AdapterUpdate
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.client.frames import LONGEST_QUESTION, Answer, Ask, Channel, FromGate, Hello
from fedlora.runtime.client.probes import report
from fedlora.runtime.lock import spec_of
from fedlora.runtime.processes import log
from fedlora.wire.codec import Envelope, encode_trained

_LISTENING = 3
_LARGEST_ADAPTER = 2**40
_DEVIATION = 1e-3


def main(folder: Path) -> None:
    """Answer one gate after another until killed."""
    log.start("trainer")
    hello = Hello(report=report(folder))
    listener = socket.socket(fileno=_LISTENING)
    while True:
        channel = Channel(listener.accept()[0])
        with suppress(ConnectionError):
            channel.send(hello)
            while True:
                _answer(channel)


def _answer(channel: Channel) -> None:
    question, _ = channel.receive(FromGate, longest=LONGEST_QUESTION, longest_body=_LARGEST_ADAPTER)
    if not isinstance(question, Ask):
        raise TypeError("This trainer draws no noise, so there is nothing to charge.")
    log.say("asked", purpose=question.purpose, round=question.round)
    if question.purpose == "train":
        channel.send(Answer(metrics={"train_loss": 1.0}), _trained(question))
    else:
        channel.send(Answer(metrics={"eval_loss_sum": 1.0, "eval_tokens": 1}))
    log.say("answered", purpose=question.purpose, round=question.round)


def _trained(question: Ask) -> bytes:
    recipe = _recipe(question.recipe)
    whole = Envelope(spec=spec_of(recipe), run=question.run, round=question.round)
    envelope = records.envelope_of_update(whole, recipe, question.site)
    return encode_trained(_update(envelope.spec, recipe.examples_of_round[-1]), envelope)


@lru_cache(maxsize=1)
def _recipe(text: str) -> Recipe:
    return Recipe.from_yaml(text)


@lru_cache(maxsize=1)
def _update(spec: AdapterSpec, examples: int) -> AdapterUpdate:
    """Return an increment of a trained one's size."""
    values = torch.randn(spec.size, generator=torch.Generator().manual_seed(0)).mul_(_DEVIATION)
    return AdapterUpdate(spec=spec, values=values, num_examples=examples)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
