"""What is known of a base model before its weights are loaded."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fedlora.adapter import AdapterSpec
from fedlora.errors import BaseModelError
from fedlora.lock import BaseDigests
from fedlora.recipe import Recipe
from fedlora.training.base_model.classifier import head_tensors
from fedlora.training.base_model.files import digest, part_digests, resolve
from fedlora.training.base_model.memory import Memory, Workload, estimate, gigabytes
from fedlora.training.base_model.network import attention, load_skeleton
from fedlora.training.base_model.placement import Placement, compute, place
from fedlora.training.base_model.targets import (
    expert_widths,
    factor_shapes,
    linear_modules,
    select,
    separate_linears,
    shortest_names,
)

_HELD = {"nf4": "NF4", "int8": "8-bit"}


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """A base model and the adapter on it, as its configuration describes them."""

    spec: AdapterSpec
    digests: BaseDigests
    architecture: str
    """The model's class, such as ``LlamaForCausalLM``."""
    parameters: int
    """Values in the base; tied weights count once."""
    weights: str
    """How the base's linear modules are held: ``NF4``, ``8-bit``, or as ``dtype``."""
    placement: Placement
    needs: Memory
    """An estimate of what training takes."""

    @property
    def memory(self) -> int:
        """Estimated bytes while training, without what the process takes for itself."""
        return self.needs.total

    @property
    def dtype(self) -> str:
        """Of the computation: ``bfloat16`` or ``float32``."""
        return str(self.placement.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Where it is computed, such as ``cpu`` or ``cuda:0``."""
        return str(self.placement)

    def require_room(self, recipe: Recipe) -> None:
        """Do nothing if the recipe may fit into the memory that is free.

        Raises:
            BaseModelError: it does not, were the estimate too high by its margin; or it fits on
                several devices alone, where gradients of single examples are not computed.
        """
        if self.placement.cards > 1 and recipe.privacy.unit == "example":
            raise BaseModelError(
                f"base_model: one device has no room for {self.needs}, and privacy.unit: example "
                "needs the gradients of an example on one. Take adapter: qlora, a smaller "
                "micro_batch_size, or a smaller base model."
            )
        if self.needs.fits(self.placement.room):
            return
        ways = [
            "a smaller micro_batch_size with more gradient_accumulation_steps, which trains the "
            "same"
            if recipe.micro_batch_size > 1
            else "",
            "a smaller sequence_len",
            "" if recipe.gradient_checkpointing else "gradient_checkpointing: true",
            "" if recipe.adapter == "qlora" else "adapter: qlora",
            "a smaller base model",
        ]
        raise BaseModelError(
            f"base_model: training {recipe.base_model} takes about {self.needs} with micro-batches "
            f"of {recipe.micro_batch_size} examples of {recipe.sequence_len} tokens, but "
            f"{self.device} has {gigabytes(self.placement.room)} GB free. What helps: "
            f"{', '.join(filter(None, ways))}."
        )


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
    work = _workload(recipe, spec, skeleton, device=device, dtype=dtype)
    needs = estimate(skeleton, linear_modules(skeleton), work)
    return BaseFacts(
        spec=spec,
        digests=part_digests(folder),
        architecture=type(skeleton).__name__,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        weights=_HELD.get(recipe.quantization, str(dtype).removeprefix("torch.")),
        placement=place(device, dtype, needed=needs.total),
        needs=needs,
    )


def mergeable(folder: Path) -> dict[str, tuple[int, int]]:
    """Return ``(out_features, in_features)`` of each weight that can be changed by itself.

    Keys are the paths of their modules. Left out are layers that are not linear or keep their
    weight transposed (GPT-2's Conv1D), and weights that several modules share.

    Raises:
        BaseModelError: the model is no causal language model that transformers knows.
    """
    return separate_linears(load_skeleton(folder))


def adapter_spec(recipe: Recipe, folder: Path, skeleton: PreTrainedModel) -> AdapterSpec:
    """Return what the recipe's adapter is made of; the same for ``lora`` and ``qlora``.

    Raises:
        BaseModelError: a name in ``lora_target_modules`` fits no linear module, or the head of a
            classifier cannot be trained.
    """
    heads = head_tensors(folder, recipe.labels) if recipe.labels else ()
    whole = {head.owner for head in heads}
    linears = {p: each for p, each in linear_modules(skeleton).items() if p not in whole}
    lock = recipe.lock
    wanted = [path for path, _, _ in lock.modules] if lock else recipe.lora_target_modules
    selected = select(linears, wanted)
    trained = AdapterSpec(
        base_model=recipe.base_model,
        base_model_revision=recipe.base_model_revision,
        base_digest=digest(folder),
        rank=recipe.lora_r,
        alpha=recipe.alpha,
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


def _workload(
    recipe: Recipe,
    spec: AdapterSpec,
    skeleton: PreTrainedModel,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Workload:
    config, linears = skeleton.config.get_text_config(), linear_modules(skeleton)
    experts = getattr(config, "num_experts_per_tok", None) or 0
    keeps_scores = attention(recipe, device) == "eager"
    return Workload(
        dtype=dtype,
        quantization=recipe.quantization,
        adapter_size=spec.size,
        examples=recipe.micro_batch_size * recipe.rows_of_example,
        length=recipe.sequence_len,
        layers=config.num_hidden_layers,
        widths=sum(map(sum, linears.values())) + experts * expert_widths(skeleton),
        hidden_size=config.hidden_size,
        vocabulary=len(recipe.labels or ()) or config.vocab_size,
        attention_heads=getattr(config, "num_attention_heads", 0) if keeps_scores else 0,
        private=recipe.privacy.unit == "example",
        checkpointing=recipe.gradient_checkpointing,
    )
