"""Where a release comes from, as supply-chain tools read it.

An in-toto Statement (in-toto attestation framework, Statement v1) with SLSA's provenance predicate
(slsa.dev/spec/v1.0/provenance). It is signed with the manifest, which has its digest.
"""

import json
from collections.abc import Mapping
from typing import Any

from fedlora.release.manifest import Base, File, Manifest, Origin

PROVENANCE = "provenance.json"
"""Its file in a release's folder."""

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:fedlora:federated-run:v1"
"""Rounds of a recipe: the sites train, an aggregator folds their updates."""
BUILDER = "urn:fedlora:aggregator"
MERGE_TYPE = "urn:fedlora:merge:v1"
"""A release of an adapter, added to its base's weights."""
MERGER = "urn:fedlora:adapters-merge"


def provenance(manifest: Manifest, subjects: Mapping[str, File]) -> str:
    """Return the statement in JSON.

    Args:
        manifest: of the release; its files are not looked at.
        subjects: the adapter's own files.
    """
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"recipe": {"sha256": manifest.origin.recipe}},
        "internalParameters": {
            "round": manifest.origin.round,
            "rounds": manifest.origin.rounds,
            "method": manifest.aggregation.method,
            "privacyUnit": manifest.privacy.unit,
        },
        "resolvedDependencies": [*_beginning(manifest.origin), *_base(manifest.base)],
    }
    invocation = f"{manifest.origin.run}/{manifest.origin.round}"
    return _statement(
        manifest, subjects, definition=definition, builder=BUILDER, invocation=invocation
    )


def merge_provenance(manifest: Manifest, subjects: Mapping[str, File]) -> str:
    """Return the statement of a merged model in JSON.

    Args:
        manifest: of kind ``merged``; its parent is the adapter's release.
        subjects: the model's own files.
    """
    adapter = {"name": "adapter", "digest": {"sha256": manifest.origin.parent}}
    definition = {
        "buildType": MERGE_TYPE,
        "externalParameters": {"adapter": adapter["digest"]},
        "resolvedDependencies": [adapter, *_base(manifest.base)],
    }
    invocation = f"{manifest.name}/{manifest.created}"
    return _statement(
        manifest, subjects, definition=definition, builder=MERGER, invocation=invocation
    )


def _statement(
    manifest: Manifest,
    subjects: Mapping[str, File],
    *,
    definition: Mapping[str, Any],
    builder: str,
    invocation: str,
) -> str:
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": file.sha256}} for name, file in subjects.items()
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": definition,
            "runDetails": {
                "builder": {"id": builder, "version": manifest.code.model_dump(mode="json")},
                "metadata": {"invocationId": invocation, "finishedOn": manifest.created},
            },
        },
    }
    return json.dumps(statement, indent=2) + "\n"


def _beginning(origin: Origin) -> list[dict[str, Any]]:
    """Return the release that training began with, if it began with one."""
    release = origin.began_with
    return [{"name": "init_from", "digest": {"sha256": release}}] if release else []


def _base(base: Base) -> list[dict[str, Any]]:
    """Return the base model and the parts of it that have a digest, as resource descriptors."""
    whole: dict[str, Any] = {"name": "base_model", "digest": {"sha256": base.digest}}
    if base.hub_id:
        revision = f"@{base.revision}" if base.revision else ""
        whole["uri"] = f"pkg:huggingface/{base.hub_id}{revision}"
    parts = {
        "base_model/weights": base.weights,
        "base_model/tokenizer": base.tokenizer,
        "base_model/chat_template": base.chat_template,
    }
    found = [{"name": name, "digest": {"sha256": one}} for name, one in parts.items() if one]
    return [whole, *found]
