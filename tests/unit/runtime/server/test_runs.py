"""The runs of an aggregator: which is played next, and where each stands."""

import io
import zipfile

import pytest

from fedlora.errors import RecipeError, RunError
from fedlora.recipe import Recipe
from fedlora.runtime.lock import locked
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.server.app_bundle import app_bundle
from fedlora.runtime.server.runs import Runs
from fedlora.training.base_model import describe

RECIPE = Recipe.from_yaml("{name: small, datasets: [{site: north}], privacy: {unit: none}}")


class Clock:
    """A clock that stands still unless it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    base = describe(RECIPE)
    return locked(RECIPE, base.spec, base.digests)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def runs(tmp_path, clock) -> Runs:
    return Runs(tmp_path / "runs", clock=clock)


def test_a_run_begins_without_the_base(runs, recipe):
    """The folder of a locked recipe has all that a coordinator needs."""
    run = runs.begin(recipe)
    assert RunFolder.open(run.path).spec() == describe(RECIPE).spec
    assert [each.name for each in runs.all()] == [run.name]
    assert runs.next() == run
    assert runs.standing(run).state == "waiting"


def test_an_unlocked_recipe_is_refused_and_leaves_nothing(runs):
    """The error says how to lock it."""
    with pytest.raises(RecipeError, match="fedlora recipe lock"):
        runs.begin(RECIPE)
    assert list(runs.all()) == []


def test_a_run_that_is_not_wanted_is_not_played(runs, recipe):
    """Until its operator wants it again."""
    run = runs.begin(recipe)
    runs.want(run, "stopped")
    assert runs.next() is None
    runs.note(run, "stopped")
    runs.want(run, "playing")
    assert runs.next() == run
    assert runs.standing(run).state == "waiting"


def test_a_paused_run_is_tried_again_later_and_later(runs, recipe, clock):
    """Each time in vain doubles the wait, up to five minutes; meanwhile others are played."""
    run, other = runs.begin(recipe), runs.begin(recipe)
    waits = []
    for _ in range(9):
        runs.note(run, "paused", reason="no quorum")
        assert runs.next() == other
        waits.append(runs.standing(run).again - clock.now)
        clock.now = runs.standing(run).again
        assert runs.next() == run
        runs.note(run, "playing")
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert runs.standing(run).tries == 9


def test_a_round_that_was_played_ends_the_waiting(runs, recipe):
    """A run that moves on is not punished for what kept it before."""
    run = runs.begin(recipe)
    for _ in range(3):
        runs.note(run, "paused", reason="no quorum")
    (run.path / "rounds.jsonl").write_text('{"round": 0}\n')
    runs.note(run, "paused", reason="no quorum")
    assert runs.standing(run).tries == 1


def test_resuming_does_not_wait(runs, recipe):
    """The operator's word counts at once."""
    run = runs.begin(recipe)
    runs.note(run, "paused", reason="no quorum")
    assert runs.next() is None
    runs.want(run, "playing")
    assert runs.next() == run


def test_a_finished_run_is_not_played_again(runs, recipe):
    """Also where factors are personal, so that there is no adapter for all to publish."""
    run = runs.begin(recipe)
    runs.note(run, "finished")
    assert runs.next() is None
    runs.want(run, "playing")
    assert runs.next() is None


def test_a_run_that_was_published_but_not_reported_goes_on(runs, recipe):
    """A coordinator that was killed between the two has something left to do."""
    run = runs.begin(recipe)
    runs.note(run, "playing")
    run.release.mkdir()
    assert runs.next() == run


@pytest.mark.parametrize("state", ["waiting", "paused"])
def test_a_run_that_is_stopped_while_nobody_plays_it_says_so(runs, recipe, state):
    """No coordinator would come by to write it down."""
    run = runs.begin(recipe)
    runs.note(run, state, reason="no quorum")
    runs.want(run, "stopped")
    assert (runs.standing(run).state, runs.standing(run).reason) == ("stopped", "")


@pytest.mark.parametrize("name", ["nothing", "../runs", "", "."])
def test_a_run_that_is_not_there_is_named_with_those_that_are(runs, recipe, name):
    """No name leads out of the folder."""
    run = runs.begin(recipe)
    with pytest.raises(RunError, match=run.name):
        runs.open(name)
    assert runs.open(run.name) == run


def test_a_damaged_standing_keeps_nobody_waiting(runs, recipe):
    """Its file holds nothing that the run needs: it goes on from its last checkpoint."""
    run = runs.begin(recipe)
    (run.path / "standing.json").write_text("{")
    assert runs.standing(run).state == "waiting"
    assert runs.next() == run


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_the_bundle_that_flower_wants_holds_no_code():
    """What a SuperLink hands to every SuperNode is a name."""
    with zipfile.ZipFile(io.BytesIO(app_bundle())) as bundle:
        assert set(bundle.namelist()) == {"pyproject.toml", ".info/CONTENT"}
