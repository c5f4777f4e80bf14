"""Sequence classification: which of the recipe's labels a text has."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedlora.adapter import AdapterState
from fedlora.data.examples import Labelled
from fedlora.data.labels import LabelledBatch, TokenizedText, collate_texts, tokenize_text
from fedlora.data.tokens import Tokenizer
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel
from fedlora.training.evaluation import Evaluation
from fedlora.training.objectives import label_loss, label_measure


@dataclass(frozen=True)
class Classification:
    """Learns the label of each text, all texts counting the same."""

    recipe: Recipe

    def tokenize(self, row: Labelled, tokenizer: Tokenizer) -> TokenizedText:
        labels, length = self.recipe.labels or (), self.recipe.sequence_len
        return tokenize_text(row, tokenizer, labels=labels, sequence_len=length)

    def collate(
        self, rows: Sequence[TokenizedText], *, pad_token_id: int, length: int | None = None
    ) -> LabelledBatch:
        return collate_texts(rows, pad_token_id=pad_token_id, length=length)

    def losses(
        self, base: BaseModel, batch: LabelledBatch, _received: AdapterState | None, /
    ) -> Tensor:
        return label_loss(base, batch)

    def measure(self, base: BaseModel, batch: LabelledBatch) -> Evaluation:
        return label_measure(base, batch)
