"""Flower's app bundle: what SuperLink and SuperNodes get when the app is deployed."""

import shutil
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build
from flwr.common.constant import FAB_MAX_SIZE

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings(
    "ignore:GitWildMatchPattern:DeprecationWarning"  # flwr's own use of pathspec
)
PARTS = ["pyproject.toml", ".gitignore", "LICENSE", "README.md", "fedlora", "server", "client"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as ``flwr build`` makes it; Flower wants a folder with the app's name."""
    app = tmp_path_factory.mktemp("bundle") / "fedlora"
    app.mkdir()
    for part in PARTS:
        source = ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, app / part)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(app.parent)
        build(app)
    [path] = app.parent.glob("*.fab")
    return path


def members(bundle: Path) -> set[str]:
    """Return the names of the bundle's files."""
    with zipfile.ZipFile(bundle) as archive:
        return set(archive.namelist())


def test_bundle_is_named_after_the_app(bundle: Path) -> None:
    """Publisher, name and version come from pyproject.toml, which Flower therefore understands."""
    assert bundle.name.startswith("fedlora.fedlora.0-")


def test_bundle_holds_both_apps_and_the_whole_library(bundle: Path) -> None:
    """No module is missing: a bundle that lacks one fails only when it is deployed."""
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in ("fedlora", "server", "client")
        for path in (ROOT / folder).rglob("*.py")
    }

    assert {"server/app.py", "client/app.py", "fedlora/recipe.py"} <= modules
    assert members(bundle) == modules | {"pyproject.toml", ".info/CONTENT"}


def test_bundle_is_smaller_than_flower_allows(bundle: Path) -> None:
    """The embedded base model stays out: sites find it through the installed package."""
    assert bundle.stat().st_size < FAB_MAX_SIZE / 5
