"""What Flower's own client, executor and strategy run beside ours: FedAvg over arrays of zeros.

``stock_flower.py`` sends this file as an app bundle, so it imports nothing of ours.
"""

import os
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server, client = ServerApp(), ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds, and note when each ended."""
    config, sites = context.run_config, int(context.run_config["sites"])

    def ended(_number: int, _arrays: ArrayRecord) -> None:
        _note(str(config["rounds-file"]), time.time())

    strategy = FedAvg(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites)
    adapter = Array(np.zeros(int(config["size"]), np.float32))
    strategy.start(
        grid, ArrayRecord({"adapter": adapter}), num_rounds=int(config["rounds"]), evaluate_fn=ended
    )


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the adapter as it came."""
    _work(context)
    metrics = MetricRecord({"num-examples": 1, "train_loss": 1.0})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with a number."""
    _work(context)
    metrics = MetricRecord({"num-examples": 1, "eval_loss": 1.0})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _work(context: Context) -> None:
    """Load the base model, if there is to be one, and note which process has answered."""
    base = str(context.run_config["base-model"])
    if base:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - takes seconds

        AutoModelForCausalLM.from_pretrained(base)
    _note(str(context.run_config["processes-file"]), os.getpid())


def _note(path: str, what: float) -> None:
    with Path(path).open("a", encoding="ascii") as file:
        file.write(f"{what}\n")
