"""A draft of a release: what it says, and what it never says."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlora.errors import RunError
from fedlora.lock import BaseDigests
from fedlora.peft_folder import read_peft_folder
from fedlora.recipe import Recipe
from fedlora.release.folder import files_of
from fedlora.release.manifest import MANIFEST, Manifest
from fedlora.runtime.lock import locked
from fedlora.runtime.publishing import draft, draft_personal
from fedlora.runtime.release_facts import Pseudonyms
from fedlora.runtime.run_folder import Checkpoint, RunFolder
from tests.strategies import make_spec, make_state

SITES = ("charite-berlin", "mercy-general", "st-olaf")
BASE = "/home/operator/models/Llama-3.2-1B"
SPEC = replace(make_spec(), base_model=BASE)
PARTS = BaseDigests(weights_digest="0a" * 32, tokenizer_digest="0b" * 32)
ROWS = 73211
"""Held-out tokens of a site: no such number may be told."""


def recipe_of(*overrides: str) -> Recipe:
    data = ", ".join(f"{{path: /data/patients/{site}.jsonl, site: {site}}}" for site in SITES)
    text = (
        f"{{name: letters, lora_r: 2, lora_alpha: 4, base_model: {BASE}, datasets: [{data}], "
        "federation: {rounds: 2}, privacy: {unit: none}}"
    )
    return locked(Recipe.from_yaml(text, overrides=overrides), SPEC, PARTS)


def played(folder: Path, *overrides: str, **changes: Any) -> RunFolder:
    """Return a run of two rounds, of which the second lacks the last site's update."""
    run = RunFolder.create(recipe_of(*overrides), SPEC, data={}, runs=folder)
    for number in range(3):
        took_part = SITES[: 3 - (number == 2)] if number else ()
        held_out = {
            site: [(3.0 - number / 2 + place / 8) * (ROWS + place), float(ROWS + place)]
            for place, site in enumerate(SITES)
        }
        record = {
            "round": number,
            "cohort": list(took_part),
            "folded": {site: {"num_examples": ROWS} for site in took_part},
            "tail": 0.25,
            "evaluation": held_out,
            "public": {site: [(5 + number / 8 + p) * 16, 16.0] for p, site in enumerate(SITES)},
        }
        state = make_state(SPEC, seed=number)
        run.save(Checkpoint(round=number, adapter=state, record={**record, **changes}))
    return run


def test_a_draft_is_its_manifest_to_the_byte(tmp_path):
    """Each file is listed with its digest, the manifest itself is there, and nothing is signed."""
    run = played(tmp_path / "runs")
    manifest = draft(run, tmp_path / "release")
    assert files_of(tmp_path / "release") == manifest.files
    assert manifest.files.keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "provenance.json",
    }
    text = (tmp_path / "release" / MANIFEST).read_bytes()
    assert Manifest.from_json(text, source="the draft") == manifest
    assert not (tmp_path / "release" / "manifest.sig").exists()


def test_the_same_checkpoint_gives_the_same_release(tmp_path):
    """So a publication that broke off can be tried again, and makes no second release."""
    run = played(tmp_path / "runs")
    one, other = (draft(run, tmp_path / name) for name in ("one", "other"))
    assert one.release == other.release


def test_the_adapter_is_the_round_s_own(tmp_path):
    """By default the last; the specification's digest is the manifest's."""
    run = played(tmp_path / "runs")
    for number in (1, 2):
        manifest = draft(run, tmp_path / "release", number=number)
        state = read_peft_folder(tmp_path / "release", base_digest=manifest.base.digest)
        expected = make_state(SPEC, seed=number)
        assert (
            state.arranged_as(replace(SPEC, base_model="Llama-3.2-1B"))
            .minus(replace(expected, spec=replace(SPEC, base_model="Llama-3.2-1B")))
            .norm()
            == 0
        )
        assert manifest.origin.round == number
    assert draft(run, tmp_path / "release") == manifest
    assert len(run.records()) == 3


