"""What is known of a base model before its weights are loaded."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from fedlora.adapter import AdapterSpec
from fedlora.errors import BaseModelError
from fedlora.lock import BaseDigests
from fedlora.recipe import Recipe
from fedlora.training.base_model.classifier import head_tensors
from fedlora.training.base_model.files import digest, part_digests, resolve
from fedlora.training.base_model.memory import Workload, estimate
from fedlora.training.base_model.network import attention, compute, load_skeleton
from fedlora.training.base_model.targets import (
    factor_shapes,
    linear_modules,
    select,
    separate_linears,
    shortest_names,
)


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """A base model and the adapter on it, as its configuration describes them."""

    spec: AdapterSpec
    digests: BaseDigests
    architecture: str
    """The model's class, such as ``LlamaForCausalLM``."""
    parameters: int
    """Values in the base; tied weights count once."""
    dtype: str
    """Of the computation: ``bfloat16`` or ``float32``."""
    device: str
    memory: int
    """Estimated bytes while training, without what the process takes for itself."""


def describe(recipe: Recipe) -> BaseFacts:
    """Return the facts of the recipe's base model; its weights are hashed, but not loaded.

    Raises:
        BaseModelError: the model is not there, is no causal language model, or sequence classifier,
            that transformers knows, or has none of the modules that the recipe names.
    """
    folder = resolve(recipe.base_model, recipe.base_model_revision)
    skeleton = load_skeleton(folder, recipe.labels)
    spec = adapter_spec(recipe, folder, skeleton)
    device, dtype = compute(recipe)
    return BaseFacts(
        spec=spec,
        digests=part_digests(folder),
        architecture=type(skeleton).__name__,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        memory=estimate(skeleton, linear_modules(skeleton), _workload(recipe, spec, skeleton)),
    )


def mergeable(folder: Path) -> dict[str, tuple[int, int]]:
    """Return ``(out_features, in_features)`` of each weight that can be changed by itself.

    Keys are the paths of their modules. Left out are layers that are not linear or keep their
    weight transposed (GPT-2's Conv1D), and weights that several modules share.

    Raises:
        BaseModelError: the model is no causal language model that transformers knows.
    """
    return {
        path: (linear.out_features, linear.in_features)
        for path, linear in separate_linears(load_skeleton(folder)).items()
    }


def adapter_spec(recipe: Recipe, folder: Path, skeleton: PreTrainedModel) -> AdapterSpec:
    """Return what the recipe's adapter is made of; the same for ``lora`` and ``qlora``.

    Raises:
        BaseModelError: a name in ``lora_target_modules`` fits no linear module, or the head of a
            classifier cannot be trained.
    """
    heads = head_tensors(folder, recipe.labels) if recipe.labels else ()
    whole = {head.module.rpartition(".")[0] for head in heads}
    linears = {p: each for p, each in linear_modules(skeleton).items() if p not in whole}
    selected = select(linears, recipe.lora_target_modules)
    trained = AdapterSpec(
        base_model=recipe.base_model,
        base_model_revision=recipe.base_model_revision,
        base_digest=digest(folder),
        rank=recipe.lora_r,
        alpha=recipe.lora_alpha,
        target_modules=shortest_names(skeleton, selected),
        tensors=(*factor_shapes(selected, rank=recipe.lora_r), *heads),
    )
    return _as_locked(trained, recipe).part(rank=recipe.rank)


def _as_locked(spec: AdapterSpec, recipe: Recipe) -> AdapterSpec:
    """Return the specification under the base's name in the lock, if the recipe has one.

    Raises:
        BaseModelError: the base is not the one that the recipe is locked to.
    """
    lock = recipe.lock
    if lock is None:
        return spec
    if lock.base_digest != spec.base_digest:
        raise BaseModelError(
            f"base_model: {recipe.base_model} has the digest {spec.base_digest[:12]}, but the "
            f"recipe is locked to {lock.base_digest[:12]}: weights, configuration, tokenizer or "
            f"chat template are others. Get {lock.base_model} as it was, or lock the recipe anew."
        )
    return replace(spec, base_model=lock.base_model, base_model_revision=lock.base_model_revision)


def _workload(recipe: Recipe, spec: AdapterSpec, skeleton: PreTrainedModel) -> Workload:
    device, dtype = compute(recipe)
    config = skeleton.config.get_text_config()
    keeps_scores = attention(recipe, device) == "eager"
    return Workload(
        dtype=dtype,
        quantized=recipe.adapter == "qlora",
        adapter_size=spec.size,
        examples=recipe.micro_batch_size,
        length=recipe.sequence_len,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocabulary=len(recipe.labels or ()) or config.vocab_size,
        attention_heads=config.num_attention_heads if keeps_scores else 0,
        checkpointing=recipe.gradient_checkpointing,
    )
