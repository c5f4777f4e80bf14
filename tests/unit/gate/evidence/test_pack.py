"""Packs: written whole, read with care, checked by fedlora and by hand."""

import io
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from fedlora.errors import EvidenceError, StorageError
from fedlora.gate.evidence import pack as packs
from fedlora.gate.evidence.pack import Pack, export
from fedlora.gate.evidence.verification import verify_pack
from tests.evidence import POLICY, RECIPE, Site, configured, signer


@pytest.fixture
def site(tmp_path) -> Site:
    """A site with two rounds, the first of them receipted."""
    site = Site(tmp_path / "evidence")
    log = site.log()
    log.append(configured(log))
    site.answered(log, 1)
    log.require_receipted(site.receipt(log), aggregator=site.aggregator.public)
    site.answered(log, 2)
    return site


def verified(pack: Pack, site: Site):
    return verify_pack(pack, gate=site.gate.public, aggregator=site.aggregator.public)


def altered(pack: Pack, **changes: bytes | None) -> Pack:
    """Return a pack with files replaced, added, or left out."""
    files = {**pack.files, **changes}
    return Pack(name="pack", files={name: data for name, data in files.items() if data is not None})


@pytest.mark.parametrize("name", ["pack.zip", "pack"])
def test_a_pack_holds_what_an_auditor_needs(site, tmp_path, name):
    """As a zip or a folder: the log with its export, keys, texts, a page, and how to check."""
    pack = site.exported(site.log(), tmp_path / name)
    found = verified(pack, site)
    assert (found.site, found.head.count, found.receipted, found.others) == ("north", 9, 4, 0)
    assert [each.kind for each in found.entries][-1] == "exported"
    assert {pack.files[name].decode() for name in pack.files if "texts" in name} == {POLICY, RECIPE}
    assert pack.files["evidence.html"] == b"8 entries"
    assert [each.kind for each in site.log().entries()] == [each.kind for each in found.entries]


def test_equal_packs_are_equal_bytes(site, tmp_path):
    """A zip says nothing of when and by whom it was made."""
    pack = site.exported(site.log(), tmp_path / "one.zip")
    pack.write(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_receipts_under_another_key_are_counted_apart(site, tmp_path):
    """They prove nothing to who knows the aggregator by the other key; the log is whole."""
    pack = site.exported(site.log(), tmp_path / "pack.zip")
    found = verify_pack(pack, gate=site.gate.public, aggregator=signer(3).public)
    assert (found.receipted, found.others) == (0, 1)


def test_a_pack_of_another_gate_is_refused(site, tmp_path):
    """The key that the auditor was given decides, not the one in the pack."""
    pack = site.exported(site.log(), tmp_path / "pack.zip")
    with pytest.raises(EvidenceError, match="it holds the key of another gate"):
        verify_pack(pack, gate=signer(3).public, aggregator=site.aggregator.public)
    other = altered(pack, **{"keys/gate.pub": f"{signer(3).public.text}\n".encode()})
    with pytest.raises(EvidenceError, match=r"head\.json is not signed by the gate's key"):
        verify_pack(other, gate=signer(3).public, aggregator=site.aggregator.public)


def test_a_newer_pack_has_grown_from_the_older(site, tmp_path):
    """One that was rewritten before, or is shorter, is named."""
    older = verified(site.exported(site.log(), tmp_path / "older.zip"), site)
    log = site.log()
    site.answered(log, 3)
    newer = verified(site.exported(log, tmp_path / "newer.zip"), site)
    newer.require_since(older.head, by="older.zip")
    with pytest.raises(EvidenceError, match=r"has 9 entries, but newer\.zip has 13"):
        older.require_since(newer.head, by="newer.zip")
    other = Site(tmp_path / "other")
    site.answered(other.log(), 1)
    site.answered(other.log(), 2)
    site.answered(other.log(), 3)
    rewritten = verified(site.exported(other.log(), tmp_path / "other.zip"), site)
    with pytest.raises(EvidenceError, match=r"Entry 9 is another than in older\.zip"):
        rewritten.require_since(older.head, by="older.zip")


def test_nothing_is_written_over(site, tmp_path):
    """Nor logged."""
    (tmp_path / "pack.zip").write_text("mine")
    log = site.log()
    with pytest.raises(StorageError, match="there is something already"):
        export(log, tmp_path / "pack.zip", aggregator=signer(2).public, page=lambda _: "")
    assert (tmp_path / "pack.zip").read_text() == "mine"
    assert log.head().count == 8


def test_a_text_that_is_lost_is_missed_at_the_export(site, tmp_path):
    """Before anything is logged or written."""
    shutil.rmtree(site.folder / "texts")
    with pytest.raises(EvidenceError, match="Put it back from a backup"):
        site.exported(site.log(), tmp_path / "pack.zip")
    assert site.log().head().count == 8
    assert not (tmp_path / "pack.zip").exists()


LINES = {
    "dropped": lambda lines: lines[:2] + lines[3:],
    "swapped": lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
    "doubled": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "edited": lambda lines: [*lines[:2], lines[2].replace(b"true", b"fals"), *lines[3:]],
    "other": lambda lines: [*lines[:2], b"{}\n", *lines[3:]],
}


@pytest.mark.parametrize("change", LINES)
def test_the_first_entry_that_is_not_what_was_written_is_named(site, tmp_path, change):
    """Entry 3, or the one whose place it took."""
    pack = site.exported(site.log(), tmp_path / "pack.zip")
    lines = LINES[change](pack.files["entries.jsonl"].splitlines(keepends=True))
    with pytest.raises(EvidenceError, match=r"pack: entry [34]"):
        verified(altered(pack, **{"entries.jsonl": b"".join(lines)}), site)


@pytest.mark.parametrize("keep", [1, 5, 8])
def test_a_pack_that_was_cut_is_refused(site, tmp_path, keep):
    """The signed head knows how many entries there were."""
    pack = site.exported(site.log(), tmp_path / "pack.zip")
    lines = pack.files["entries.jsonl"].splitlines(keepends=True)[:keep]
    with pytest.raises(EvidenceError, match=f"is of entry 9, but the last that is there is {keep}"):
        verified(altered(pack, **{"entries.jsonl": b"".join(lines)}), site)
    cut = pack.files["entries.jsonl"][:-1]
    with pytest.raises(EvidenceError, match="entry 9 is cut off"):
        verified(altered(pack, **{"entries.jsonl": cut}), site)


def test_other_files_are_those_of_the_export(site, tmp_path):
    """One that was changed, left out or put in is named."""
    pack = site.exported(site.log(), tmp_path / "pack.zip")
    [text, _] = [name for name in pack.files if name.startswith("texts/")]
    for name, data, says in (
        ("evidence.html", b"", "evidence.html is not what was exported"),
        (text, b"", f"{text} is not what was exported"),
        (text, None, f"{text} is missing"),
        ("texts/" + "0" * 64, b"", "was not in it when it was exported"),
    ):
        with pytest.raises(EvidenceError, match=says):
            verified(altered(pack, **{name: data}), site)


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "texts/../../x", "texts/abc", "a.py", "x/"]
)
def test_a_zip_with_another_name_is_refused(tmp_path, name):
    """Nothing is unpacked; a name that no pack has is not even read."""
    (tmp_path / "pack.zip").write_bytes(zipped(**{name: b"x"}))
    with pytest.raises(EvidenceError, match=re.escape(f"{name!r} is in it, which no pack has")):
        Pack.read(tmp_path / "pack.zip")