def test_what_the_manifest_says_of_a_run(tmp_path):
    """Base, origin, method, its error, and losses: the mean over sites, each counted the same."""
    run = played(tmp_path / "runs")
    manifest = draft(run, tmp_path / "release", parent="ab" * 32)
    assert manifest.base.model_dump() == {
        "name": "Llama-3.2-1B",
        "revision": None,
        "digest": SPEC.base_digest,
        "weights": "0a" * 32,
        "tokenizer": "0b" * 32,
        "chat_template": None,
    }
    assert (manifest.origin.run, manifest.origin.recipe) == (run.name, run.recipe().digest)
    assert manifest.origin.parent == "ab" * 32
    assert (manifest.aggregation.method, manifest.aggregation.truncation_error) == ("product", 0.25)
    assert (manifest.adapter.rank, manifest.adapter.parameters) == (2, SPEC.size)
    found = manifest.evaluation
    assert (found.held_out.base, found.held_out.adapter) == (3.125, 2.125)
    assert len(found.sites) == 3
    assert (found.forgetting.base, found.forgetting.adapter) in {
        (5 + n, 5.25 + n) for n in range(3)
    }


def test_sites_have_pseudonyms(tmp_path):
    """The same in all releases of a publisher, others with another secret, and never the name."""
    here, there = (played(tmp_path / name) for name in ("here", "there"))
    again = played(tmp_path / "here")
    sites = [draft(run, tmp_path / "release").cohort.sites for run in (here, again, there)]
    assert sites[0] == sites[1]
    assert not set(sites[0]) & set(sites[2])
    assert all(re.fullmatch("site-[0-9a-f]{12}", site) for site in sites[0])
    assert len(sites[0]) == 3
    key = tmp_path / "here" / "pseudonyms.key"
    assert (len(key.read_bytes()), key.stat().st_mode & 0o777) == (32, 0o600)


def test_a_manifest_says_how_updates_were_summed(tmp_path):
    """On whom the sums rest and how exact they were; the sentences and the card say it too."""
    secure = "privacy={unit: none, secure_aggregation: true, clip_norm: 2}"
    facts = {"summed": 3, "members": 3, "error_bound": 1.4e-7}
    run = played(tmp_path / "runs", secure, secure_sum=facts)
    manifest = draft(run, tmp_path / "release")
    assert manifest.privacy.secure_sums.model_dump() == {
        "threat_model": "malicious-aggregator",
        "cohort": 3,
        "threshold": 3,
        "neighbours": None,
        "colluders": 0,
        "fewest": 3,
        "clip": 2.0,
        "error_bound": 1.4e-7,
    }
    card = (tmp_path / "release" / "README.md").read_text()
    assert "secure-aggregation" in card
    assert "sums over 3 or more sites alone" in card
    said = " ".join(manifest.privacy.statement)
    assert "gave a sum, over 3 sites, the mean off by at most 1.4e-07 a value" in said
    assert said in card.replace("\n\n", " ")


def test_a_manifest_without_secure_sums_is_spelled_as_ever(tmp_path):
    """So that those that were signed before there were any are read, and others read by them."""
    manifest = draft(played(tmp_path / "runs"), tmp_path / "release")
    assert b"secure_sums" not in manifest.to_json()
    assert Manifest.from_json(manifest.to_json(), source="here") == manifest


PROMISES = {
    "none": (),
    "example": (
        "privacy={unit: example, epsilon: 8, delta: 1e-6, records: 91237, evaluation_noise: 4}",
        "federation.method=freeze-a",
    ),
    "client": (
        "privacy={unit: client, epsilon: 8, delta: 1e-2, clip_norm: 0.5}",
        "federation={rounds: 2, method: freeze-a, weighting: uniform, evaluate_every: 0}",
    ),
}


@pytest.mark.parametrize("unit", PROMISES)
def test_nothing_that_sites_are_known_by_is_told(tmp_path, unit):
    """No name, no path of data or base, no number of rows, in whichever file."""
    changes = {"evaluation": {}} if unit == "client" else {}
    run = played(tmp_path / "runs", *PROMISES[unit], **changes)
    draft(run, tmp_path / "release")
    for path in (tmp_path / "release").iterdir():
        content = path.read_bytes()
        told = [site for site in SITES if site.encode() in content]
        assert told == [], path.name
        for secret in ("/data", "patients", "/home", "operator", str(tmp_path), "91237", "91,237"):
            assert secret.encode() not in content, path.name
        for count in range(ROWS, ROWS + 3):
            assert not re.search(rb"(?<![0-9a-f])%d(?![0-9a-f])" % count, content), path.name


