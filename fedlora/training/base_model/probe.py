"""What a network and its adapter must show, on a few tokens, before they are trained."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedlora.errors import BaseModelError

_ERRORS = (IndexError, RuntimeError, TypeError, ValueError)


def require_trainable(
    network: PreTrainedModel,
    factors: Mapping[str, nn.Parameter],
    forward: Callable[[Tensor], Tensor],
) -> None:
    """Do nothing if training on the network's logits teaches what it seems to teach.

    Derivatives are asked for that must be exactly zero, or must be there:

    - No token's logits depend on a token behind it. Training relies on it: padding on the right
      needs no mask, and a token cannot see the one that it is to predict. Among what transformers
      offers as causal language models are encoders (BERT, unless its configuration says
      ``is_decoder``). A classifier has one result for all tokens, and may look at all of them.
    - No example's logits depend on other rows of its batch, so that its loss is its own.
    - Each factor takes part. Some networks use the weight of a linear module without calling it
      (Mamba's ``dt_proj``), so that an adapter on it is never seen.

    Args:
        network: in evaluation mode, with the adapter on it.
        factors: the adapter's, by name.
        forward: gives the logits of ``(rows, length)`` tokens, ``(rows, length, vocabulary)``, or
            of a classifier ``(rows, labels)``.

    Raises:
        BaseModelError: one of them does not hold, or the network does not compute at all.
    """
    name, seen = type(network).__name__, list[Tensor]()

    def watch(_module: object, _inputs: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    embedding, ordinary = _embedding(network)
    handle = embedding.register_forward_hook(watch)
    advice = "Take adapter: lora without load_in_8bit, or choose another base model."
    try:
        with (
            _refusing(f"{name} does not compute as the recipe holds and adapts it", advice),
            torch.enable_grad(),
        ):
            logits = forward(torch.arange(ordinary, ordinary + 8).view(2, 4))
            wanted = [seen[0], *factors.values()]
            total = (logits[0, :-1] if logits.ndim == 3 else logits[0]).float().sum()
            derivatives: Any = torch.autograd.grad(total, wanted, allow_unused=True)
            embedded, *of_factors = derivatives
    finally:
        handle.remove()
    if not embedded.isfinite().all():
        raise BaseModelError(
            f"{name} has gradients that are not finite before any training. Get its weights again, "
            "or set bf16: false."
        )
    if logits.ndim == 2 and embedded[1].any():
        raise BaseModelError(
            f"{name} lets examples of a batch see each other, so that the loss of one is not its "
            "own. Choose another base model."
        )
    if logits.ndim == 3 and (embedded[0, -1].any() or embedded[1].any()):
        raise BaseModelError(
            f"{name} lets tokens see those behind them, as encoders do, or other examples: it "
            "cannot learn to continue a text. Choose a causal language model."
        )
    require_none(
        [factor for factor, gradient in zip(factors, of_factors, strict=True) if gradient is None],
        among=factors,
        what=f"are never called by {name}, which would train without them",
    )


@torch.no_grad()
def require_places(
    network: PreTrainedModel, length: int, forward: Callable[[Tensor], Tensor]
) -> None:
    """Do nothing if the network takes rows of so many tokens.

    Some have a table of so many places and no more (BERT, GPT-2), which a long row would show first
    in the middle of a training.

    Args:
        network: in evaluation mode.
        length: of the longest row, in tokens.
        forward: as for ``require_trainable``.

    Raises:
        BaseModelError: it does not.
    """
    _, ordinary = _embedding(network)
    fault = f"sequence_len: {type(network).__name__} does not take {length} tokens"
    with _refusing(fault, "Lower it to the places that the base has."):
        forward(torch.full((1, length), ordinary))


def require_none(factors: list[str], *, among: Mapping[str, object], what: str) -> None:
    """Do nothing if no factor is named.

    Raises:
        BaseModelError: it names the kinds of modules that are to be left out, and those that stay.
    """
    out = _kinds(factors)
    if out:
        adapted = [name for name in among if ".lora_" in name]  # a head is no target
        rest = ", ".join(sorted(_kinds(adapted) - out))
        raise BaseModelError(
            f"lora_target_modules: {', '.join(sorted(out))} {what}. Leave them out: "
            f"{f'write [{rest}]' if rest else 'choose another base model'}."
        )


def _embedding(network: PreTrainedModel) -> tuple[Any, int]:
    """Return a network's embedding, and a token of it that is none of the special ones.

    These, of which one may be padding, are at the ends.
    """
    embedding: Any = network.get_input_embeddings()
    return embedding, embedding.weight.shape[0] // 2


@contextmanager
def _refusing(fault: str, advice: str) -> Iterator[None]:
    """Turn what a network raises while it computes into an error that helps."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _ERRORS as error:
        raise BaseModelError(f"{fault} ({str(error).partition(chr(10))[0]}). {advice}") from error


def _kinds(factors: list[str]) -> set[str]:
    """Return the last parts of the modules' paths, such as ``q_proj``."""
    return {factor.split(".lora_")[0].rpartition(".")[2] for factor in factors}