def test_a_zip_with_a_name_twice_is_refused(tmp_path):
    """Which of them is meant would be a matter of taste."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("head.json", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("head.json", b"2")
    (tmp_path / "pack.zip").write_bytes(stream.getvalue())
    with pytest.raises(EvidenceError, match=r"head\.json is in it 2 times"):
        Pack.read(tmp_path / "pack.zip")


def test_a_zip_that_grows_without_bounds_is_refused(tmp_path, monkeypatch):
    """Whatever size its directory says; a folder, too."""
    monkeypatch.setattr(packs, "_MOST_BYTES", 1000)
    (tmp_path / "pack.zip").write_bytes(zipped(**{"entries.jsonl": bytes(1001)}))
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "entries.jsonl").write_bytes(bytes(1001))
    for name in ("pack.zip", "pack"):
        with pytest.raises(EvidenceError, match="it is larger than 1,000 bytes"):
            Pack.read(tmp_path / name)


def test_a_zip_with_too_many_files_is_refused(tmp_path, monkeypatch):
    """Before one is read."""
    monkeypatch.setattr(packs, "_MOST_FILES", 1)
    (tmp_path / "pack.zip").write_bytes(zipped(**{"head.json": b"", "README.md": b""}))
    with pytest.raises(EvidenceError, match="it has 2 files; at most 1 are read"):
        Pack.read(tmp_path / "pack.zip")


@pytest.mark.parametrize("content", [b"", b"PK", b"plain text", None])
def test_what_is_no_zip_is_refused(tmp_path, content):
    """Also what is not there."""
    if content is not None:
        (tmp_path / "pack.zip").write_bytes(content)
    with pytest.raises(EvidenceError, match="this is no pack of evidence, or it is damaged"):
        Pack.read(tmp_path / "pack.zip")


def test_a_pack_that_lacks_a_file_is_refused(site, tmp_path):
    """By its name."""
    pack = site.exported(site.log(), tmp_path / "pack")
    for name in ("entries.jsonl", "head.json", "keys/gate.pub", "README.md"):
        (tmp_path / "pack" / name).unlink()
        with pytest.raises(EvidenceError, match=f"{name} is missing"):
            Pack.read(tmp_path / "pack")
        (tmp_path / "pack" / name).write_bytes(pack.files[name])


def test_a_folder_with_a_link_is_refused(site, tmp_path):
    """A pack reads no file of the auditor's."""
    site.exported(site.log(), tmp_path / "pack")
    (tmp_path / "pack" / "README.md").unlink()
    (tmp_path / "pack" / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(EvidenceError, match="there is a link in it"):
        Pack.read(tmp_path / "pack")
    shutil.rmtree(tmp_path / "pack" / "keys")
    (tmp_path / "pack" / "keys").symlink_to("/etc")
    with pytest.raises(EvidenceError, match=r"which no pack has|there is a link"):
        Pack.read(tmp_path / "pack")


def by_hand(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what the pack's README says."""
    [commands] = re.findall(r"```bash\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return subprocess.run(
        ["/bin/bash", "-eo", "pipefail", "-c", commands],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not shutil.which("openssl"), reason="the commands need openssl")
def test_a_pack_is_checked_by_hand_as_its_readme_says(site, tmp_path):
    """With bash, coreutils and openssl alone; a changed entry, head or file is found."""
    site.exported(site.log(), tmp_path / "pack")
    whole = by_hand(tmp_path / "pack")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.splitlines()[0].startswith("9 entries, the last has the hash ")
    assert "Signature Verified Successfully" in whole.stdout
    assert whole.stdout.endswith("the files are as exported\n")
    for name, old, new in (
        ("entries.jsonl", b"true", b"fals"),
        ("head.json", b"north", b"south"),
        ("evidence.html", b"8", b"9"),
    ):
        path = tmp_path / "pack" / name
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
        assert by_hand(tmp_path / "pack").returncode != 0
        path.write_bytes(content)
