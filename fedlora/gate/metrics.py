"""The numbers besides an adapter that may leave a site, by name."""

import re
from collections.abc import Mapping, Sequence

PUBLIC = frozenset({"public_loss_sum", "public_tokens"})
"""Of the public text alone: whoever has the adapter can measure them, so that they tell nothing of
a site's data and cost no privacy."""

NOISED = frozenset({"eval_loss_sum", "eval_tokens"})
"""The only numbers of a site's own data that may leave it under privacy: a sum that was noised, and
a public number to divide it by."""

SHARES: Mapping[str, Sequence[str]] = {
    "sft": ("token_accuracy", "exact_match"),
    "dpo": ("pair_accuracy",),
    "classification": ("label_accuracy", "f1"),
}
"""What is counted of held-out rows besides the loss, by objective; ``f1`` of each class."""

COUNTED = tuple(
    f"eval_{name}_{part}"
    for names in SHARES.values()
    for name in names
    for part in ("sum", "count")
)
"""The sums and counts of these shares; a site's policy may withhold them."""

ALLOWED = NOISED | PUBLIC | {"train_loss", *COUNTED}
"""All of them."""

_OF_CLASS = re.compile(r"(eval_f1_(?:sum|count))\.[0-9]{1,2}")


def kind_of(name: str) -> str:
    """Return a metric's name without the class that it is of: ``f1`` ends in ``.k``."""
    match = _OF_CLASS.fullmatch(name)
    return match[1] if match else name
