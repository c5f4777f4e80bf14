"""From a run to a release: a draft of all of its files, which a publisher signs as they are."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedlora import atomic
from fedlora.adapter import AdapterState
from fedlora.errors import RunError
from fedlora.peft_folder import write_peft_files
from fedlora.release.card import CARD, model_card
from fedlora.release.folder import files_of
from fedlora.release.manifest import MANIFEST, Manifest, stamp
from fedlora.release.provenance import PROVENANCE, provenance
from fedlora.runtime.release_facts import (
    Facts,
    Pseudonyms,
    adapter_facts,
    code_facts,
    public_name,
)
from fedlora.runtime.run_folder import RunFolder


def draft(
    run: RunFolder, into: Path, *, number: int | None = None, parent: str | None = None
) -> Manifest:
    """Write an unsigned release of a run's global adapter.

    The folder holds what PEFT loads, a model card, the provenance, and the manifest that is
    returned; the same call for the same checkpoint writes the same bytes.

    Args:
        run: with a round that is complete.
        into: the folder, which appears at once; one that is there is replaced.
        number: of the round; by default the last one that is complete. The last two are kept.
        parent: the release that it follows.

    Raises:
        RunError: the round is not complete, or its checkpoint is not kept any more.
        StorageError: the folder cannot be written.
    """
    checkpoint = run.load() if number is None else run.checkpoint(number)
    state, number = checkpoint.adapter, checkpoint.round
    return _drafted(run, state, into, number=number, parent=parent, site=None)


def draft_personal(run: RunFolder, state: AdapterState, into: Path, *, site: str) -> Manifest:
    """Write an unsigned release of one site's adapter, some of whose factors are its own.

    Args:
        run: that is complete.
        state: the global adapter with the site's own factors.
        into: as for ``draft``; errors too.
        site: whose it is.
    """
    return _drafted(run, state, into, number=run.load().round, parent=None, site=site)


def _drafted(
    run: RunFolder,
    state: AdapterState,
    into: Path,
    *,
    number: int,
    parent: str | None,
    site: str | None,
) -> Manifest:
    recipe, records = run.recipe(), run.records()[: number + 1]
    if not number or len(records) <= number:
        raise RunError(f"{run.path}: no round is complete, so that there is nothing to publish.")
    spec = replace(state.spec, base_model=public_name(recipe))
    facts = Facts(recipe=recipe, records=records, pseudonym=Pseudonyms.of(run), site=site)
    manifest = Manifest(
        name=recipe.name,
        created=stamp(datetime.fromtimestamp(run.committed(number), tz=UTC)),
        files={},
        base=facts.base(spec),
        adapter=adapter_facts(spec, recipe),
        quantization=facts.quantization(),
        origin=facts.origin(run.name, parent=parent),
        cohort=facts.cohort(),
        aggregation=facts.aggregation(),
        privacy=facts.privacy(),
        evaluation=facts.evaluation(),
        code=code_facts(),
    )
    with atomic.new_folder(into) as folder:
        write_peft_files(AdapterState(spec=spec, values=state.values), folder)
        told = provenance(manifest, files_of(folder))
        (folder / PROVENANCE).write_text(told, encoding="utf-8")
        card = model_card(manifest, license_id=recipe.publish.license)
        (folder / CARD).write_text(card, encoding="utf-8")
        manifest = manifest.model_copy(update={"files": files_of(folder)})
        (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest
