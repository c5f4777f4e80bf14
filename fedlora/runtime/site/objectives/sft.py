"""Supervised fine-tuning: the next token of answers, or of all text."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedlora.data.batches import Batch, collate
from fedlora.data.examples import Example
from fedlora.data.tokens import TokenizedExample, Tokenizer, tokenize
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel
from fedlora.training.objectives import sft_loss, token_losses


@dataclass(frozen=True)
class Sft:
    """Learns each row's supervised tokens, their mean loss counting the same for each row."""

    recipe: Recipe

    def tokenize(self, row: Example, tokenizer: Tokenizer) -> TokenizedExample:
        return tokenize(
            row,
            tokenizer,
            sequence_len=self.recipe.sequence_len,
            train_on_inputs=self.recipe.train_on_inputs,
        )

    def collate(
        self, rows: Sequence[TokenizedExample], *, pad_token_id: int, length: int | None = None
    ) -> Batch:
        return collate(rows, pad_token_id=pad_token_id, length=length)

    def losses(self, base: BaseModel, batch: Batch) -> Tensor:
        return sft_loss(base, batch)

    def measured(self, base: BaseModel, batch: Batch) -> tuple[Tensor, Tensor]:
        return token_losses(base, batch)
