"""``site.yaml``: strict, and the only thing that says where data and base model are."""

from pathlib import Path

import pytest

from fedlora.errors import PolicyError
from fedlora.recipe import Recipe
from fedlora.runtime.client.configuration import SiteConfiguration, at_site, read_site
from fedlora.runtime.client.start import readable
from fedlora.sections import AT_SITE, Dataset

ROOT = Path(__file__).parents[4]
SITE = """\
site: north
data:
  - {path: rows.jsonl, type: messages}
policy: {approval: none}
"""
RECIPE = """\
privacy: {unit: none}
datasets:
  - {path: /etc/south.jsonl, site: south}
  - {path: /etc/shadow, site: north, type: text, lora_r: 4}
  - {path: standard-library, packages: [cmd], site: north, lora_r: 4}
  - {path: ../east.jsonl, site: east, lora_r: 2}
"""
PRIVATE = """\
privacy: {unit: example, epsilon: 4, delta: 1e-6}
federation: {evaluate_every: 0}
datasets:
  - {path: a.jsonl, site: north, records: 300}
  - {path: b.jsonl, site: south, records: 200}
  - {path: c.jsonl, site: north, records: 700}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def site(folder: Path, more: str = "") -> SiteConfiguration:
    return read_site(written(folder, SITE + more))


def test_defaults_are_the_safe_ones(tmp_path):
    """Isolation is required, a person is asked, and nothing is allowed that is not named."""
    read = read_site(written(tmp_path, SITE.replace("{approval: none}", "{}")))
    assert (read.site, read.base_model, read.device) == ("north", None, "auto")
    assert (read.trainer.isolation, read.trainer.user) == ("required", 64201)
    assert (read.policy.approval, read.policy.recipes, read.policy.bounds) == ("required", (), None)


def test_relative_paths_begin_at_the_file(tmp_path, monkeypatch):
    """A service starts in any working folder; names that are no paths stay."""
    monkeypatch.chdir("/")
    text = SITE.replace("policy:", "  - {path: standard-library, packages: [cmd]}\npolicy:")
    read = read_site(written(tmp_path, f"{text}base_model: base\n"))
    assert [dataset.path for dataset in read.data] == [
        str(tmp_path / "rows.jsonl"),
        "standard-library",
    ]
    assert read.base_model == str(tmp_path / "base")
    assert site(tmp_path, "base_model: embedded\n").base_model == "embedded"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("policy: {approval: none}", "", "site.yaml: policy is missing: without a policy nothing"),
        ("site: north", "", "site.yaml: site is missing: the name that the aggregator's operator"),
        ("rows.jsonl,", "rows.jsonl, site: north,", r"line 3: data\[1\].site is not a known key"),
        ("rows.jsonl,", "rows.jsonl, records: 5,", r"data\[1\].records is not a known key"),
        ("site: north", "site: north/../x", r"line 1: site: string should match pattern"),
        (
            "approval",
            "aproval",
            r"line 4: policy.aproval is not a known key; did you mean approval\?",
        ),
        ("policy:", "trainer: {user: 0}\npolicy:", "line 4: trainer.user: input should be greater"),
        ("policy:", "trainer: {isolation: no}\npolicy:", "line 4: trainer.isolation: input should"),
        ("{approval: none}", "[]", "line 4: policy: input should be a valid dictionary"),
        ("{approval: none}", "{hours: always}", "line 4: policy.hours: string should match"),
        ("site: north", "site: north\nsite: south", "line 2: site is given twice"),
        ("site: north", "site: [", "site.yaml, line "),
        ("type: messages", "revision: main", "the trainer has no network: download it"),
        (
            "policy:",
            "  - {path: b.jsonl, weight: 2}\npolicy:",
            "has no weight, but another dataset of the same site",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, reason):
    """File, line and key; without a policy there is no run."""
    with pytest.raises(PolicyError, match=reason):
        read_site(written(tmp_path, SITE.replace(old, new)))


def test_a_missing_file_is_no_configuration(tmp_path):
    """Nor is one that is not text."""
    with pytest.raises(PolicyError, match=r"cannot be read .*Without a policy nothing runs here"):
        read_site(tmp_path / "site.yaml")
    (tmp_path / "site.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="cannot be read"):
        read_site(tmp_path / "site.yaml")


def test_the_example_is_valid():
    """What we show can be read, and its digest is one that no base model has."""
    read = read_site(ROOT / "client" / "site.example.yaml")
    assert {base.digest for base in read.policy.bounds.base_models} == {"0" * 64}


def test_the_site_trains_on_its_own_files(tmp_path):
    """No path that the aggregator named for this site is left; other sites' stay as they are."""
    recipe = Recipe.from_yaml(RECIPE)
    played = at_site(recipe, site(tmp_path))
    own = Dataset(path=str(tmp_path / "rows.jsonl"), type="messages", site="north", lora_r=4)
    assert played.datasets == (recipe.datasets[0], own, recipe.datasets[3])
    assert played.site_names == recipe.site_names
    assert [played.rank_of(name) for name in played.site_names] == [8, 4, 2]
    assert played.rank == recipe.rank
    assert Recipe.from_yaml(played.to_yaml()) == played


