"""The adapter that a run begins with: drawn from its recipe's seed, or one trained before it."""

from pathlib import Path

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.errors import AdapterError
from fedlora.gate.inbound import factor_digest, require_beginning
from fedlora.lock import Beginning
from fedlora.peft_folder import read_peft_folder
from fedlora.recipe import Recipe
from fedlora.release.folder import Release, unsigned


def beginning_of(recipe: Recipe, spec: AdapterSpec) -> AdapterState:
    """Return what a run of a recipe begins with.

    Args:
        recipe: locked or not; what a lock says of the beginning must hold.
        spec: of its global adapter.

    Raises:
        AdapterError: ``init_from`` holds no adapter, or one that does not fit the recipe.
        PolicyError: it holds another than the recipe was locked to.
        ReleaseError: it is a release's folder, and a byte is not what was published.
    """
    if recipe.init_from is None:
        return AdapterState.initial(spec, seed=recipe.seed)
    state, _ = _read(Path(recipe.init_from).expanduser(), recipe, spec)
    require_beginning(state, recipe)
    return state


def beginning_lock(recipe: Recipe, spec: AdapterSpec) -> Beginning | None:
    """Return what hosts without ``init_from`` know of it; nothing where the seed says all.

    Raises:
        AdapterError: as ``beginning_of``.
        ReleaseError: likewise.
    """
    if recipe.init_from is None:
        return None
    state, release = _read(Path(recipe.init_from).expanduser(), recipe, spec)
    return Beginning(
        release=release.id if release else None,
        a_digest=factor_digest(state, "A"),
        b_digest=factor_digest(state, "B"),
        head_digest=factor_digest(state, "head"),
    )


def _read(folder: Path, recipe: Recipe, spec: AdapterSpec) -> tuple[AdapterState, Release | None]:
    release = unsigned(folder)
    if release and release.manifest.base.digest != spec.base_digest:
        base = release.manifest.base
        raise AdapterError(
            f"init_from: {folder}: this release belongs on {base.name}, {base.digest[:12]}, but "
            f"the recipe's base_model is {spec.base_model}, {spec.base_digest[:12]}. Name that "
            "base, or another release."
        )
    if release and release.manifest.adapter.labels != recipe.labels:
        labels = ", ".join(release.manifest.adapter.labels or ()) or "nothing"
        raise AdapterError(
            f"init_from: {folder}: this release tells apart {labels}, but the recipe's labels are "
            f"{', '.join(recipe.labels or ()) or 'none'}, and their order is that of the head's "
            "outputs. Set labels to its own, or name another release."
        )
    try:
        state = read_peft_folder(
            folder, base_digest=spec.base_digest, base_model=spec.base_model
        ).arranged_as(spec)
    except AdapterError as error:
        raise AdapterError(
            f"init_from: {error} Rank, alpha and modules must be the adapter's: set lora_r, "
            "lora_alpha and lora_target_modules to them, or name another."
        ) from None
    return state, release
