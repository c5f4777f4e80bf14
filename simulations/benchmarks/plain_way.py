"""The plain way to federate LoRA, as Flower's LLM example does it: the peer of ``rounds``.

PEFT and AdamW in float32, the base loaded anew for every client and round, Flower's FedAvg over the
adapter's state dict, padded batches as they come.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from fedlora.data.batches import Batch
from fedlora.recipe import Recipe
from fedlora.runtime.carriers.in_process import InProcessGrid

logging.getLogger("flwr").setLevel(logging.ERROR)
disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def load(base: Path, recipe: Recipe) -> torch.nn.Module:
    """Load the base in float32 and put a fresh adapter on it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=int(recipe.lora_alpha),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def federate(base: Path, recipe: Recipe, batches: Mapping[int, Sequence[Sequence[Batch]]]) -> None:
    """Play the recipe's rounds.

    Args:
        base: the base model's folder.
        recipe: rounds, learning rate and rank.
        batches: by client, then by round: what it trains on.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = load(base, recipe).train()
        state = message.content.array_records["arrays"].to_torch_state_dict()
        set_peft_model_state_dict(model, state)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=recipe.learning_rate
        )
        mine = batches[int(context.node_config[PARTITION_ID_KEY])]
        number = int(str(message.content.config_records["config"]["server-round"]))
        for batch in mine[number - 1]:
            loss = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                labels=batch.labels,
            ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        content = RecordDict(
            {
                "arrays": ArrayRecord(get_peft_model_state_dict(model)),
                "metrics": MetricRecord({"num-examples": len(mine[0]), "loss": loss.item()}),
            }
        )
        return Message(content, reply_to=message)

    initial = ArrayRecord(get_peft_model_state_dict(load(base, recipe)))
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    grid = InProcessGrid(app, clients=len(batches))
    strategy.start(grid, initial, num_rounds=recipe.federation.rounds)
