"""Releases on the command line: what is printed can be acted on, what is refused says why."""

import json
from pathlib import Path

import pytest

import fedlora
from fedlora.signing import new_key
from simulations.published import Scene, manifest_of


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("FEDLORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDLORA_REGISTRY", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "120")
    return Scene.new(tmp_path)


@pytest.fixture
def key(scene: Scene) -> Path:
    return scene.path / "publisher.key"


def test_names_and_releases_are_listed(command_line, scene) -> None:
    """First the names, with their aliases; then a name's releases, newest first."""
    first, second = scene.publish(seed=1), scene.publish(seed=2)
    scene.publisher.move("demo", "production", first.id, expected=None, reason="x")

    _, names, _ = command_line("adapters", "list")
    code, releases, _ = command_line("adapters", "list", "demo")

    assert code == 0
    assert f"latest {second.id[:12]}, production {first.id[:12]}" in names
    lines = [line.split()[0] for line in releases.splitlines()[1:3]]
    assert lines == [second.id[:12], first.id[:12]]


def test_a_name_that_cannot_be_read_hides_no_other(command_line, scene) -> None:
    """The others are listed, and the command fails with the reason."""
    scene.publish()
    folder = scene.draft(seed=1)
    scene.publisher.publish(folder, manifest_of(folder, name="other"))
    (scene.store.path / "index" / "other" / "00000001.json").write_text("{}", encoding="utf-8")

    code, names, error = command_line("adapters", "list")

    assert code == 2
    assert "demo" in names
    assert "other" in error


def test_an_empty_store_says_so(command_line, scene) -> None:
    """Nothing is no error."""
    assert command_line("adapters", "list") == (0, "Nothing is published there yet.\n", "")


def test_a_release_is_shown(command_line, scene) -> None:
    """For people, with the privacy statement; and as the manifest itself."""
    release = scene.publish()

    _, shown, _ = command_line("adapters", "show", "demo")
    _, text, _ = command_line("adapters", "show", "demo", "--json")

    assert release.id in shown
    assert "No differential privacy was applied." in shown
    assert json.loads(text)["files"]["README.md"]["size"] == len("# demo\n")


def test_a_release_is_pulled_and_verified(command_line, scene, key, tmp_path) -> None:
    """With the key alone, offline; a changed byte is refused by name."""
    scene.publish()
    into = tmp_path / "adapter"
    code, said, _ = command_line("adapters", "pull", "demo@latest", "--into", into)
    assert (code, f"is in {into}" in said) == (0, True)

    public = f"{key}.pub"
    code, said, _ = command_line("adapters", "verify", into, "--key", public)
    assert (code, "the publisher has signed" in said) == (0, True)
    (into / "README.md").write_text("# dem0\n", encoding="utf-8")
    code, _, error = command_line("adapters", "verify", into, "--key", public)
    assert (code, f"{into / 'README.md'}: this is not what was published" in error) == (2, True)


def test_an_alias_is_moved_back_and_a_release_revoked(command_line, scene, key) -> None:
    """Each with the publisher's key; the reason reaches whoever asks for what was revoked."""
    first, second = scene.publish(seed=1), scene.publish(seed=2)
    sign = ("--key", key, "--reason", "evaluated by hand")

    def move(reference: str) -> str:
        return command_line("adapters", "promote", reference, "--to", "production", *sign)[1]

    assert move(f"demo@{first.id[:8]}") == f"demo@production points to {first.id[:12]} now.\n"
    assert f"before: {first.id[:12]}" in move("demo@latest")
    _, said, _ = command_line("adapters", "rollback", "demo", "--alias", "production", *sign)
    assert said == f"demo@production points to {first.id[:12]} again.\n"
    _, said, _ = command_line("adapters", "revoke", f"demo@{second.id[:8]}", *sign)
    assert "demo@latest still points to it" in said
    code, _, error = command_line("adapters", "pull", "demo")
    assert (code, "was revoked" in error, "evaluated by hand" in error) == (2, True, True)
    _, said, _ = command_line("adapters", "renew", "demo", "--key", key)
    assert "is good until" in said


def test_what_nobody_needs_is_removed(command_line, scene, key) -> None:
    """It is named; without garbage, that is said."""
    first = scene.publish(seed=1)
    scene.publish(seed=2)

    _, said, _ = command_line("adapters", "collect", "demo", "--key", key)
    assert said == f"Removed {first.id[:12]}.\n"
    _, said, _ = command_line("adapters", "collect", "demo", "--key", key)
    assert said == "Every release of demo is needed.\n"


def test_another_key_than_the_publishers_is_refused(command_line, scene, tmp_path) -> None:
    """Before anything is signed with it."""
    scene.publish()
    new_key(tmp_path / "other.key")

    code, _, error = command_line("adapters", "renew", "demo", "--key", tmp_path / "other.key")
    assert (code, "the registry's publisher is" in error) == (2, True)


def test_without_a_registry_it_is_said_how_to_name_one(
    command_line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an option or in the environment."""
    monkeypatch.delenv("FEDLORA_REGISTRY", raising=False)

    code, _, error = command_line("adapters", "list")
    assert (code, "--registry FILE" in error, "FEDLORA_REGISTRY" in error) == (2, True, True)


def test_a_registry_file_that_is_none_is_refused(command_line, tmp_path) -> None:
    """It names the line and the key."""
    path = tmp_path / "registry.yaml"
    path.write_text("publisher: nonsense\nadress: here:1\n", encoding="utf-8")

    code, _, error = command_line("adapters", "list", "--registry", path)
    assert code == 2
    assert f"{path}, line 1: publisher: " in error
    assert f"{path}, line 2: adress is not a known key; did you mean address?" in error


def test_a_release_is_pulled_in_python(scene) -> None:
    """One call, one folder."""
    release = scene.publish()

    assert fedlora.pull("demo@latest") == scene.path / "home" / "releases" / release.id
