"""Units and container files name what is there: nothing here can build an image or boot a host."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml

from fedlora.cli.main import app

ROOT = Path(__file__).parents[2]
UNITS = ("client/fedlora-client.service", "server/fedlora-server.service")
CONTAINERFILES = ("client/Containerfile", "server/Containerfile")
COMPOSE = ("client/compose.example.yaml", "server/compose.example.yaml")
PROGRAM = "/opt/fedlora/bin/fedlora"


def parse(arguments: list[str]) -> None:
    """Parse a command line of fedlora's as far as it would run; an unknown command is an error."""
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command)
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(context, arguments)
        assert command is not None, name
        context = click.Context(command, info_name=name, parent=context)
    command.parse_args(context, arguments)


def unit(path: str) -> dict[str, list[str]]:
    """Return the values of a unit's keys."""
    values: dict[str, list[str]] = {}
    for line in (ROOT / path).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            values.setdefault(key, []).append(value)
    return values


def instructions(path: str) -> list[tuple[str, str]]:
    """Return a container file's instructions, each with what follows."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / path).read_text()).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def service(path: str) -> dict[str, Any]:
    """Return the one service of a compose file."""
    (only,) = yaml.safe_load((ROOT / path).read_text())["services"].values()
    return only


@pytest.mark.parametrize("path", UNITS)
def test_a_unit_starts_a_command_that_is_there(path: str) -> None:
    """With options that it takes."""
    (line,) = unit(path)["ExecStart"]
    program, *arguments = shlex.split(line)

    assert program == PROGRAM
    parse(arguments)


@pytest.mark.parametrize(
    ("path", "most"),
    [("client/fedlora-client.service", 4.0), ("server/fedlora-server.service", 1.5)],
)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_a_unit_is_valid_and_hardened(path: str, most: float, tmp_path: Path) -> None:
    """All keys are known to systemd, which rates what is exposed (0 to 10) no worse than so."""
    copy = tmp_path / Path(path).name
    copy.write_text((ROOT / path).read_text().replace(PROGRAM, "/bin/true"))
    analyze = shutil.which("systemd-analyze")
    verified = subprocess.run(
        [analyze, "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    rated = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", copy],
        capture_output=True,
        text=True,
        check=False,
    )

    assert [line for line in verified.stderr.splitlines() if copy.name in line] == []
    level = re.search(r"Overall exposure level.*?: (\d+\.\d+)", rated.stdout)
    assert level is not None, rated.stderr
    assert float(level[1]) <= most


@pytest.mark.parametrize("path", CONTAINERFILES)
def test_a_container_file_pins_its_base(path: str) -> None:
    """By registry and full version; and installs the tested versions alone."""
    bases = [rest.split(" AS ")[0] for name, rest in instructions(path) if name == "FROM"]
    runs = " ".join(rest for name, rest in instructions(path) if name == "RUN")

    assert len(set(bases)) == 1
    assert re.fullmatch(r"docker\.io/library/python:\d+\.\d+\.\d+-slim-\w+", bases[0])
    assert "--constraint constraints.txt" in runs


@pytest.mark.parametrize("path", CONTAINERFILES)
def test_a_container_file_copies_what_is_there(path: str) -> None:
    """All that the package is built from is in the build, and exists."""
    copies = [rest.split() for name, rest in instructions(path) if name == "COPY"]
    sources = [s for *many, _ in copies if not many[0].startswith("--") for s in many]

    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {"fedlora", "client", "server", "pyproject.toml", "constraints.txt"} <= {*sources}


@pytest.mark.parametrize("path", CONTAINERFILES)
def test_a_container_starts_a_command_that_is_there(path: str) -> None:
    """With options that it takes."""
    said = dict(instructions(path))
    program, *arguments = json.loads(said["ENTRYPOINT"])

    assert program == PROGRAM
    parse([*arguments, *json.loads(said["CMD"])])


@pytest.mark.parametrize("path", COMPOSE)
def test_a_compose_file_builds_what_is_there_and_gives_no_more_than_it_must(path: str) -> None:
    """A read-only root, no right that is not named, and none to be got."""
    values = service(path)

    assert (ROOT / values["build"]["dockerfile"]).is_file()
    assert values["read_only"] is True
    assert values["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in values["security_opt"]


def test_unit_and_container_of_a_site_have_the_same_rights() -> None:
    """Those that isolating the trainer takes; the aggregator has none."""
    (named,) = unit("client/fedlora-client.service")["CapabilityBoundingSet"]
    (none,) = unit("server/fedlora-server.service")["CapabilityBoundingSet"]

    assert {name.removeprefix("CAP_") for name in named.split()} == {
        *service(COMPOSE[0])["cap_add"]
    }
    assert none == ""
    assert "cap_add" not in service(COMPOSE[1])
    assert dict(instructions("server/Containerfile"))["USER"] == "fedlora"


def test_the_package_carries_the_example_of_a_site() -> None:
    """``fedlora client enroll`` writes it, also where fedlora was installed from a wheel."""
    carried = ROOT / "fedlora/runtime/client/site.example.yaml"

    assert carried.resolve() == (ROOT / "client/site.example.yaml").resolve()
