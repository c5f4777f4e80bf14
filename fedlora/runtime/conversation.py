"""Questions to a base model and to adapters on it, side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Self

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError
from fedlora.peft_folder import read_peft_folder
from fedlora.recipe import Recipe
from fedlora.release import home
from fedlora.release.folder import Release
from fedlora.release.manifest import Quantization
from fedlora.release.pull import Puller
from fedlora.release.reference import unverified
from fedlora.runtime.run_folder import RunFolder
from fedlora.sections import STANDARD_LIBRARY
from fedlora.training.base_model import Panel, digest, resolve


@dataclass(frozen=True, kw_only=True, eq=False)
class Speaker:
    """An adapter that answers."""

    reference: str
    """As the user named it."""
    state: AdapterState
    """Of a ``base_digest`` that is empty where nobody says which it is."""
    recipe: Recipe
    """Loads its base, as it was held in training."""
    release: str | None = None
    """None of a folder, which is the user's own and does not move."""


class Conversation:
    """A base model in memory and adapters on it, each of which follows its alias.

    Args:
        panel: has the adapters of the speakers, in their order.
        speakers: who answers.
        puller: as ``find`` takes it.
    """

    def __init__(
        self, panel: Panel, speakers: Sequence[Speaker], *, puller: Callable[[], Puller]
    ) -> None:
        self.speakers = list(speakers)
        self._panel = panel
        self._puller = puller

    @classmethod
    def open(
        cls,
        references: Sequence[str],
        *,
        base_model: str | None = None,
        registry: Path | None = None,
    ) -> Self:
        """Load adapters and, once, the base that they are on.

        Args:
            references: run folders, folders in PEFT's format, and ``NAME``, ``NAME@ALIAS`` or
                ``NAME@RELEASE`` of a registry, whose releases are verified.
            base_model: where the base is, when it is not where the first adapter says.
            registry: where references are looked up: a registry file or a store's folder; by
                default what ``FEDLORA_REGISTRY`` names.

        Raises:
            AdapterError: there is no adapter, or it is of another base than the others.
            BaseModelError: the base cannot be loaded.
            ReleaseError: a reference leads to nothing that may be used.
        """
        puller = cache(partial(home.puller, registry))
        speakers = [find(reference, puller=puller) for reference in references]
        recipe = speakers[0].recipe
        if base_model:
            recipe = recipe.model_copy(update={"base_model": base_model})
        else:
            _require_one_name(speakers)
        base_digest = digest(resolve(recipe.base_model, recipe.base_model_revision))
        for speaker in speakers:
            _require_base(speaker, base_digest, named=recipe.base_model)
        panel = Panel.load(recipe, [speaker.state for speaker in speakers])
        return cls(panel, speakers, puller=puller)

    def follow(self) -> list[Speaker]:
        """Replace each adapter whose alias has moved, and return the new ones.

        Raises:
            ReleaseError: the registry does not answer, or an alias leads to nothing that may be
                used; what was loaded stays.
            AdapterError: the new adapter is of another base.
        """
        moved = []
        for number, speaker in enumerate(self.speakers):
            if speaker.release is None:
                continue
            if self._puller().resolve(speaker.reference) == speaker.release:
                continue
            new = find(speaker.reference, puller=self._puller)
            _require_base(new, speaker.state.spec.base_digest, named=speaker.recipe.base_model)
            self._panel.replace(number, new.state)
            self.speakers[number] = new
            moved.append(new)
        return moved

    def ask(self, question: str, *, max_new_tokens: int) -> list[str]:
        """Return the greedy answers: that of the base, then that of each speaker."""
        return self._panel.answers(question, max_new_tokens=max_new_tokens)


def find(reference: str, *, puller: Callable[[], Puller]) -> Speaker:
    """Return the adapter that a run folder, a folder in PEFT's format or a reference names.

    Args:
        reference: a folder, or else what a registry is asked for.
        puller: gives what fetches releases; not called for a folder.

    Raises:
        AdapterError: there is none, or it is not plain LoRA.
        ReleaseError: the reference leads to nothing that may be used.
    """
    folder = Path(reference)
    if (folder / "recipe.yaml").is_file():
        return _of_run(RunFolder.open(folder), reference)
    if folder.is_dir():
        return _of_folder(folder, reference)
    return _of_release(puller().pull(reference), reference)


def _of_run(run: RunFolder, reference: str) -> Speaker:
    recipe = run.recipe()
    if recipe.federation.facts.personal and run.is_published:
        folders = ", ".join(sorted(map(str, run.release.iterdir())))
        raise AdapterError(
            f"{run.release}: each site has its own adapter. Name the folder of one: {folders}."
        )
    state = read_peft_folder(run.release, base_digest=run.spec().base_digest)
    return Speaker(reference=reference, state=state, recipe=recipe)


def _of_folder(folder: Path, reference: str) -> Speaker:
    manifest = unverified(folder)
    quantization = manifest.quantization if manifest else Quantization()
    state = read_peft_folder(folder, base_digest=manifest.base.digest if manifest else "")
    return Speaker(reference=reference, state=state, recipe=_recipe_of(state, quantization))


def _of_release(release: Release, reference: str) -> Speaker:
    manifest = release.manifest
    if manifest.kind != "adapter":
        raise AdapterError(f"{reference}: this is a whole model ({manifest.kind}), no adapter.")
    state = read_peft_folder(release.folder, base_digest=manifest.base.digest)
    recipe = _recipe_of(state, manifest.quantization)
    return Speaker(reference=reference, state=state, recipe=recipe, release=release.id)


def _recipe_of(state: AdapterState, quantization: Quantization) -> Recipe:
    """Return a recipe that loads the adapter's base; what it would train on is not asked."""
    return Recipe.model_validate(
        {
            "base_model": state.spec.base_model,
            "base_model_revision": state.spec.base_model_revision,
            "adapter": "qlora" if quantization.kind == "nf4" else "lora",
            "load_in_8bit": quantization.kind == "int8",
            "datasets": [{"path": STANDARD_LIBRARY}],
            "privacy": {"unit": "none"},
        }
    )


def _require_one_name(speakers: Sequence[Speaker]) -> None:
    """Do nothing if adapters of which no digest is known say by name that they are of one base.

    Raises:
        AdapterError: they name several.
    """
    first = speakers[0].state.spec
    for speaker in speakers:
        spec = speaker.state.spec
        if not (spec.base_digest and first.base_digest) and spec.base_model != first.base_model:
            raise AdapterError(
                f"{speaker.reference}: this adapter is of {spec.base_model}, but "
                f"{speakers[0].reference} is of {first.base_model}. If these are names of one "
                "model, say with --base-model where it is."
            )


def _require_base(speaker: Speaker, base_digest: str, *, named: str) -> None:
    """Do nothing if an adapter is of the base that is loaded.

    Raises:
        AdapterError: it is of another.
    """
    spec = speaker.state.spec
    if spec.base_digest and spec.base_digest != base_digest:
        raise AdapterError(
            f"{speaker.reference}: this adapter is of {spec.base_model} with the digest "
            f"{spec.base_digest[:12]}, but {named} here has {base_digest[:12]}: weights, "
            "configuration, tokenizer or chat template are others. Adapters of one base can be "
            "asked side by side; --base-model says where it is."
        )