def test_what_is_promised_of_examples(tmp_path):
    """ε is the largest, the noise the smallest of all sites; single sites' losses are not shown."""
    run = played(tmp_path / "runs", *PROMISES["example"])
    manifest = draft(run, tmp_path / "release")
    privacy = manifest.privacy
    assert (privacy.unit, privacy.epsilon, privacy.delta) == ("example", 8, 1e-6)
    assert (privacy.adjacency, privacy.sampling, privacy.clip) == ("add-remove", "poisson", 1.0)
    assert privacy.noise_multiplier > 0
    assert "Example-level differential privacy: ε is 8" in privacy.statement[0]
    assert manifest.evaluation.held_out
    assert manifest.evaluation.sites is None
    assert len(manifest.cohort.sites) == 3


def test_what_is_promised_of_clients(tmp_path):
    """Nothing is said of who took part; the noise is over the clip, whatever the neighbours."""
    run = played(tmp_path / "runs", *PROMISES["client"], evaluation={})
    manifest = draft(run, tmp_path / "release")
    privacy = manifest.privacy
    assert (privacy.unit, privacy.clip, privacy.sampling) == ("client", 0.5, "all")
    assert (manifest.cohort.population, manifest.cohort.sites) == (3, None)
    assert manifest.evaluation.held_out is None
    assert manifest.evaluation.forgetting


def test_reproducible_noise_promises_nothing(tmp_path):
    """Machines read ε, not sentences: there is none."""
    overrides = (*PROMISES["example"], "simulation.reproducible_noise=true")
    privacy = draft(played(tmp_path / "runs", *overrides), tmp_path / "release").privacy
    assert privacy.epsilon is None
    assert "protects nobody" in privacy.statement[0]


def test_the_median_site_speaks_for_the_public_text(tmp_path):
    """One site that lies, upwards or downwards, does not move it beyond the honest ones."""
    run = played(tmp_path / "runs")
    lines = (run.path / "rounds.jsonl").read_text().splitlines()
    for lie in (0.0, 1e6):
        last = json.loads(lines[-1])
        last["public"][SITES[0]][0] = lie
        (run.path / "rounds.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
        found = draft(run, tmp_path / "release", number=2).evaluation.forgetting
        assert found.adapter - found.base == 0.25


def test_a_run_without_a_round_has_nothing_to_publish(tmp_path):
    """Nor has one that was asked for a round whose checkpoint is gone."""
    run = RunFolder.create(recipe_of(), SPEC, data={}, runs=tmp_path / "runs")
    with pytest.raises(RunError, match="no round is complete"):
        draft(run, tmp_path / "release")
    with pytest.raises(RunError, match=r"no checkpoint of round 0, only: round-0001, round-0002"):
        draft(played(tmp_path / "runs"), tmp_path / "release", number=0)
    assert not (tmp_path / "release").exists()


def test_a_personal_adapter_says_whose_it_is(tmp_path):
    """By the pseudonym, and with that site's losses alone."""
    run = played(tmp_path / "runs", "federation.method=share-a")
    manifest = draft_personal(run, make_state(SPEC), tmp_path / "release", site=SITES[1])
    pseudonym = Pseudonyms.of(run)(SITES[1])
    assert manifest.origin.site == pseudonym
    assert list(manifest.evaluation.sites) == [pseudonym]
    assert manifest.evaluation.held_out == manifest.evaluation.sites[pseudonym]


@pytest.mark.parametrize(
    ("base", "named", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "", "meta-llama/Llama-3.2-1B"),
        ("~/models/Llama", "", "Llama"),
        ("./models/Llama", "", "Llama"),
        (BASE, "publish.base_model=meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
    ],
)
def test_the_base_has_a_public_name(tmp_path, base, named, name):
    """That of the Hub, the recipe's word for it, or the last part of a path."""
    spec = replace(SPEC, base_model=base)
    recipe = recipe_of(*([named] if named else [])).model_copy(update={"lock": None})
    recipe = locked(recipe.model_copy(update={"base_model": base}), spec, PARTS)
    run = RunFolder.create(recipe, spec, data={}, runs=tmp_path / "runs")
    for number in range(2):
        record = {"round": number, "folded": {}, "cohort": []}
        state = make_state(spec, seed=number)
        run.save(Checkpoint(round=number, adapter=state, record=record))
    assert draft(run, tmp_path / "release").base.name == name
    assert read_peft_folder(tmp_path / "release").spec.base_model == name
