"""The model card: a release's README, with the metadata that the Hub reads."""

from collections.abc import Iterable, Iterator

from fedlora.document import write_yaml
from fedlora.release.manifest import Loss, Manifest

CARD = "README.md"
"""Its file in a release's folder."""

_CHECK = """\
Check it first: `fedlora adapters verify path/to/this/folder --key KEY`, with the publisher's public
key."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM allows as ``--max-lora-rank``."""


def model_card(manifest: Manifest, *, license_id: str) -> str:
    """Return the card in Markdown.

    Args:
        manifest: of the release; its files are not looked at.
        license_id: as the Hub spells it.
    """
    parts = [
        _metadata(manifest, license_id),
        f"# {manifest.name}",
        _what(manifest),
        "## Base and adapter",
        _table(("", ""), _facts(manifest)),
        "## Training",
        _training(manifest),
        "## Privacy",
        "\n\n".join(manifest.privacy.statement),
        "## Evaluation",
        _evaluation(manifest),
        "## How to load it",
        _loading(manifest),
        "## Limits",
        _limits(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(manifest: Manifest, license_id: str) -> str:
    tags = ["lora", "federated-learning", "fedlora"]
    if manifest.privacy.epsilon is not None:
        tags.append("differential-privacy")
    if manifest.privacy.secure_sums is not None:
        tags.append("secure-aggregation")
    base = {"base_model": manifest.base.hub_id} if manifest.base.hub_id else {}
    values = {
        **base,
        "library_name": "peft",
        "pipeline_tag": _task(manifest),
        "license": license_id,
        "tags": tags,
    }
    return f"---\n{write_yaml(values).strip()}\n---"


def _task(manifest: Manifest) -> str:
    """Return what the Hub calls what it does."""
    return "text-classification" if manifest.adapter.labels else "text-generation"


def _what(manifest: Manifest) -> str:
    sites = "1 site" if manifest.cohort.population == 1 else f"{manifest.cohort.population} sites"
    text = (
        f"A LoRA adapter for `{manifest.base.name}`, fine-tuned by federated learning over "
        f"{sites}. Each trained on data of its own, which stayed there; an aggregator combined "
        "their updates."
    )
    if manifest.origin.site:
        text += f" One factor of it is `{manifest.origin.site}`'s own, and was never shared."
    if manifest.adapter.labels:
        text += " With its head it says which of these labels a text has: "
        text += f"{', '.join(f'`{label}`' for label in manifest.adapter.labels)}."
    return text


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    base, adapter = manifest.base, manifest.adapter
    revision = f" at revision `{base.revision}`" if base.revision else ""
    yield "Base model", f"`{base.name}`{revision}"
    for name, digest in (
        ("Base, all of it", base.digest),
        ("Weights", base.weights),
        ("Tokenizer", base.tokenizer),
        ("Chat template", base.chat_template),
    ):
        yield name, f"SHA-256 `{digest}`" if digest else "none" if base.weights else "not known"
    yield "Held while training", _held(manifest)
    yield "Rank, alpha", f"{adapter.rank}, {adapter.alpha:g}"
    yield "Adapted", f"{adapter.modules} modules: {', '.join(adapter.target_modules)}"
    if adapter.labels:
        yield "Head", f"for {len(adapter.labels)} labels, trained whole"
    yield "Parameters", f"{adapter.parameters:,} ({adapter.dtype})"


def _held(manifest: Manifest) -> str:
    quantization = manifest.quantization
    compute = {"by-device": "what the device has"}.get(
        quantization.compute_dtype, quantization.compute_dtype
    )
    twice = ", doubly quantised" if quantization.double_quantization else ""
    kinds = {"none": "full precision", "int8": "8-bit integers", "nf4": f"4-bit NF4{twice}"}
    return f"{kinds[quantization.kind]}; computed in {compute}"


def _training(manifest: Manifest) -> str:
    origin, aggregation, cohort = manifest.origin, manifest.aggregation, manifest.cohort
    text = (
        f"Round {origin.round} of {origin.rounds} of the run `{origin.run}`; the recipe's SHA-256 "
        f"is `{origin.recipe}`. Updates were combined by the method `{aggregation.method}`"
    )
    robust = f", weighed by `{aggregation.robust}`" if aggregation.robust != "none" else ""
    text += f"{robust}."
    if sums := manifest.privacy.secure_sums:
        text += (
            f" They were masked, and the aggregator had sums over {sums.fewest} or more sites "
            f"alone, each update cut to a norm of {sums.clip:g}."
        )
    if aggregation.truncation_error is not None:
        text += (
            " What the last round's cut to the rank left out is "
            f"{aggregation.truncation_error:.2%} of the change that was to be made."
        )
    if cohort.sites is not None:
        named = ", ".join(f"`{site}`" for site in cohort.sites)
        text += f" In it are updates of {named} (pseudonyms)."
    if origin.began_with:
        text += f" Training began with release `{origin.began_with}`."
    if origin.parent:
        text += f" It follows release `{origin.parent}`."
    return text


def _evaluation(manifest: Manifest) -> str:
    found = manifest.evaluation
    rows = [("held-out rows, mean over the sites", found.held_out)]
    rows += [(f"held-out rows of `{site}`", loss) for site, loss in (found.sites or {}).items()]
    public = ", nats a token" if found.unit else ""
    rows.append((f"public general text (forgetting){public}", found.forgetting))
    measured = [(name, *_losses(loss)) for name, loss in rows if loss]
    if not measured:
        return "Nothing was measured."
    base = "base with an untrained head" if manifest.adapter.labels else "base"
    heads = (f"Loss, nats a {found.unit or 'token'}", base, "with adapter")
    notes = [_table(heads, measured)]
    if found.held_out and manifest.privacy.unit != "none":
        notes.append(
            "Held-out losses are noised for privacy: rough numbers, each cut at ten nats a record."
        )
    if found.forgetting:
        notes.append("The public text is the median site's by what the adapter changes.")
    return "\n\n".join(notes)


def _losses(loss: Loss) -> tuple[str, str]:
    return f"{loss.base:.4f}", f"{loss.adapter:.4f}"


def _loading(manifest: Manifest) -> str:
    base = manifest.base.hub_id or f"/path/to/{manifest.base.name}"
    revision = f', revision="{manifest.base.revision}"' if manifest.base.revision else ""
    rank = next((rank for rank in _RANKS if rank >= manifest.adapter.rank), manifest.adapter.rank)
    if manifest.adapter.labels:
        return _loading_classifier(manifest, base=f'"{base}"{revision}')
    return f"""With PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}"{revision})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```

With vLLM:

```
vllm serve {base} --enable-lora --max-lora-rank {rank} \\
    --lora-modules {manifest.name}=path/to/this/folder
```

{_CHECK}"""


def _loading_classifier(manifest: Manifest, *, base: str) -> str:
    names = dict(enumerate(manifest.adapter.labels or ()))
    return f"""With PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base})
base = AutoModelForSequenceClassification.from_pretrained(
    {base}, id2label={names!r}, ignore_mismatched_sizes=True
)
base.config.pad_token_id = tokenizer.pad_token_id  # a decoder needs it to find a text's end
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```

That transformers draws a head at random does not matter: the adapter's takes its place.

{_CHECK}"""


def _limits(manifest: Manifest) -> str:
    lines = [
        "It means something on this very base, tokenizer and chat template alone: compare digests.",
        "It was measured on what the table says, nothing else.",
        "It can be wrong, and has the faults of the base and of the data that it learned from.",
    ]
    if manifest.quantization.kind != "none":
        lines.append("Merge it into the base in full precision, never into the quantised one.")
    if manifest.privacy.epsilon is None:
        lines.append("It may repeat what it was trained on: nothing bounds that.")
    else:
        lines.append("The privacy promise is what is written above, under its assumptions alone.")
    return "\n".join(f"- {line}" for line in lines)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
