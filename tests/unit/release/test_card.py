"""The model card and the provenance: what a reader, the Hub and supply-chain tools are told."""

import json

import pytest
import yaml

from fedlora.release.card import model_card
from fedlora.release.manifest import (
    Base,
    Evaluation,
    File,
    Loss,
    Manifest,
    Origin,
    Privacy,
    Quantization,
)
from fedlora.release.provenance import provenance
from simulations.published import DIGEST, manifest_of

SITE = "site-00000000000a"
HUB = Base(name="meta-llama/Llama-3.2-1B", revision="main", digest=DIGEST, weights="cd" * 32)


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    """A manifest without files."""
    return manifest_of(tmp_path)


def metadata(card: str) -> dict:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_hub_s_metadata(manifest):
    """The base is named where it is on the Hub; a licence that nobody gave is unknown."""
    assert metadata(model_card(manifest, license_id="unknown")) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "unknown",
        "tags": ["lora", "federated-learning", "fedlora"],
    }
    private = Privacy(unit="example", epsilon=8.0, delta=1e-5, statement=("ε is 8.",))
    changed = manifest.model_copy(update={"base": HUB, "privacy": private})
    told = metadata(model_card(changed, license_id="apache-2.0"))
    assert told["base_model"] == "meta-llama/Llama-3.2-1B"
    assert told["license"] == "apache-2.0"
    assert "differential-privacy" in told["tags"]


@pytest.mark.parametrize("name", ["embedded", "Llama-3.2-1B", "/models/Llama", "a/b/c", "a/b\n"])
def test_what_is_no_id_of_the_hub_is_none(name):
    """A folder of the publisher's must not become a link to somebody else's model."""
    assert Base(name=name, digest=DIGEST).hub_id is None


def test_the_card_says_what_the_manifest_says(manifest):
    """Losses, digests, the promise of privacy, and how to load it."""
    evaluation = Evaluation(
        held_out=Loss(base=3.0, adapter=2.5),
        sites={SITE: Loss(base=3.25, adapter=2.75)},
        forgetting=Loss(base=5.0, adapter=5.05),
    )
    changed = {"base": HUB, "evaluation": evaluation, "quantization": Quantization(kind="nf4")}
    card = model_card(manifest.model_copy(update=changed), license_id="unknown")
    for told in (
        "| held-out rows, mean over the sites | 3.0000 | 2.5000 |",
        f"| held-out rows of `{SITE}` | 3.2500 | 2.7500 |",
        "| public general text (forgetting) | 5.0000 | 5.0500 |",
        f"| Weights | SHA-256 `{'cd' * 32}` |",
        "| Chat template | none |",
        manifest.privacy.statement[0],
        'from_pretrained("meta-llama/Llama-3.2-1B", revision="main")',
        "--max-lora-rank 8",
        "never into the quantised one",
    ):
        assert told in card


def test_the_card_says_what_a_loss_is_of(manifest):
    """Of preferences it is a pair's, while that on the public text is a token's."""
    loss = Loss(base=0.69, adapter=0.5)
    evaluation = Evaluation(unit="pair", held_out=loss, forgetting=loss)
    changed = manifest.model_copy(update={"evaluation": evaluation})
    card = model_card(changed, license_id="unknown")
    assert "| Loss, nats a pair | base | with adapter |" in card
    assert "| public general text (forgetting), nats a token | 0.6900 | 0.5000 |" in card
    assert b"unit" not in Evaluation(held_out=loss).model_dump_json(exclude_none=True).encode()


def test_a_card_without_measurements_says_so(manifest):
    """An empty table would look like a mistake."""
    assert "Nothing was measured." in model_card(manifest, license_id="unknown")


def test_the_provenance_is_an_in_toto_statement_with_slsa_s_predicate(manifest):
    """Subjects are the adapter's files by digest; recipe, base and run are what it was made of."""
    origin = Origin(run="demo-1", round=3, rounds=4, recipe="ef" * 32)
    changed = manifest.model_copy(update={"base": HUB, "origin": origin})
    subjects = {"adapter_model.safetensors": File(size=7, sha256="01" * 32)}
    told = json.loads(provenance(changed, subjects))
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    assert told["subject"] == [
        {"name": "adapter_model.safetensors", "digest": {"sha256": "01" * 32}}
    ]
    assert told["predicateType"] == "https://slsa.dev/provenance/v1"
    definition, details = told["predicate"]["buildDefinition"], told["predicate"]["runDetails"]
    assert definition["externalParameters"] == {"recipe": {"sha256": "ef" * 32}}
    assert [part["digest"]["sha256"] for part in definition["resolvedDependencies"]] == [
        DIGEST,
        "cd" * 32,
    ]
    assert definition["resolvedDependencies"][0]["uri"] == (
        "pkg:huggingface/meta-llama/Llama-3.2-1B@main"
    )
    assert details["metadata"]["invocationId"] == "demo-1/3"
    assert details["builder"]["version"]["fedlora"] == manifest.code.fedlora


def test_the_card_of_a_classifier_names_its_labels(manifest):
    """Task, labels and how to load it; its loss is in nats a text, and no engine serves it."""
    adapter = manifest.adapter.model_copy(update={"labels": ("ham", "spam")})
    evaluation = Evaluation(unit="text", held_out=Loss(base=0.7, adapter=0.1))
    changed = manifest.model_copy(update={"adapter": adapter, "evaluation": evaluation})
    card = model_card(changed, license_id="unknown")
    assert metadata(card)["pipeline_tag"] == "text-classification"
    assert "which of these labels a text has: `ham`, `spam`." in card
    assert "id2label={0: 'ham', 1: 'spam'}" in card
    assert "| Loss, nats a text | base with an untrained head | with adapter |" in card
    assert "vllm" not in card
    again = Manifest.from_json(changed.to_json(), source="manifest.json")
    assert again.adapter.labels == ("ham", "spam")
    assert b"labels" not in manifest.to_json()
