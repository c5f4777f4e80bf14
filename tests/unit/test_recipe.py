"""Recipes: what they resolve to, how they survive YAML, and what their errors say."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedlora.errors import RecipeError
from fedlora.recipe import Recipe, read_recipe

LEAST = "datasets: [{path: notes.jsonl}]\n"
TWO_SITES = "datasets: [{path: a, site: a}, {path: b, site: b}]\n"


def read(text: str, *overrides: str) -> Recipe:
    """Read a recipe; what it promises is said below the rest, if nowhere else."""
    text = text if "privacy:" in text else f"{text}privacy: {{unit: none}}\n"
    return Recipe.from_yaml(text, source="r.yaml", overrides=overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(text, *overrides)
    return str(caught.value)


def test_a_recipe_needs_only_its_data():
    """Everything else has a default; without named sites there are four."""
    recipe = read(LEAST)
    assert recipe.base_model == "embedded"
    assert recipe.site_names == ("site-1", "site-2", "site-3", "site-4")
    assert recipe.cohort_size == recipe.federation.sites == 4


def test_datasets_name_the_sites_in_their_order():
    """A site with two datasets counts once."""
    data = "[{path: a, site: south}, {path: b, site: north}, {path: c, site: south}]"
    recipe = read(f"datasets: {data}\n")
    assert recipe.site_names == ("south", "north")
    assert recipe.federation.sites == 2


def test_steps_and_examples_follow_from_the_recipe():
    """A client sees at most its steps times its batch a round, and its steps each round."""
    recipe = read(
        LEAST + "micro_batch_size: 4\ngradient_accumulation_steps: 3\n"
        "federation: {rounds: 5, local_steps: 7}\n"
    )
    assert recipe.batch_size == 12
    assert recipe.examples_of_round == range(1, 85)
    assert recipe.total_steps == 35


@pytest.mark.parametrize(
    ("text", "number"),
    [("3e-3", 0.003), ("3E-3", 0.003), ("2.5e1", 25.0), ("1e+0", 1.0), ("3", 3.0), (".5", 0.5)],
)
def test_numbers_are_read_as_people_write_them(text, number):
    """YAML 1.1 would read 3e-3 as a word."""
    assert read(f"{LEAST}learning_rate: {text}\n").learning_rate == number
    assert read(LEAST, f"learning_rate={text}").learning_rate == number


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n"])
def test_words_that_yaml_takes_for_booleans_are_words(word):
    """A site called ``no`` is not ``False``; a switch takes true and false only."""
    assert read(f"{LEAST}name: {word}\n").name == word
    assert "boolean" in refusal(f"{LEAST}bf16: {word}\n")


def test_a_recipe_cannot_be_changed():
    """It is a value: what was validated stays so."""
    recipe = read(LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.federation.rounds = 3


# Round trip


@pytest.mark.parametrize(
    "text",
    [
        LEAST,
        TWO_SITES,
        TWO_SITES + "federation: {cohort_size: 1, quorum: 1, rounds: 2}\n",
        LEAST + "learning_rate: 1e-7\nlora_alpha: 16\nlora_target_modules: [q_proj, v_proj]\n",
        LEAST + "bf16: true\nbase_model: org/näme\nbase_model_revision: '1.0'\n",
        "datasets: [{path: standard-library, packages: [json, ast]}]\n",
    ],
)
def test_a_resolved_recipe_reads_back_equal(text):
    """Also when defaults are used; digests, and hashes, by which sites are cached, are equal."""
    recipe = read(text)
    again = read(recipe.to_yaml())
    assert again == recipe
    assert again.digest == recipe.digest
    assert hash(again) == hash(recipe)
    assert again.to_yaml() == recipe.to_yaml()


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
WORDS = TEXT | st.sampled_from(
    ["3e4", "1E-5", "on", "null", "~", "true", "2024-01-01", "12", "1_0", "0x1F", "=", "<<", "- a"]
)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", fullmatch=True) | st.sampled_from(
    ["3e4", "1E5", "on", "null", "2024-01-01", "12", "1.5", "true"]
)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)


@settings(max_examples=60)
@given(
    name=NAMES,
    seed=st.integers(0, 2**32 - 1),
    base_model=WORDS,
    revision=st.none() | WORDS,
    modules=st.just("all-linear") | st.lists(WORDS, min_size=1, max_size=3),
    numbers=st.tuples(POSITIVE, POSITIVE, POSITIVE),
    datasets=st.lists(st.tuples(WORDS, NAMES), min_size=1, max_size=3),
    bf16=st.sampled_from(["auto", True, False]),
)
def test_any_recipe_reads_back_equal(
    name, seed, base_model, revision, modules, numbers, datasets, bf16
):
    """Names that look like numbers, dates or nothing, and any float, survive YAML."""
    alpha, rate, timeout = numbers
    recipe = Recipe.model_validate(
        {
            "name": name,
            "seed": seed,
            "base_model": base_model,
            "base_model_revision": revision,
            "lora_alpha": alpha,
            "learning_rate": rate,
            "lora_target_modules": modules,
            "bf16": bf16,
            "datasets": [{"path": path, "site": site} for path, site in datasets],
            "privacy": {"unit": "none"},
            "federation": {"round_timeout": timeout},
        }
    )
    again = read(recipe.to_yaml())
    assert again == recipe
    assert again.digest == recipe.digest


@pytest.mark.parametrize(
    "override", ["seed=1", "name=other", "federation.rounds=9", "datasets=[{path: other}]"]
)
def test_digests_tell_recipes_apart(override):
    """Every key takes part."""
    assert read(LEAST, override).digest != read(LEAST).digest


# Overrides


def test_overrides_win_over_the_document():
    """Values are YAML; a section that the document lacks is made."""
    recipe = read(
        TWO_SITES + "seed: 1\nfederation: {rounds: 2, local_steps: 3}\n",
        "seed=4",
        "federation.rounds=5",
        "wire.max_bytes=600",
        "lora_target_modules=[q_proj]",
        "base_model=a=b",
    )
    assert (recipe.seed, recipe.federation.rounds, recipe.federation.local_steps) == (4, 5, 3)
    assert recipe.wire.max_bytes == 600
    assert recipe.lora_target_modules == ("q_proj",)
    assert recipe.base_model == "a=b"


def test_the_last_override_of_a_key_wins():
    """As on any command line."""
    assert read(LEAST, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "'seed': an override has the form section.key=value"),
        ("=1", "'=1': an override has the form section.key=value"),
        ("seed=[", "'seed=[': the value is not valid YAML"),
        ("seed=2024-99-99", "the value is not valid YAML"),
        ("seed=" + "[" * 1000, "the value is not valid YAML"),
        ("seed.x=1", "seed is not a section of the recipe"),
        ("datasets.0.path=x", "datasets is not a section of the recipe"),
        ("sed=1", "override sed=1: sed is not a known key; did you mean seed?"),
        ("federation.round=1", "federation.round is not a known key; did you mean rounds?"),
        ("seed=x", "override seed=x: seed: input should be a valid integer, but it is 'x'"),
        ("federation={rounds: 0}", "override federation={rounds: 0}: federation.rounds: "),
        ("federation=", "override federation=: federation: input should be"),
    ],
)
def test_a_wrong_override_is_named(override, says):
    """The message names the override, not a line of the document, which is not at fault."""
    message = refusal(LEAST + "seed: 1\n", override)
    assert says in message
    assert "line" not in message


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("{method: product}", False),
        ("{method: product, server_momentum: 0}", False),
        ("{method: average}", False),
        ("{method: average, server_momentum: 0}", True),
        ("{method: average, server_momentum: 0, server_learning_rate: 0.5}", False),
        ("{method: alternate, server_momentum: 0}", True),
        ("{method: refresh, server_momentum: 0}", False),
        ("{method: freeze-a}", True),
        ("{method: share-a}", True),
    ],
)
def test_what_a_value_means_lasts_where_the_factors_do_not_turn(text, keeps):
    """Where B·A is cut or stepped as a product, its factors come back in another gauge."""
    assert read(f"{LEAST}federation: {text}\n").keeps_gauge is keeps


def test_sites_may_train_ranks_of_their_own():
    """The global adapter has the largest rank, or the one to be published."""
    data = "datasets: [{path: a, site: a, lora_r: 4}, {path: b, site: b, lora_r: 16}]\n"
    recipe = read(data)
    assert (recipe.rank_of("a"), recipe.rank_of("b"), recipe.rank) == (4, 16, 16)
    assert read(data + "federation: {publish_rank: 32}\n").rank == 32
    assert read(TWO_SITES).rank == read(TWO_SITES).lora_r == 8


@pytest.mark.parametrize(
    ("text", "rate"), [("sgd", 1.0), ("adam", 0.01), ("{sgd, server_learning_rate: 0.3}", 0.3)]
)
def test_a_server_optimiser_has_its_own_learning_rate(text, rate):
    """What suits a mean does not suit Adam, whose steps do not shrink with the gradient."""
    keys = text.strip("{}")
    recipe = read(f"{LEAST}federation: {{method: freeze-a, server_optimizer: {keys}}}\n")
    assert recipe.federation.server_learning_rate == rate


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("objective: kto\n", "in KTO depends"),
        ("objective: ppo\n", "'sft'"),
        ("dpo_beta: 0.2\n", "dpo_beta has no effect with objective: sft"),
        ("dpo_reference: global\n", "dpo_reference has no effect"),
        ("objective: dpo\ndpo_beta: 0\n", "greater than 0"),
        ("objective: dpo\ndpo_label_smoothing: 0.5\n", "less than 0.5"),
        ("objective: dpo\ntrain_on_inputs: true\n", "no effect with objective: dpo"),
    ],
)
def test_an_objective_has_keys_of_its_own(text, says):
    """What would do nothing is refused, as is an objective whose rows are not on their own."""
    assert says in refusal(LEAST + text)


def test_a_beginning_is_an_adapter_for_all():
    """Not for a method whose sites begin with factors of their own, nor for another's lock."""
    begun = LEAST + "init_from: adapter\n"
    assert read(begun).init_from == "adapter"
    assert "take another method" in refusal(begun + "federation: {method: share-a}\n")
    lock = (
        f"lock: {{base_model: b, base_digest: {'a' * 64}, weights_digest: {'b' * 64}, "
        f"tokenizer_digest: {'c' * 64}, target_modules: [q], modules: [[q, 1, 1]]}}\n"
    )
    assert read(LEAST + lock).lock
    assert "init_from is not what the recipe was locked to" in refusal(begun + lock)


def test_a_pair_is_two_rows_of_a_batch():
    """And one example, of which a step has as many as of any other."""
    pairs, answers = read(LEAST + "objective: dpo\n"), read(LEAST)
    assert (pairs.rows_of_example, answers.rows_of_example) == (2, 1)
    assert pairs.batch_size == answers.batch_size == 8
    assert read(pairs.to_yaml()) == pairs


CONFLICTS = {
    "adam where the gauge turns": ("{server_optimizer: adam}", "take sgd, or method: freeze-a"),
    "a median of factors": ("{robust: median}", "only where a sum of factors is exact"),
    "a mean cut": (
        "{method: average, publish_rank: 16}",
        "works with method: product only, but the method is average",
    ),
    "below the trained rank": ("{publish_rank: 4}", "is 4, but sites train up to rank 8"),
    "too few for Krum": ("{robust: multi-krum, attackers: 0.3}", "needs a cohort of 5"),
    "nobody to stand": ("{robust: multi-krum}", "is no client: set federation.attackers to 0.25"),
    "a turning gauge against drift": ("{drift_correction: true}", "take freeze-a, average or"),
    "a personal factor against drift": (
        "{method: share-a, drift_correction: true}",
        "or stay at their site",
    ),
    "a server of its own mind against drift": (
        "{method: average, drift_correction: true}",
        "set server_optimizer: sgd, server_momentum: 0 and server_learning_rate: 1",
    ),
    "no majority": ("{sites: 2, robust: cosine-filter}", "majority of at least 3 clients"),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_does_not_go_together_is_refused_with_the_reason(case):
    """A recipe is refused when it is read, not when its first round fails."""
    text, says = CONFLICTS[case]
    assert says in refusal(f"{LEAST}federation: {text}\n")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("[{path: a, lora_r: 4}]", "name the site too"),
        ("[{path: a, site: a, lora_r: 4}, {path: b, site: a}]", "have different lora_r"),
    ],
)
def test_a_rank_belongs_to_one_site(data, says):
    """All of a site's data trains one adapter."""
    assert says in refusal(f"datasets: {data}\n")


@pytest.mark.parametrize(("share", "sites", "count"), [(0.29, 100, 29), (0.2, 4, 0), (0.4, 15, 6)])
def test_the_assumed_attackers_are_a_share_of_the_cohort(share, sites, count):
    """Rounded down, but not by the rounding of a float."""
    recipe = read(f"{LEAST}federation: {{sites: {sites}, attackers: {share}}}\n")
    assert recipe.attackers == count


def test_multi_krum_needs_enough_updates():
    """Below 2f + 3 clients it promises nothing."""
    recipe = read(f"{LEAST}federation: {{sites: 20, attackers: 0.4, robust: multi-krum}}\n")
    assert recipe.quorum_of(40) == 19
    assert read(LEAST).quorum_of(4) == 3


def test_a_poisson_cohort_needs_more_than_half_of_those_drawn():
    """And none where none is."""
    federation = "federation: {cohort_size: 2, cohort_sampling: poisson, evaluate_every: 0}\n"
    recipe = read(f"{LEAST}privacy: {CLIENT}{federation}")
    assert recipe.participation_rate == 0.5
    assert list(map(recipe.quorum_of, range(5))) == [0, 1, 2, 2, 3]
    assert recipe.federation.weighting == "uniform"
    assert read(recipe.to_yaml()) == recipe


def test_mixed_ranks_need_a_method_that_takes_them():
    """A mean of factors of different shapes does not exist."""
    data = "datasets: [{path: a, site: a, lora_r: 4}]\n"
    assert "take method: product" in refusal(data + "federation: {method: average}\n")


# Privacy


EXAMPLE = (
    "{unit: example, epsilon: 8, delta: 1e-5, records: 1000}\nfederation: {evaluate_every: 0}\n"
)
CLIENT = "{unit: client, epsilon: 8, delta: 1e-5, clip_norm: 1}\n"


def test_what_is_promised_must_be_said():
    """Even that nothing is."""
    with pytest.raises(RecipeError, match="privacy is missing: say what is promised"):
        Recipe.from_yaml(LEAST)
    assert "privacy.unit is missing" in refusal(LEAST + "privacy: {}\n")


def test_a_private_run_freezes_a_unless_it_says_otherwise():
    """The method that suits noise best is the default under privacy."""
    recipe = read(f"{LEAST}privacy: {EXAMPLE}")
    assert recipe.federation.method == "freeze-a"
    assert read(LEAST).federation.method == "product"
    other = read(f"{LEAST}privacy: {EXAMPLE}", "federation.method=product")
    assert other.federation.method == "product"
    assert read(recipe.to_yaml()) == recipe


def test_under_privacy_every_client_says_the_expected_number():
    """How many records were drawn is private."""
    recipe = read(f"{LEAST}privacy: {EXAMPLE}", "federation.local_steps=5")
    assert recipe.examples_of_round == range(40, 41)


