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
        return dpo_loss(
            dpo_margins(base, batch, reference=reference),
            beta=self.recipe.dpo_beta,
            label_smoothing=self.recipe.dpo_label_smoothing,
        )

    def measure(self, base: BaseModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return losses against the base alone, so that they compare over rounds and runs."""
        losses = self.losses(base, batch, None)
        return losses, torch.ones_like(losses, dtype=torch.int64)
