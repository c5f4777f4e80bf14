"""What an operator decides by: every line as it is printed."""

from pathlib import Path

import pytest

from fedlora.lock import BaseDigests, Beginning
from fedlora.recipe import Recipe
from fedlora.runtime.client.approvals import Request
from fedlora.runtime.client.configuration import SiteConfiguration
from fedlora.runtime.client.summary import printable, summary
from fedlora.runtime.lock import locked
from fedlora.sections import Source
from tests.strategies import make_spec

SITE = SiteConfiguration.model_validate(
    {
        "site": "north",
        "data": [
            {"path": "/data/letters.jsonl", "type": "messages"},
            {"path": "standard-library", "packages": ["cmd", "code"]},
        ],
        "policy": {},
    }
)
SPEC = make_spec(rank=8, alpha=16.0)
DATASETS = "datasets: [{path: a, site: north}, {path: b, site: south}, {path: c, site: east}]\n"


def lines(text: str, *overrides: str, site: SiteConfiguration = SITE) -> list[tuple[str, str]]:
    recipe = Recipe.from_yaml(DATASETS + text, overrides=overrides)
    request = Request(run="run-1", recipe=recipe, spec=SPEC, asked="2026-03-01T20:15:00+00:00")
    return list(summary(request, site, aggregator="fl.example:9443"))


def test_a_run_without_privacy_in_plain_words():
    """Who, what, on which data, what leaves and how often, and that nothing is promised."""
    text = "privacy: {unit: none}\nname: letters\nfederation: {rounds: 4}\n"
    digest = Recipe.from_yaml(DATASETS + text).digest
    assert lines(text) == [
        ("asked by", "the aggregator at fl.example:9443, first at 2026-03-01T20:15:00+00:00"),
        ("run", "run-1"),
        ("recipe", f"letters, SHA-256 {digest}"),
        ("base model", f"embedded, SHA-256 {'ab' * 32}"),
        (
            "trains",
            "lora of rank 8 on 2 modules (q_proj, up_proj), method product, learning rate 0.0002",
        ),
        ("", "4 rounds of 15 steps of 8 examples"),
        ("", "it learns answers alone, of rows cut to 512 tokens"),
        ("your data", "/data/letters.jsonl (messages); standard-library: cmd, code"),
        ("with", "south, east"),
        (
            "leaves",
            "an update of 120 values (int8, 248 B) in each of 4 rounds, at most 992 B in all",
        ),
        (
            "",
            (
                "train_loss and the number of examples, with each update; eval_loss_sum and "
                "eval_tokens, and how many are right by token_accuracy and exact_match, at most 5 "
                "times"
            ),
        ),
        (
            "privacy",
            (
                "none is promised: nothing bounds what the updates tell of single records, and "
                "text can be reconstructed from them"
            ),
        ),
        (
            "takes",
            ("60 steps of training; the aggregator waits 1:00:00 h for a round, 4:00:00 h for all"),
        ),
    ]


def test_who_else_gets_the_numbers_is_said():
    """A tracker may be a service of somebody else's."""
    [told] = [
        text for _, text in lines("privacy: {unit: none}\ntrackers: [wandb]\n") if "copies" in text
    ]
    assert told == "the aggregator copies these numbers to its wandb"


def test_a_run_that_hides_examples():
    """The promise with its numbers; B alone leaves, and the ledger's head with it."""
    text = "privacy: {unit: example, epsilon: 4, delta: 1e-6, records: 1000, evaluation_noise: 9}\n"
    told = [text for _, text in lines(text, "federation.rounds=2")]
    promise, head = "ε 4 at δ 1e-06 for the whole run, for each training record", "their hash"
    assert f"{promise}, against all who see what leaves" in told
    metrics = "eval_loss_sum and eval_tokens, noised, at most 3 times"
    assert f"{metrics}; how many rows the ledger has, and {head}" in told
    size = "72 values (int8, 136 B)"
    assert f"an update of {size} in each of 2 rounds, at most 272 B in all" in told


def test_a_run_that_hides_clients_says_who_is_trusted():
    """The aggregator sees this site's update as it is: no operator may miss that."""
    text = (
        "privacy: {unit: client, epsilon: 4, delta: 1e-3, clip_norm: 1}\n"
        "federation: {evaluate_every: 0, cohort_size: 1, rounds: 6}\n"
    )
    told = dict(lines(text))
    assert told["privacy"].endswith(
        "itself sees your updates, and nothing bounds what they tell it"
    )
    assert "in about 2 of 6 rounds" in told["leaves"]
    assert told[""] == "no other number"