def test_the_sampling_rate_follows_from_what_is_declared():
    """Expected batch over declared records, site by site."""
    data = "datasets: [{path: a, site: a, records: 400}, {path: b, site: b}, {path: c, site: a}]\n"
    recipe = read(f"{data}micro_batch_size: 4\nprivacy: {EXAMPLE}")
    assert (recipe.records_of("a"), recipe.records_of("b")) == (400, 1000)
    assert (recipe.sampling_rate("a"), recipe.sampling_rate("b")) == (0.01, 0.004)


IMPOSSIBLE = {
    "no budget": ("{unit: example, delta: 1e-5}", "unit: example needs epsilon"),
    "a budget for nothing": ("{unit: none, epsilon: 8}", "epsilon has no effect with unit: none"),
    "another unit's key": (
        "{unit: client, epsilon: 8, delta: 1e-5, clip_norm: 1, records: 9}",
        "records has no effect with unit: client",
    ),
    "absurd": ("{unit: example, epsilon: 51, delta: 1e-5}", "less than or equal to 50"),
    "nothing declared": (
        "{unit: example, epsilon: 8, delta: 1e-5}",
        "needs the number of training records of site-1",
    ),
    "a batch of more than all": (
        "{unit: example, epsilon: 8, delta: 1e-3, records: 7}",
        "a step draws 8 records",
    ),
    "a delta that anybody may fall under": (
        "{unit: example, epsilon: 8, delta: 1e-3, records: 1000}",
        "at most 1/10000 means anything",
    ),
    "a query for free": (
        "{unit: example, epsilon: 8, delta: 1e-5, records: 1000}",
        "each evaluation of private held-out rows costs privacy",
    ),
    "exact comparison": (EXAMPLE + "simulation: {compare: true}", "prints what data without noise"),
    "single updates": (
        CLIENT + "federation: {method: product, evaluate_every: 0}",
        "product looks at single updates",
    ),
    "a rule that sees single updates": (
        CLIENT + "federation: {robust: norm-bound, evaluate_every: 0}",
        "norm-bound looks at single updates",
    ),
    "factors of single clients": (
        CLIENT + "federation: {method: share-a, evaluate_every: 0}",
        "share-a looks at single updates",
    ),
    "sizes of single updates": (
        CLIENT + "federation: {evaluate_every: 0}\nwire: {compress: true}",
        "the size of an update tells of its values",
    ),
    "weights": (
        CLIENT + "federation: {weighting: examples, evaluate_every: 0}",
        "counts each client the same: set federation.weighting: uniform",
    ),
    "largest weights": (
        CLIENT + "federation: {max_weight: 5, evaluate_every: 0}",
        "and remove max_weight",
    ),
    "a delta that any client may fall under": (
        CLIENT.replace("1e-5", "1e-3") + "federation: {sites: 101, evaluate_every: 0}",
        "with 101 clients at most 1/1010 means anything",
    ),
    "draws for nothing": (
        "{unit: none}\nfederation: {cohort_size: 2, cohort_sampling: poisson}",
        "poisson has no effect without privacy.unit: client",
    ),
    "a draw of all": (
        CLIENT + "federation: {cohort_sampling: poisson, evaluate_every: 0}",
        "set federation.cohort_size below 4",
    ),
    "a number of any number": (
        CLIENT + "federation: {cohort_sampling: poisson, cohort_size: 2, quorum: 1}",
        "a cohort may be of any size",
    ),
    "noise for nothing": (
        EXAMPLE.replace("1000}", "1000, evaluation_noise: 4}"),
        "evaluation_noise has no effect",
    ),
    "a guessable seed": (EXAMPLE + "lora_dropout: 0.1", "whose seed can be guessed"),
    "an update that tells of earlier rounds": (
        CLIENT + "federation: {evaluate_every: 0, server_momentum: 0, drift_correction: true}",
        "when its client last took part",
    ),
    "a failure that tells of a row": (
        EXAMPLE + "excess_length_strategy: raise",
        "ends a run over one long record, which tells of it",
    ),
    "evaluation of single clients": (CLIENT, "an evaluation tells of single clients"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_promise_that_cannot_be_kept_is_refused(case):
    """Before anything is loaded, with the reason."""
    text, says = IMPOSSIBLE[case]
    assert says in refusal(f"{LEAST}privacy: {text}\n")


@pytest.mark.parametrize("more", ["", ", site: a"])
def test_a_mixture_weighs_all_datasets_of_a_site_or_none(more):
    """Half a mixture has no meaning; another site's datasets may go without."""
    one, two = f"{{path: a, weight: 2{more}}}", f"{{path: b{more}}}"
    assert "b has no weight" in refusal(f"datasets: [{one}, {two}]\n")
    other = "" if not more else ", {path: b, site: b}"
    assert read(f"privacy: {{unit: none}}\ndatasets: [{one}{other}]\n").datasets[0].weight == 2


def test_a_mixture_is_no_sample_that_privacy_could_charge():
    """Each record must be drawn with the probability that is charged."""
    data = "datasets: [{path: a, weight: 2}, {path: b, weight: 1}]\n"
    assert "draws each with the same probability" in refusal(f"{data}privacy: {EXAMPLE}\n")


def test_records_belong_to_a_site():
    """And mean something under example-level privacy alone."""
    assert "name the site too" in refusal("datasets: [{path: a, records: 5}]\n")
    assert "has no effect" in refusal("datasets: [{path: a, site: a, records: 5}]\n")


# Errors


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sequence_length: 5\n", "sequence_length is not a known key; did you mean sequence_len?"),
        ("str: 5\n", "str is not a known key; known keys: adam_beta1, adam_beta2,"),
        ("a[0]: 5\n", "a[0] is not a known key"),
        ("federation: {tuple: 5}\n", "federation.tuple is not a known key; known keys: attackers"),
        ("lora_r: eight\n", "lora_r: input should be a valid integer, but it is 'eight'"),
        ("lora_r: 8.0\n", "lora_r: input should be a valid integer, but it is 8.0"),
        ("lora_r: true\n", "lora_r: input should be a valid integer, but it is True"),
        ("lora_r: 0\n", "lora_r: input should be greater than or equal to 1, but it is 0"),
        ("seed: 4294967296\n", "seed: input should be less than 4294967296"),
        ("learning_rate: .nan\n", "learning_rate: input should be"),
        ("learning_rate: .inf\n", "learning_rate: input should be a finite number"),
        ("learning_rate: 1e999\n", "learning_rate: input should be a finite number"),
        ("learning_rate: -1\n", "learning_rate: input should be greater than 0, but it is -1"),
        ("name: a/b\n", "name: string should match pattern"),
        ('name: "a\\n"\n', "name: string should match pattern"),
        ("name: 2024-01-01\n", "name: input should be a valid string"),
        ("bf16: maybe\n", "bf16: input should be 'auto'"),
        ("adapter: lorra\n", "adapter: input should be 'lora' or 'qlora', but it is 'lorra'"),
        ("federation: 3\n", "federation: input should be a valid dictionary"),
        ("federation: {rounds: 0}\n", "federation.rounds: input should be greater than or equal"),
        ("lora_target_modules: []\n", "lora_target_modules: "),
        ("lora_target_modules: [3]\n", "lora_target_modules[1]: input should be a valid string"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(text, says):
    """Source, line, key, what was expected and what came."""
    message = refusal(LEAST + text)
    assert says in message
    assert all(line.startswith("r.yaml, line 2: ") for line in message.splitlines())


def test_every_wrong_key_is_listed_with_its_own_line():
    """One pass of corrections is enough."""
    message = refusal("datasets:\n  - path: a\n    typ: text\n  - sites: b\nlora_r: x\n")
    assert sorted(message.splitlines()) == [
        "r.yaml, line 3: datasets[1].typ is not a known key; did you mean type?",
        "r.yaml, line 4: datasets[2].sites is not a known key; did you mean site?",
        "r.yaml, line 5: lora_r: input should be a valid integer, but it is 'x'.",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\n", "r.yaml: datasets is missing"),
        ("", "r.yaml: datasets is missing"),
        ("datasets: []\n", "r.yaml, line 1: datasets: "),
        (LEAST + "federation: {cohort_size: 5}\n", "cohort_size is 5, but there are 4 sites"),
        (
            LEAST + "federation: {sites: 100001}\n",
            "federation.sites: input should be less than or equal",
        ),
        (TWO_SITES + "federation: {sites: 3}\n", "name 2 sites, but federation.sites is 3"),
        (LEAST + "federation: {quorum: 5}\n", "quorum is 5, but a cohort has 4"),
        (TWO_SITES + "federation: {cohort_size: 1, quorum: 2}\n", "but a cohort has 1"),
        ("datasets: [{path: a, site: a}, {path: b}]\n", "either every dataset names its site"),
        ("datasets: [{path: a, packages: [json]}]\n", "path: standard-library"),
        (LEAST + "sgd_momentum: 0.9\n", "no effect with optimizer: adamw_torch: remove it"),
        (LEAST + "optimizer: sgd\nadam_beta2: 0.95\n", "adam_beta2 has no effect with optimizer"),
        (
            LEAST + "lr_scheduler: linear\ncosine_min_lr_ratio: 0.1\n",
            "no effect with lr_scheduler: linear",
        ),
        (LEAST + "warmup_steps: 120\n", "warmup_steps is 120, but there are 120 steps"),
    ],
)
def test_what_does_not_fit_together_is_refused(text, says):
    """Before anything is loaded."""
    assert says in refusal(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: [1\n", "r.yaml, line 3: this is not valid YAML"),
        ("seed: 1: 2\n", "r.yaml, line 2: this is not valid YAML: mapping values"),
        ("\tseed: 1\n", "r.yaml, line 2: this is not valid YAML"),
        ("seed: 1\nlora_r: 2\nseed: 3\n", "line 4: seed is given twice (first: r.yaml, line 2)"),
        ("wire: {codec: fp32, codec: fp32}\n", "r.yaml, line 2: wire.codec is given twice"),
        ("name: 2024-99-99\n", "r.yaml, line 2: this is not valid YAML: month must be"),
        ("seed: !!int one\n", "r.yaml, line 2: this is not valid YAML"),
        ("seed: " + "9" * 5000 + "\n", "r.yaml, line 2: this is not valid YAML"),
        ("seed: 1" + ":1" * 5000 + "\n", "r.yaml, line 2: this is not valid YAML: a number of at"),
        ("seed: !!int '1" + ":1" * 5000 + "'\n", "r.yaml, line 2: this is not valid YAML: a numb"),
        ("learning_rate: 1" + ":1" * 5000 + ".5\n", "r.yaml, line 2: this is not valid YAML: a n"),
        ("seed: 0b" + "1" * 5000 + "\n", "r.yaml, line 2: this is not valid YAML: a number"),
        ("seed: !!python/name:os.system\n", "r.yaml, line 2: this is not valid YAML"),
        ("name: a\x00b\n", "r.yaml: this is not valid YAML: special characters"),
        ("name: " + "[" * 1000 + "\n", "r.yaml: this is nested too deeply"),
        ("1: x\n", "r.yaml, line 2: a name was expected as a key"),
        ("? [a]\n: b\n", "r.yaml, line 2: a name was expected as a key"),
        ("name: &a [*a]\n", "r.yaml, line 2: this is not valid YAML: aliases"),
        ("name: &a x\nbase_model: *a\n", "r.yaml, line 3: this is not valid YAML: aliases"),
        ("---\nseed: 1\n", "r.yaml, line 2: this is not valid YAML"),
    ],
)
def test_what_is_not_a_recipe_s_yaml_is_refused(text, says):
    """No document makes the reader fail otherwise, wherever it came from."""
    message = refusal(LEAST + text)
    assert says in message
    assert len(message) < 300


@pytest.mark.parametrize("text", ["- a\n", "word\n", "3\n", "!!set {a, b}\n"])
def test_a_document_that_is_no_mapping_is_refused(text):
    """The message says what was expected."""
    with pytest.raises(RecipeError, match=r"r\.yaml: a mapping of keys to values was expected"):
        Recipe.from_yaml(text, source="r.yaml")


@given(st.text(max_size=60) | st.text("aé:-[]{}&*!|>'\"%@,#? \n\t<~0.e", max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(text):
    """Nothing else is ever raised."""
    message = ""
    try:
        read(text)
    except RecipeError as error:
        message = str(error)
    assert not message or message.startswith("r.yaml")


def test_many_wrong_keys_are_cut_in_the_message():
    """Who writes a hundred thousand of them does not keep the reader busy, or fill its log."""
    message = refusal(LEAST + "".join(f"{f'k{n}' * 100}: 1\n" for n in range(1000)))
    assert len(message) < 20_000
    assert message.endswith("There are 980 more errors.")


def test_a_long_wrong_value_is_cut_in_the_message():
    """A message stays readable whatever came."""
    assert len(refusal(LEAST + f"seed: {['x'] * 10_000}\n")) < 400


# Files


def test_a_recipe_file_is_read_with_overrides(tmp_path):
    """The source in messages is the file's path."""
    path = tmp_path / "mine.yaml"
    least = f"{LEAST}privacy: {{unit: none}}\n"
    path.write_text(f"{least}lora_r: 4\n", encoding="utf-8")
    assert read_recipe(path, overrides=["seed=7"]).seed == 7
    with pytest.raises(RecipeError, match="override seed=x: seed"):
        read_recipe(path, overrides=["seed=x"])
    path.write_text(f"{least}lora_r: x\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=re.escape(f"{path}, line 3: lora_r")):
        read_recipe(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "not text"])
def test_a_recipe_file_that_cannot_be_read_is_named(tmp_path, kind):
    """Missing, a folder, or not UTF-8."""
    path = tmp_path / "mine.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "not text":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=re.escape(f"{path}: the recipe cannot be read")):
        read_recipe(path)


def classified(*overrides: str) -> Recipe:
    text = "privacy: {unit: none}\ndatasets: [{path: a.csv}]\nobjective: classification\n"
    return Recipe.from_yaml(text, overrides=overrides)


def test_labels_are_texts_in_order():
    """Whole numbers stand for what a file says; the order is that of the head's outputs."""
    assert classified("labels=[spam, ham]").labels == ("spam", "ham")
    assert classified("labels=[0, 1, 2]").labels == ("0", "1", "2")
    again = Recipe.from_yaml(classified("labels=[1, 0]").to_yaml())
    assert again.labels == ("1", "0")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "needs the names of the classes: set labels"),
        (["labels=[ham]"], "needs the names of the classes: set labels"),
        (["labels=[ham, spam, ham]"], "labels names ham twice"),
        (["labels=[true, false]"], 'quote them, as in "true"'),
        (["labels=[ham, ' spam']"], "labels"),
        (["labels=ham"], "labels"),
        (["labels=[ham, spam]", "objective=sft"], "labels has no effect with objective: sft"),
        (["labels=[ham, spam]", "train_on_inputs=true"], "train_on_inputs has no effect with"),
        (
            ["labels=[ham, spam]", "publish.forgetting={path: general.jsonl}"],
            "publish.forgetting is the loss of the next token",
        ),
    ],
)
def test_what_classification_has_no_use_for_is_refused(overrides, says):
    """And labels that sites could not agree on; the reason says what to do."""
    with pytest.raises(RecipeError, match=re.escape(says)):
        classified(*overrides)
