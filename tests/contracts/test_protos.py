"""The generated protobuf modules are those that the .proto files define."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "proto").rglob("*.proto"))
GENERATED = sorted(path for path in (ROOT / "fedlora").rglob("*_pb2*") if path.suffix != ".pyc")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules as ``make protos`` would generate them now."""
    folder = tmp_path_factory.mktemp("protos")
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto")]
    messages = [f"--python_out={folder}", f"--pyi_out={folder}", *map(str, PROTOS)]
    subprocess.run([*protoc, *messages], check=True)
    services = [str(path) for path in PROTOS if "\nservice " in path.read_text()]
    subprocess.run([*protoc, f"--grpc_python_out={folder}", *services], check=True)
    return folder


def test_no_generated_module_is_missing_or_left_over(fresh: Path) -> None:
    """Each .proto has its module and its stub, and nothing else looks generated."""
    expected = {path.relative_to(fresh) for path in fresh.rglob("*_pb2*")}

    assert expected
    assert expected == {path.relative_to(ROOT) for path in GENERATED}


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_module_is_up_to_date(path: Path, fresh: Path) -> None:
    """The committed text is what protoc writes; if it is not, run ``make protos``."""
    assert path.read_text() == (fresh / path.relative_to(ROOT)).read_text()
