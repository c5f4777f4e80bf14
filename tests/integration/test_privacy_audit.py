"""``fedlora privacy audit``, from the command line to what it leaves."""

import json
import sys
from pathlib import Path

import pytest

from fedlora.cli import main
from fedlora.runtime.site.memory import FOLDER

PRIVATE = (
    "privacy={unit: example, epsilon: 3, delta: 1e-5, records: 20}",
    "federation={rounds: 2, local_steps: 2, evaluate_every: 0}",
    "simulation.reproducible_noise=true",
    "val_set_size=0.3",
    "lora_r=2",
)


@pytest.fixture
def audit(recipe_text, monkeypatch, capsys, tmp_path):
    """Audit the small recipe; return exit code, output and errors."""
    (tmp_path / "small.yaml").write_text(recipe_text)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv(FOLDER, str(tmp_path / "real-sites"))

    def run(*arguments: str) -> tuple[int, str, str]:
        command = ["fedlora", "privacy", "audit", str(tmp_path / "small.yaml"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def left() -> tuple[Path, dict]:
    (folder,) = filter(Path.is_dir, Path("runs").iterdir())
    return folder, json.loads((folder / "audit.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_sound_recipe_is_not_caught(audit, tmp_path):
    """Bounds, attack and page are there, and no site's own ledger was touched."""
    code, out, err = audit(*PRIVATE)
    assert (code, err) == (0, "")
    folder, found = left()
    for text in ("north", "with privacy", "without privacy", "AUC", "Not caught", "audit.html"):
        assert text in out
    assert not found["caught"]
    assert found["could_catch"]
    assert [point["round"] for point in found["points"]] == [1, 2]
    end = found["points"][-1]
    assert end["shown"] < end["accounted"] <= 3
    assert end["shown"] < found["most"]
    for attack in found["membership"].values():
        assert attack["members"] > attack["others"] > 0
        assert 0 <= attack["auc"]["low"] <= attack["auc"]["value"] <= attack["auc"]["high"] <= 1
    page = (folder / "audit.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "A demonstration" not in page
    assert not (tmp_path / "real-sites").exists()


def test_noise_off_is_caught(audit, tmp_path):
    """Exit code 1, a clear error, and what was found says that it is a demonstration."""
    code, out, err = audit(*PRIVATE, "--noise-off", "--site", "south")
    assert code == 1
    assert "Caught: no mechanism" in err
    assert "A demonstration" in out
    folder, found = left()
    assert found["caught"]
    assert found["site"] == "south"
    assert found["points"][-1]["shown"] > 3 >= found["points"][-1]["accounted"]
    page = (folder / "audit.html").read_text(encoding="utf-8")
    assert "A demonstration" in page
    assert "publish neither" in page
    assert page.count("<svg") == 1
    assert not (tmp_path / "real-sites").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "privacy.unit is none"),
        (
            (
                "privacy={unit: client, epsilon: 8, delta: 1e-5, clip_norm: 1}",
                "federation.evaluate_every=0",
            ),
            "privacy.unit is client",
        ),
        ((*PRIVATE, "privacy.clip_quantile=0.5"), "clip_quantile=null"),
        ((*PRIVATE, "federation.method=share-a"), "share-a publishes no adapter"),
        ((*PRIVATE, "--site", "west"), "no site west, only north, south"),
    ],
)
def test_what_cannot_be_audited_is_refused(audit, arguments, message):
    """With the reason; nothing is written."""
    code, _, err = audit(*arguments)
    assert code == 2
    assert message in err
    assert not Path("runs").exists()
