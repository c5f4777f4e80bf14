"""A person's yes: to one recipe of one run, as it was shown."""

import pytest

from fedlora.errors import PolicyError, RunError, StorageError
from fedlora.gate.policy import Policy
from fedlora.recipe import Recipe
from fedlora.runtime.client import approvals as module
from fedlora.runtime.client.approvals import Approvals
from tests.strategies import make_spec

TEXT = "privacy: {unit: none}\ndatasets: [{path: a.jsonl, site: north}]\n"
ASKED = Recipe.from_yaml(TEXT)
OTHER = Recipe.from_yaml(TEXT, overrides=["learning_rate=1e-3"])
SPEC = make_spec()


@pytest.fixture
def approvals(tmp_path):
    return Approvals(tmp_path / "approvals")


def ask(approvals: Approvals, *, run: str = "run", recipe: Recipe = ASKED) -> str:
    """Return why a run may not begin; nothing if it may."""
    try:
        approvals.require(run, recipe, spec=SPEC, policy=Policy())
    except PolicyError as error:
        return str(error)
    return ""


def answer(approvals: Approvals, *, yes: bool, run: str = "run") -> None:
    approvals.answer(approvals.request(run), yes=yes, who="ada")


def test_a_run_waits_for_a_yes(approvals):
    """What was asked is kept as it came, and again when nobody answers."""
    assert ask(approvals) == ask(approvals) == "Run run waits for fedlora client approve run."
    [(request, state)] = approvals.requests()
    assert (request.run, request.recipe, request.spec, state) == ("run", ASKED, SPEC, "waits")
    answer(approvals, yes=True)
    assert ask(approvals) == ""
    assert [state for _, state in approvals.requests()] == ["approved"]
    [given] = approvals.answers("run")
    assert (given.recipe_digest, given.yes, given.who) == (ASKED.digest, True, "ada")
    assert given.when.endswith("+00:00")


def test_a_no_holds_and_the_last_answer_counts(approvals):
    """A yes can be ended; what was said before is on record."""
    ask(approvals)
    answer(approvals, yes=False)
    assert ask(approvals) == "The site's operator refused run run."
    answer(approvals, yes=True)
    assert ask(approvals) == ""
    answer(approvals, yes=False)
    assert "refused" in ask(approvals)
    assert [each.yes for each in approvals.answers("run")] == [False, True, False]


def test_a_yes_is_to_one_recipe_of_one_run(approvals):
    """Another recipe under the same name, or the same under another, is asked for anew."""
    ask(approvals)
    answer(approvals, yes=True)
    assert "waits" in ask(approvals, recipe=OTHER)
    assert "waits" in ask(approvals, run="next")
    assert ask(approvals) == ""


def test_a_yes_is_to_what_was_shown(approvals):
    """An aggregator that changes its mind while the operator reads gains nothing."""
    ask(approvals)
    shown = approvals.request("run")
    assert "waits" in ask(approvals, recipe=OTHER)
    approvals.answer(shown, yes=True, who="ada")
    assert "waits" in ask(approvals, recipe=OTHER)
    assert ask(approvals) == ""


def test_where_nobody_need_say_yes_nothing_is_kept(approvals):
    """The policy's word alone counts, so that no file can change it."""
    approvals.require("run", ASKED, spec=SPEC, policy=Policy(approval="none"))
    assert not approvals.folder.exists()
    assert approvals.requests() == []


def test_an_aggregator_cannot_fill_the_disk(approvals, monkeypatch):
    """So many runs wait at once; an answer makes room."""
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    for number in range(3):
        ask(approvals, run=f"run-{number}")
    assert "3 runs wait for an answer already" in ask(approvals, run="run-3")
    assert approvals.request("run-3") is None
    answer(approvals, yes=False, run="run-1")
    assert "waits for" in ask(approvals, run="run-3")


def test_requests_are_listed_in_the_order_of_asking(approvals):
    """By time, then by name."""
    for run in ("c", "a", "b"):
        ask(approvals, run=run)
    asked = [(request.asked, request.run) for request, _ in approvals.requests()]
    assert len(asked) == 3
    assert asked == sorted(asked)


@pytest.mark.parametrize("folder", ["requests", "answers"])
@pytest.mark.parametrize("text", ["{", "[1]", '{"run": "run"}', '[{"yes": true}]'])
def test_a_damaged_file_is_no_yes(approvals, folder, text):
    """Nothing passes on what cannot be read."""
    ask(approvals)
    (approvals.folder / folder).mkdir(exist_ok=True)
    (approvals.folder / folder / "run.json").write_text(text)
    with pytest.raises(RunError, match=rf"{folder}/run\.json: what was asked or answered cannot"):
        approvals.require("run", ASKED, spec=SPEC, policy=Policy())


def test_a_yes_that_is_not_one_counts_as_no(approvals):
    """Whatever stands in the file, only ``true`` lets a run begin."""
    ask(approvals)
    answer(approvals, yes=True)
    path = approvals.folder / "answers" / "run.json"
    path.write_text(path.read_text().replace("true", '"false"'))
    assert "refused" in ask(approvals)


def test_a_full_disk_is_no_yes(approvals, small_disk):
    """The request is there whole or not at all."""
    with small_disk(10), pytest.raises(StorageError):
        approvals.require("run", ASKED, spec=SPEC, policy=Policy())
    assert approvals.requests() == []
