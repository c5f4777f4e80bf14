"""A conversation asks adapters of one base, and follows the aliases that they were named by."""

from pathlib import Path

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError, ReleaseError
from fedlora.peft_folder import write_peft_folder
from fedlora.release.folder import Release
from fedlora.release.home import ENVIRONMENT
from fedlora.release.manifest import Base, Quantization
from fedlora.runtime.conversation import Conversation, find
from fedlora.training.base_model import describe
from simulations.published import DIGEST, Scene, manifest_of
from tests.tiny_models import tiny_recipe

QUESTION = "asyncio.sleep(delay)"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A publisher with a store, and a reader with a home."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "home"))
    return Scene.new(tmp_path)


def write(folder: Path, *, rank: int = 2, seed: int = 0) -> AdapterState:
    """Write an adapter of random A and B on the embedded base."""
    spec = describe(tiny_recipe(lora_r=rank)).spec
    generator = torch.Generator().manual_seed(seed)
    state = AdapterState(spec=spec, values=0.1 * torch.randn(spec.size, generator=generator))
    write_peft_folder(state, folder)
    return state


def publish(scene: Scene, *, rank: int = 2, digest: str = "", **changed) -> Release:
    """Publish an adapter on the embedded base, and let ``production`` point to it."""
    folder = scene.path / f"draft-{rank}"
    spec = write(folder, rank=rank, seed=rank).spec
    base = Base(name="embedded", digest=digest or spec.base_digest)
    release = scene.publisher.publish(folder, manifest_of(folder, base=base, **changed))
    found = scene.publisher.index("demo").aliases.get("production")
    scene.publisher.move(
        "demo", "production", release.id, expected=found and found.release, reason="test"
    )
    return release


def ask(conversation: Conversation) -> list[str]:
    """Return short answers."""
    return conversation.ask(QUESTION, max_new_tokens=12)


def test_an_adapter_follows_its_alias_and_a_folder_stays(scene):
    """When the alias has moved, its adapter is another; nothing else is loaded anew."""
    first = publish(scene, rank=2)
    write(scene.path / "own", rank=4)
    references = ["demo@production", str(scene.path / "own"), f"demo@{first.id[:8]}"]
    conversation = Conversation.open(references, registry=scene.store.path)
    base, moving, own, fixed = ask(conversation)
    assert moving == fixed != own
    assert conversation.follow() == []
    second = publish(scene, rank=8)
    [moved] = conversation.follow()
    assert (moved.reference, moved.release) == ("demo@production", second.id)
    expected = Conversation.open(["demo@production"], registry=scene.store.path)
    assert ask(conversation) == [base, ask(expected)[1], own, fixed]
    assert conversation.follow() == []


def test_a_revoked_release_is_told_and_what_is_loaded_stays(scene):
    """The reason reaches the user; the conversation can go on."""
    release = publish(scene)
    conversation = Conversation.open(["demo@production"], registry=scene.store.path)
    before = ask(conversation)
    scene.publisher.revoke("demo", release.id, reason="it swears")
    with pytest.raises(ReleaseError, match="it swears"):
        conversation.follow()
    assert ask(conversation) == before
    with pytest.raises(ReleaseError, match="it swears"):
        Conversation.open(["demo@production"], registry=scene.store.path)


def test_an_alias_that_moves_to_another_base_is_not_followed(scene):
    """The base in memory is not the new release's: the adapter before stays."""
    publish(scene)
    conversation = Conversation.open(["demo@production"], registry=scene.store.path)
    before = ask(conversation)
    publish(scene, rank=4, digest=DIGEST)
    with pytest.raises(AdapterError, match=rf"of embedded with the digest {DIGEST[:12]}"):
        conversation.follow()
    assert ask(conversation) == before


def test_adapters_of_different_bases_cannot_be_asked_together(scene, tmp_path):
    """By digest where it is known, by name where it is not; both are named."""
    publish(scene)
    registry = scene.store.path
    spec = write(tmp_path / "own").spec
    other = type(spec).from_json(spec.to_json().replace('"embedded"', '"org/other"'))
    write_peft_folder(AdapterState(spec=other, values=torch.zeros(other.size)), tmp_path / "other")
    both = [str(tmp_path / "own"), str(tmp_path / "other")]
    with pytest.raises(AdapterError, match=r"other: this adapter is of org/other, but .*own is of"):
        Conversation.open(both)
    assert len(ask(Conversation.open(both, base_model="embedded"))) == 3
    publish(scene, rank=4, digest=DIGEST)
    with pytest.raises(AdapterError, match=rf"{DIGEST[:12]}, but embedded here has"):
        Conversation.open(["demo@latest"], registry=registry)


def test_the_base_is_held_as_it_was_in_training(scene, tmp_path):
    """A release says whether that was in NF4; of a bare folder it is not known."""
    publish(scene, quantization=Quantization(kind="nf4"))
    assert find("demo", puller=lambda: scene.puller).recipe.adapter == "qlora"
    write(tmp_path / "own")
    assert find(str(tmp_path / "own"), puller=lambda: scene.puller).recipe.adapter == "lora"


def test_a_merged_model_is_no_adapter(scene):
    """It is refused before anything is read."""
    publish(scene, kind="merged")
    with pytest.raises(AdapterError, match="a whole model"):
        find("demo", puller=lambda: scene.puller)
