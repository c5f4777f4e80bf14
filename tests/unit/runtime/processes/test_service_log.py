"""What services say is kept, within bounds, and alarms are passed on."""

from pathlib import Path

import pytest

from fedlora.runtime.processes.service_log import ServiceLog


def lines(path: Path) -> list[str]:
    """Return the lines of a log without their times."""
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()]


def test_lines_come_whole_without_colours_and_with_their_time(tmp_path: Path) -> None:
    """However the pipe cuts them."""
    log = ServiceLog(tmp_path / "a.log", alarm=lambda _: None)
    for piece in (b"\x1b[92mINF", b"O \x1b[0m: one\ntw", b"o\n", b"\n"):
        log.write(piece)

    assert lines(tmp_path / "a.log") == ["INFO : one", "two"]
    assert (tmp_path / "a.log").read_text()[:2] == "20"


@pytest.mark.parametrize(
    ("line", "alarming"),
    [
        ("WARNING :   retrying", True),
        ("Traceback (most recent call last):", True),
        ("ValueError: x", True),
        ('{"level": "warning", "event": "x"}', True),
        ("torch.OutOfMemoryError: x", True),
        ("INFO : no errors", False),
        ("loss 0.3, warned nobody", False),
    ],
)
def test_what_is_bad_is_passed_on(tmp_path: Path, line: str, alarming: bool) -> None:
    """Warnings, errors and tracebacks; not each line that has such a word in it."""
    told: list[str] = []
    ServiceLog(tmp_path / "a.log", alarm=told.append).write(f"{line}\n".encode())

    assert told == [line] * alarming


def test_the_files_stay_bounded(tmp_path: Path) -> None:
    """However much a service says, four files of about 5 MiB are kept; the newest lines stay."""
    log = ServiceLog(tmp_path / "a.log", alarm=lambda _: None)
    for number in range(4000):
        log.write(f"{number} ".encode() + b"x" * 8000 + b"\n")

    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 4
    assert max(sizes) < (5 << 20) + 10_000
    assert lines(tmp_path / "a.log")[-1].startswith("3999 ")


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    """It is cut, and what stays for later is small."""
    log = ServiceLog(tmp_path / "a.log", alarm=lambda _: None)
    for _ in range(100):
        log.write(b"x" * 100_000)

    assert len(log._rest) <= 8192


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    """What could not be written is not an error."""
    log = ServiceLog(Path("/dev/full"), alarm=lambda _: None)
    log.write(b"one\ntwo\n")

    assert log._lost == 2
    assert list(log.last_words) == ["one", "two"]


def test_a_link_in_the_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    """Who owns the folder cannot have a supervisor of root write elsewhere."""
    (tmp_path / "a.log").symlink_to(tmp_path / "elsewhere")
    ServiceLog(tmp_path / "a.log", alarm=lambda _: None).write(b"one\n")

    assert not (tmp_path / "elsewhere").exists()
