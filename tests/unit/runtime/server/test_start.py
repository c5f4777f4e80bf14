"""Which processes an aggregator is made of."""

import shutil
from pathlib import Path

from fedlora.runtime.server.start import services
from tests.deployment import new_aggregator


def test_a_folder_without_a_store_has_no_registry(tmp_path: Path) -> None:
    """One that was made before there were releases still starts."""
    folder = new_aggregator(tmp_path / "agg", sites=[])
    names = [service.name for service in services(folder)]
    shutil.rmtree(folder.store)

    assert names == ["superlink", "front", "coordinator", "registry"]
    assert [service.name for service in services(folder)] == names[:-1]