def test_the_site_mixes_and_splits_its_own_data(tmp_path):
    """Weights and splits are the operator's; privacy for examples refuses weights there, too."""
    text = SITE.replace("type: messages", "weight: 3, split: train").replace(
        "policy:", "  - {path: b, weight: 1}\npolicy:"
    )
    configured = read_site(written(tmp_path, text))
    played = at_site(Recipe.from_yaml(RECIPE), configured)
    mine = [dataset for dataset in played.datasets if dataset.site == "north"]
    assert [(dataset.weight, dataset.split) for dataset in mine] == [(3, "train"), (1, None)]
    with pytest.raises(PolicyError, match=r"privacy\.unit: example draws each with the same"):
        at_site(Recipe.from_yaml(PRIVATE), configured)


def test_declared_records_stay(tmp_path):
    """They set the noise, whose sum over a site's files counts."""
    recipe = Recipe.from_yaml(PRIVATE)
    text = SITE.replace("policy:", "  - {path: more.jsonl}\npolicy:")
    played = at_site(recipe, read_site(written(tmp_path, text)))
    assert [dataset.records for dataset in played.datasets] == [1000, None, 200]
    assert played.records_of("north") == recipe.records_of("north") == 1000
    assert played.sampling_rate("north") == recipe.sampling_rate("north")
    assert Recipe.from_yaml(played.to_yaml()) == played


@pytest.mark.parametrize("own", [(), ("tensorboard",)])
def test_trackers_are_the_operators(tmp_path, own):
    """Whatever the recipe names is the aggregator's, and no address of a server can be given."""
    recipe = Recipe.from_yaml(f"trackers: [mlflow, wandb]\n{RECIPE}")
    played = at_site(recipe, site(tmp_path, f"trackers: [{', '.join(own)}]\n"))
    assert played.trackers == own
    with pytest.raises(PolicyError, match=r"line 5: trackers\[1\]"):
        site(tmp_path, "trackers: [{mlflow: http://elsewhere}]\n")


def test_base_and_device_are_the_sites(tmp_path):
    """A revision is of a hub's name, not of a folder."""
    recipe = Recipe.from_yaml(RECIPE, overrides=["base_model=a/b", "base_model_revision=main"])
    played = at_site(recipe, site(tmp_path, "base_model: /models/b\ndevice: cpu\n"))
    assert (played.base_model, played.base_model_revision) == ("/models/b", None)
    assert played.device == "cpu"


@pytest.mark.parametrize("base", ["/etc", "../secrets", "~/models", "org/name"])
def test_a_recipe_names_no_folder_and_no_download(tmp_path, base):
    """What is on this host is the operator's to say, and a site downloads nothing for others."""
    recipe = Recipe.from_yaml(RECIPE, overrides=[f"base_model={base}"])
    with pytest.raises(PolicyError, match="name the folder where it is on this host as base_model"):
        at_site(recipe, site(tmp_path))


def test_a_recipe_of_other_sites_is_refused(tmp_path):
    """So is one without sites: nobody deals this site's rows out."""
    here = site(tmp_path)
    for text in (RECIPE.replace("north", "west"), "privacy: {unit: none}\ndatasets: [{path: a}]"):
        with pytest.raises(PolicyError, match="has no dataset of site north"):
            at_site(Recipe.from_yaml(text), here)


def test_the_public_text_is_the_operator_s_word(tmp_path):
    """What the recipe names is not read; where the operator names nothing, nothing is."""
    text = f"{RECIPE}publish: {{forgetting: {{path: /etc/passwd, margin: 0.5}}}}\n"
    recipe = Recipe.from_yaml(text)
    nothing = at_site(recipe, site(tmp_path)).publish.forgetting
    assert (nothing.path, nothing.margin) == (AT_SITE, 0.5)
    own = at_site(recipe, site(tmp_path, "public_text: {path: general.txt}\n")).publish.forgetting
    assert (own.path, own.margin) == (str(tmp_path / "general.txt"), 0.5)
    named = site(tmp_path, "public_text: {path: general.txt}\n")
    assert at_site(Recipe.from_yaml(RECIPE), named).publish.forgetting is None
    assert tmp_path / "general.txt" in readable(named)