def test_a_secure_sum_says_what_the_aggregator_sees_and_on_whom_that_rests():
    """Masked values of four bytes and a weight; no loss leaves; how many may collude, in words."""
    told = lines("privacy: {unit: none, secure_aggregation: true}\nfederation: {rounds: 2}\n")
    leaves = "an update of 72 values (masked, 292 B) in each of 2 rounds, at most 584 B in all"
    place = told.index(("leaves", leaves))
    summed, pinned, metrics, privacy = told[place + 1 : place + 5]
    assert summed == (
        "summed",
        (
            "the aggregator sees sums of 3 or more of 3 sites alone, even if it lies, while none "
            "of them tell it what they know; who takes part it knows"
        ),
    )
    assert "must be pinned here" in pinned[1]
    assert metrics == ("", "no other number")
    assert "nothing bounds what the sums tell" in privacy[1]
    curious = "{unit: none, secure_aggregation: true, threat_model: honest-but-curious}"
    assert "if it follows the protocol" in dict(lines(f"privacy: {curious}\n"))["summed"]
    more = "{unit: none, secure_aggregation: true, colluders: 2}"
    assert "at most 2 of them" in dict(lines(f"privacy: {more}\n"))["summed"]


def test_noise_of_the_sites_own_needs_no_trusted_aggregator():
    """The promise is the unit's, against the aggregator too."""
    privacy = "{unit: client, epsilon: 4, delta: 1e-3, clip_norm: 1, secure_aggregation: true}"
    told = dict(lines(f"privacy: {privacy}\n"))["privacy"]
    assert told.startswith("ε 4 at δ 0.001 for the whole run, for all data of a site together")
    assert told.endswith("the aggregator need not be trusted")


def test_what_is_not_ordinary_is_told():
    """Prompts that are learned, a base of this host, factors in turn, no other site."""
    site = SITE.model_copy(update={"base_model": "/models/b"})
    recipe = "privacy: {unit: none}\ntrain_on_inputs: true\nbase_model: org/b\nadapter: qlora\n"
    told = lines(recipe, "federation.method=alternate", site=site)
    assert ("base model", f"org/b, SHA-256 {'ab' * 32}, here /models/b") in told
    assert ("", "it learns prompts and answers, of rows cut to 512 tokens") in told
    assert "up to 72 values" in dict(told)["leaves"]
    alone = Recipe.from_yaml("privacy: {unit: none}\ndatasets: [{path: a, site: north}]")
    request = Request(run="run", recipe=alone, spec=SPEC, asked="")
    assert dict(summary(request, SITE, aggregator=""))["with"] == "no others"


def test_what_training_begins_with_and_what_is_preferred_are_told():
    """The release, or that there is none; pairs of answers are another objective."""
    text = "privacy: {unit: none}\nobjective: dpo\ninit_from: adapter\n"
    recipe = Recipe.from_yaml(DATASETS + text)
    parts = BaseDigests(weights_digest="0" * 64, tokenizer_digest="1" * 64)
    plain = locked(recipe.model_copy(update={"init_from": None}), SPEC, parts)
    for release, said in (("ab" * 32, f"release {'ab' * 32}"), (None, "an adapter of no release")):
        beginning = Beginning(
            release=release, a_digest="2" * 64, b_digest="3" * 64, head_digest="4" * 64
        )
        lock = plain.lock.model_copy(update={"beginning": beginning})
        request = Request(
            run="run", recipe=recipe.model_copy(update={"lock": lock}), spec=SPEC, asked=""
        )
        told = summary(request, SITE, aggregator="")
        assert ("", f"from {said} on, which the aggregator chose") in told
    assert ("", "it learns which of two answers is preferred, of rows cut to 512 tokens") in told


@pytest.mark.parametrize("trick", ["\x1b[2J", "\r", "\n", "\u202e", "\u200b", "\x9b"])
def test_no_line_can_move_the_cursor_or_turn_text_around(trick):
    """The base model's name is free text of the aggregator's; so may be the operator's paths."""
    shown = printable(f"a{trick}b")
    assert shown.isprintable()
    assert (shown[0], shown[-1]) == ("a", "b")
    site = SITE.model_copy(update={"base_model": str(Path("/m") / f"x{trick}")})
    recipe = Recipe.from_yaml("privacy: {unit: none}\n" + DATASETS)
    recipe = recipe.model_copy(update={"base_model": f"x{trick}y"})
    request = Request(run="run", recipe=recipe, spec=SPEC, asked="")
    told = summary(request, site, aggregator="fl.example")
    assert all(text.isprintable() for line in told for text in line)


def test_a_public_text_is_named_beside_what_leaves_of_it():
    """Only where the operator names one; how often follows from the releases."""
    text = "privacy: {unit: none}\npublish: {every: 2, forgetting: {path: x}}\n"
    named = SITE.model_copy(update={"public_text": Source(path="/data/general.txt")})
    said = "public_loss_sum and public_tokens of /data/general.txt, at most 5 times"
    assert said in dict(lines(text, site=named))[""]
    assert "public" not in dict(lines(text))[""]
