"""Direct preference optimisation: which of two answers to a prompt is preferred."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapter import AdapterState
from fedlora.data.batches import Batch
from fedlora.data.examples import Preference
from fedlora.data.preferences import TokenizedPair, collate_pairs, tokenize_pair
from fedlora.data.tokens import Tokenizer
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel
from fedlora.training.evaluation import Evaluation, Share
from fedlora.training.objectives import dpo_loss, dpo_margins


@dataclass(frozen=True)
class Dpo:
    """Learns to prefer one answer of each pair, against the base or the received adapter."""

    recipe: Recipe

    def tokenize(self, row: Preference, tokenizer: Tokenizer) -> TokenizedPair:
        return tokenize_pair(row, tokenizer, sequence_len=self.recipe.sequence_len)

    def collate(
        self, rows: Sequence[TokenizedPair], *, pad_token_id: int, length: int | None = None
    ) -> Batch:
        return collate_pairs(rows, pad_token_id=pad_token_id, length=length)

    def losses(self, base: BaseModel, batch: Batch, received: AdapterState | None, /) -> Tensor:
        reference = received if self.recipe.dpo_reference == "global" else None
        return self._loss(dpo_margins(base, batch, reference=reference))

    def measure(self, base: BaseModel, batch: Batch) -> Evaluation:
        """Measure against the base alone, so that rounds and runs compare."""
        margins = dpo_margins(base, batch, reference=None)
        losses, won = self._loss(margins), Share.of(margins > 0)
        loss_sum = float(losses.sum(dtype=torch.float64))
        return Evaluation(loss_sum=loss_sum, tokens=len(losses), shares={"pair_accuracy": won})

    def _loss(self, margins: Tensor) -> Tensor:
        return dpo_loss(
            margins, beta=self.recipe.dpo_beta, label_smoothing=self.recipe.dpo_label_smoothing
        )
