"""What a site remembers between rounds."""

import pytest
import torch

from fedlora.errors import RunError
from fedlora.runtime.site.memory import FOLDER, SiteMemory


@pytest.fixture
def memory(tmp_path, monkeypatch) -> SiteMemory:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return SiteMemory("hospital", "run-1")


def test_the_last_round_before_is_recalled(memory):
    """Whatever was kept later, in a first try of the same round, does not count."""
    for number in (1, 2, 5):
        memory.keep("personal", torch.full((3,), float(number)), number=number)
    assert torch.equal(memory.recall("personal", before=6), torch.full((3,), 5.0))
    assert torch.equal(memory.recall("personal", before=5), torch.full((3,), 2.0))


def test_nothing_is_recalled_of_other_names_sites_and_runs(memory):
    """Each has a memory of its own."""
    memory.keep("personal", torch.ones(3), number=1)
    assert memory.recall("lost-B", before=9) is None
    assert SiteMemory("bank", "run-1").recall("personal", before=9) is None
    assert SiteMemory("hospital", "run-2").recall("personal", before=9) is None
    assert memory.recall("personal", before=1) is None


@pytest.mark.parametrize("run", ["ledger.sqlite", "ledger.sqlite.head", "ledger.key", "runs"])
def test_no_run_s_name_takes_the_place_of_the_ledger(tmp_path, memory, run):
    """The aggregator names runs: their folders are beside nothing else."""
    SiteMemory("hospital", run).keep("personal", torch.ones(3), number=1)
    assert [path.name for path in (tmp_path / "hospital").iterdir()] == ["runs"]


def test_a_round_that_is_played_again_forgets_what_came_after_it(memory):
    """What a later round kept belongs to a run that was taken back."""
    for number in (1, 2, 3, 4):
        memory.keep("personal", torch.full((3,), float(number)), number=number)
    memory.keep("personal", torch.full((3,), 30.0), number=3)
    assert torch.equal(memory.recall("personal", before=9), torch.full((3,), 30.0))


def test_only_three_rounds_are_kept(memory):
    """The folder does not grow with the run."""
    for number in range(1, 12):
        memory.keep("personal", torch.ones(3), number=number)
    assert len(list(memory.folder.iterdir())) == 3


def test_a_damaged_memory_is_named(memory):
    """The site does not go on with half of what it knew."""
    memory.keep("personal", torch.ones(3), number=1)
    (path,) = memory.folder.iterdir()
    path.write_bytes(b"rubbish")
    with pytest.raises(RunError, match=f"{path}: what the site remembers cannot be read"):
        memory.recall("personal", before=2)


def test_without_a_folder_the_variable_is_asked_for(monkeypatch):
    """The error says what to set."""
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(RunError, match="set FEDLORA_SITES"):
        SiteMemory("hospital", "run-1").keep("personal", torch.ones(3), number=1)
