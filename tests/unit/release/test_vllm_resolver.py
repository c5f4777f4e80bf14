"""vLLM gets verified releases by name, and nothing else; its own interface is played by a stand-in.

The stand-in keeps to ``vllm/lora/resolver.py``, ``vllm/lora/request.py`` and what
``vllm/entrypoints/openai/models/serving.py`` does with them, in vLLM 0.33.0.
"""

import asyncio
import sys
import threading
import tomllib
from abc import ABC, abstractmethod
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedlora.errors import ReleaseError
from fedlora.release import vllm_resolver
from fedlora.release.folder import Release
from fedlora.release.vllm_resolver import Fetcher, id_of, register
from simulations.published import Scene

GROUP = "vllm.general_plugins"


class LoRAResolver(ABC):
    """As vLLM's."""

    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any: ...


class LoRARequest:
    """As vLLM's, which refuses numbers below 1 and empty paths."""

    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str = "") -> None:
        if lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {lora_int_id}")
        assert lora_path, "lora_path cannot be empty"
        self.lora_name, self.lora_int_id, self.lora_path = lora_name, lora_int_id, lora_path


class Registry:
    """As vLLM's: resolvers by name."""

    def __init__(self) -> None:
        self.resolvers: dict[str, LoRAResolver] = {}

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        self.resolvers[resolver_name] = resolver


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Stand in for vLLM's modules."""
    registry = Registry()
    contents: dict[str, dict[str, object]] = {
        "vllm": {},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.lora.resolver": {"LoRAResolver": LoRAResolver, "LoRAResolverRegistry": registry},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return registry


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("FEDLORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDLORA_REGISTRY", str(tmp_path / "store"))
    monkeypatch.delenv("FEDLORA_BASE_MODEL", raising=False)
    return Scene.new(tmp_path)


def resolve(vllm: Registry, name: str, *, base: str = "embedded") -> Any:
    register()
    return asyncio.run(vllm.resolvers["fedlora"].resolve_lora(base, name))


def test_a_release_is_fetched_by_alias_and_by_its_own_name(vllm: Registry, scene: Scene) -> None:
    """The request bears the name that was asked for; the path is the verified release's."""
    first, second = scene.publish(seed=1), scene.publish(seed=2)
    scene.publisher.move("demo", "production", first.id, expected=None, reason="x")

    for name, release in {
        "demo@production": first,
        f"demo@{first.id[:12]}": first,
        "demo@latest": second,
    }.items():
        request = resolve(vllm, name)
        assert request.lora_name == name
        assert request.lora_int_id == id_of(release)
        assert Path(request.lora_path).is_absolute()
        assert Path(request.lora_path).name == release.id
        assert {p.name for p in Path(request.lora_path).iterdir()} >= {"adapter_config.json"}


def test_numbers_are_of_the_release(scene: Scene) -> None:
    """Always the same for one, others for others, and of 31 bits."""
    releases = [scene.publish(seed=seed) for seed in range(3)]
    numbers = [id_of(release) for release in releases]

    assert numbers == [id_of(release) for release in releases]
    assert len(set(numbers)) == 3
    assert all(0 < number < 2**31 for number in numbers)


@pytest.mark.parametrize("name", ["demo", "org/adapter", "", "a@b@c", "demo@", "../x@y"])
def test_names_of_others_are_left_to_others(
    name: str, vllm: Registry, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is not even asked."""
    monkeypatch.setattr(vllm_resolver, "puller", lambda _: pytest.fail("it was asked"))

    assert resolve(vllm, name) is None


def test_what_may_not_be_served_is_not_found_and_why_is_in_the_log(
    vllm: Registry, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Unknown names, revoked releases, changed bytes."""
    release = scene.publish()
    assert resolve(vllm, "other@latest") is None
    assert "there is no 'other'" in caplog.text

    path = Path(resolve(vllm, "demo@latest").lora_path)
    (path / "README.md").write_text("# changed\n", encoding="utf-8")
    assert resolve(vllm, "demo@latest") is None
    assert "README.md: this is not what was published" in caplog.text

    scene.publisher.revoke("demo", release.id, reason="it leaks")
    assert resolve(vllm, "demo@latest") is None
    assert "it leaks" in caplog.text


def test_another_base_is_refused_unless_it_is_the_same_by_another_name(
    vllm: Registry,
    scene: Scene,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bases are served from paths too; the operator says then what releases call it."""
    scene.publish()

    assert resolve(vllm, "demo@latest", base="/models/base") is None
    assert "is for embedded, but /models/base is served" in caplog.text
    monkeypatch.setenv("FEDLORA_BASE_MODEL", "embedded")
    assert resolve(vllm, "demo@latest", base="/models/base")


def test_merged_models_are_no_adapters(
    vllm: Registry, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """They are served by themselves."""
    scene.publish(kind="merged")

    assert resolve(vllm, "demo@latest") is None
    assert "is a merged model" in caplog.text


def test_the_event_loop_goes_on_while_a_release_is_fetched(scene: Scene) -> None:
    """And a request for one name does not wait for another's."""
    release, fetching, go_on = scene.publish(), threading.Event(), threading.Event()

    def slow_pull(_: str) -> Release:
        fetching.set()
        assert go_on.wait(timeout=30)
        return release

    async def serve() -> list[Release | None]:
        fetcher = Fetcher(slow_pull)
        tasks = [asyncio.create_task(fetcher.fetch("embedded", "demo@latest")) for _ in range(2)]
        await asyncio.to_thread(fetching.wait)
        go_on.set()  # the pull waits for the loop to say so
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(serve()) == [release, release]


def test_a_name_that_failed_is_not_asked_for_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Anybody may send requests; whatever goes wrong is a 404, and a line that is one line."""
    asked: list[str] = []

    def failing(name: str) -> Release:
        asked.append(name)
        raise OSError("the disk\nis odd")

    fetcher = Fetcher(failing)
    for _ in range(3):
        assert asyncio.run(fetcher.fetch("embedded", "demo@latest")) is None
    assert asyncio.run(fetcher.fetch("embedded", "x\nforged@" + "y" * 10**6)) is None
    assert asked == ["demo@latest"]
    assert len(caplog.text) < 2_000
    assert "\nforged" not in caplog.text


def test_nothing_is_registered_where_no_registry_is_named(
    vllm: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package may be installed beside vLLM for other ends."""
    monkeypatch.delenv("FEDLORA_REGISTRY", raising=False)
    register()

    assert vllm.resolvers == {}


def test_a_registry_file_that_cannot_be_read_is_an_error_at_the_start(
    vllm: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first request."""
    monkeypatch.setenv("FEDLORA_REGISTRY", str(tmp_path / "registry.yaml"))

    with pytest.raises(ReleaseError, match="hands out such a registry file"):
        register()


def test_vllm_finds_the_plug_in() -> None:
    """By its entry point, which must name what is there."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    entry = EntryPoint("fedlora", project["entry-points"][GROUP]["fedlora"], GROUP)

    assert entry.load() is register
