"""A recipe's lock: what its base model is, so that hosts without the base know the adapter too."""

from typing import Annotated

from pydantic import Field

from fedlora.sections import Count, Digest, Section, Strings

Path = Annotated[str, Field(pattern="^[A-Za-z0-9_.-]{1,200}$")]
"""Of a module, such as ``model.layers.0.mlp.up_proj``."""

Module = Annotated[tuple[Path, Count, Count], Field(strict=False)]
"""A module's path, its output features and its input features."""

Head = Annotated[
    tuple[Path, Annotated[tuple[Count, ...], Field(strict=False, min_length=1, max_length=2)]],
    Field(strict=False),
]
"""The path of a head's parameter, and its shape."""


class BaseDigests(Section):
    """What the parts of a base model are, each by itself."""

    weights_digest: Digest
    """Over names and contents of its safetensors files."""
    tokenizer_digest: Digest
    """Over names and contents of the tokenizer's files."""
    chat_template_digest: Digest | None = None
    """Of the template's text; absent where the base has none."""


class Beginning(Section):
    """The adapter that training begins with, where the recipe's seed does not say it."""

    release: Digest | None = None
    """The release whose it is; absent where it is none's."""
    a_digest: Digest
    """SHA-256 over the values of all factors A, as float32, in an adapter's order."""
    b_digest: Digest
    """Likewise of all B."""
    head_digest: Digest
    """Likewise of all heads; of nothing, where there is none."""


class Lock(BaseDigests):
    """The base model that a recipe means, and the modules that it adapts or trains there.

    ``fedlora recipe lock`` writes it where the base is; nobody writes it by hand. With the recipe's
    ranks, alpha and seed it says everything of the adapter that training begins with; of one that
    ``init_from`` names, what its values must be.
    """

    base_model: str
    """The base as the recipe named it when it was locked; a site may keep it elsewhere."""
    base_model_revision: str | None = None
    base_digest: Digest
    """SHA-256 over weights, configuration, tokenizer and chat template."""
    target_modules: Strings
    """What PEFT needs in order to find the adapted modules again."""
    modules: Annotated[tuple[Module, ...], Field(strict=False, min_length=1)]
    """The adapted modules, in the order in which their factors lie in an adapter."""
    heads: Annotated[tuple[Head, ...], Field(strict=False)] = ()
    """What is trained whole, in the order in which it lies in an adapter, behind all factors."""
    beginning: Beginning | None = None
    """What ``init_from`` was when the recipe was locked."""
