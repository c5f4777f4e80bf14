"""Locking a recipe to its base model, and reading the adapter from a locked one."""

from fedlora.adapter import AdapterSpec, TensorSpec
from fedlora.errors import RecipeError
from fedlora.lock import BaseDigests, Lock
from fedlora.recipe import Recipe
from fedlora.runtime.beginning import beginning_lock


def locked(recipe: Recipe, spec: AdapterSpec, digests: BaseDigests) -> Recipe:
    """Return the recipe with a lock of the base that ``spec`` is an adapter of.

    Args:
        recipe: of the run.
        spec: of its global adapter.
        digests: of the base's parts.

    Raises:
        AdapterError: ``init_from`` holds no adapter that fits.
        ReleaseError: it is a release's folder, and a byte is not what was published.
    """
    shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
    lock = Lock(
        base_model=spec.base_model,
        base_model_revision=spec.base_model_revision,
        base_digest=spec.base_digest,
        target_modules=spec.target_modules,
        **digests.model_dump(),
        modules=tuple(
            (module, shapes[f"{module}.lora_B"][0], shapes[f"{module}.lora_A"][1])
            for module in spec.modules
        ),
        heads=tuple((head.module, head.shape) for head in spec.heads),
        beginning=beginning_lock(recipe, spec),
    )
    return recipe.model_copy(update={"lock": lock})


def spec_of(recipe: Recipe) -> AdapterSpec:
    """Return what a locked recipe's global adapter is made of, without its base model.

    Raises:
        RecipeError: the recipe is not locked.
    """
    lock = recipe.lock
    if lock is None:
        raise RecipeError(
            "The recipe is not locked, so that only a host with its base model knows the adapter. "
            "Lock it where the base is: fedlora recipe lock RECIPE."
        )
    tensors: list[TensorSpec] = []
    for module, rows, columns in lock.modules:
        tensors += (
            TensorSpec(module=module, factor="A", shape=(recipe.lora_r, columns)),
            TensorSpec(module=module, factor="B", shape=(rows, recipe.lora_r)),
        )
    tensors += [TensorSpec(module=path, factor="head", shape=shape) for path, shape in lock.heads]
    spec = AdapterSpec(
        base_model=lock.base_model,
        base_model_revision=lock.base_model_revision,
        base_digest=lock.base_digest,
        rank=recipe.lora_r,
        alpha=recipe.alpha,
        target_modules=lock.target_modules,
        tensors=tuple(tensors),
    )
    return spec.part(rank=recipe.rank)
