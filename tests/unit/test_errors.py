"""Messages are for a terminal."""

from importlib import import_module

import pytest

from fedlora.errors import ReleaseError, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("an ordinary message: ‖ΔW‖ …\nin two lines", None),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb\tc\x07", r"a\rb\tc\x07"),
        ("left\u202eright", r"left\u202eright"),
    ],
)
def test_what_moves_the_cursor_is_shown(text: str, shown: str | None) -> None:
    """Names in messages are strangers'."""
    assert plain(text) == (shown or text)


def test_the_command_line_prints_no_control_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever error it is."""

    def fail() -> None:
        raise ReleaseError("demo\x1b[2J is no name")

    command_line = import_module("fedlora.cli.main")  # the package has a function of that name
    monkeypatch.setattr(command_line, "app", fail)
    with pytest.raises(SystemExit):
        command_line.main()
    assert capsys.readouterr().err == "error: demo\\x1b[2J is no name\n"
