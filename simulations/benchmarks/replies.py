"""Sites without data or model: what benchmarks of the aggregator get their replies from."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY
from numpy.typing import NDArray

from fedlora.adapter import (
    AdapterSpec,
    AdapterState,
    AdapterUpdate,
    Factor,
    InspectedUpdate,
    TensorSpec,
)
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.carriers.in_process import InProcessGrid

logging.getLogger("flwr").setLevel(logging.ERROR)

Arrays = Mapping[str, NDArray[np.float32]]

LORA = ("lora_r=16", "lora_alpha=32")
_HIDDEN, _INTERMEDIATE = 4096, 11008
_LAYER = {
    "self_attn.q_proj": (_HIDDEN, _HIDDEN),
    "self_attn.k_proj": (_HIDDEN, _HIDDEN),
    "self_attn.v_proj": (_HIDDEN, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "mlp.gate_proj": (_HIDDEN, _INTERMEDIATE),
    "mlp.up_proj": (_HIDDEN, _INTERMEDIATE),
    "mlp.down_proj": (_INTERMEDIATE, _HIDDEN),
}
"""Inputs and outputs of the linear modules of a layer of Llama-7B."""


def adapter_spec(*, layers: int = 32, width: int = 1) -> AdapterSpec:
    """Return an adapter of rank 16 on all linear modules of Llama-7B: 40 million parameters.

    Args:
        layers: how many of its 32 layers.
        width: what to divide the sizes of its modules by.
    """
    tensors = [
        TensorSpec(module=f"model.layers.{layer}.{module}", factor=factor, shape=shape)
        for layer in range(layers)
        for module, (inputs, outputs) in _LAYER.items()
        for factor, shape in _factors(inputs // width, outputs // width)
    ]
    return AdapterSpec(
        base_model="llama-7b",
        base_model_revision=None,
        base_digest="00" * 32,
        rank=16,
        alpha=32,
        target_modules=tuple(module.partition(".")[2] for module in _LAYER),
        tensors=tuple(tensors),
    )


def _factors(inputs: int, outputs: int) -> Iterator[tuple[Factor, tuple[int, int]]]:
    yield "A", (16, inputs)
    yield "B", (outputs, 16)


def recipe_for(clients: int, *overrides: str) -> Recipe:
    """Return the default recipe for that many clients and the adapter above."""
    text = "{datasets: [{path: standard-library}], privacy: {unit: none}}"
    return Recipe.from_yaml(text, overrides=[*LORA, f"federation.sites={clients}", *overrides])


def increment(spec: AdapterSpec, *, seed: int, num_examples: int = 8) -> InspectedUpdate:
    """Return an increment of a trained one's size: normal values of deviation 0.001."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(spec.size, generator=generator).mul_(1e-3)
    return InspectedUpdate(spec=spec, values=values, num_examples=num_examples)


def app_of(recipe: Recipe, payload: Callable[[str, int], bytes]) -> ClientApp:
    """Return an app whose sites answer with what ``payload`` returns for a site and a round."""
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        return Message(records.introduction(_site(recipe, context)), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        encoded = payload(_site(recipe, context), int(message.metadata.group_id))
        return Message(records.reply({"train_loss": 1.0}, payload=encoded), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, _: Context) -> Message:
        return Message(records.reply({"eval_loss_sum": 1.0, "eval_tokens": 1}), reply_to=message)

    return app


class ForgetfulGrid(InProcessGrid):
    """Carries messages as a network does: of what was pushed, this process keeps no content."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue the messages without their content, and return their ids."""
        pushed = list(messages)
        identifiers = super().push_messages(pushed)
        for message in pushed:
            message.content = RecordDict()
        return identifiers


def flower_reply(grid: InProcessGrid, arrays: Arrays, *, num_examples: int) -> Message:
    """Return a reply to training as Flower's LLM example sends it: an array for each factor."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "metrics": MetricRecord({"num-examples": num_examples, "train_loss": 1.0}),
        }
    )
    return grid.create_message(content, "train", dst_node_id=1, group_id="1")


def arrays_of(adapter: AdapterState | AdapterUpdate) -> Arrays:
    """Return an adapter's factors by name."""
    return {tensor.name: values.numpy() for tensor, values in adapter.factors()}


def _site(recipe: Recipe, context: Context) -> str:
    return recipe.site_names[int(context.node_config[PARTITION_ID_KEY])]
