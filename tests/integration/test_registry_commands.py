"""``fedlora registry``: a store is served, callers are let in and out, and the rest follows."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlora.release.registry_file import FILE, RegistryFile
from simulations.loopback import free_ports
from simulations.published import Scene
from tests.conftest import CommandLine
from tests.registry import Authority


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.new(tmp_path)


@pytest.fixture
def serve(scene: Scene) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Serve the store in a process of its own, and wait for its first line."""
    processes: list[subprocess.Popen[str]] = []

    def start(*options: object) -> subprocess.Popen[str]:
        command = ["-m", "fedlora", "registry", "serve", str(scene.store.path)]
        process = subprocess.Popen(
            [sys.executable, *command, *map(str, options)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["event"] == "registry starts"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_from_a_token_to_a_pull_over_tls(
    scene: Scene, serve: Callable, command_line: CommandLine, tmp_path: Path
) -> None:
    """What a publisher and a reader do: tokens, a certificate, one file for the reader."""
    release = scene.publish()
    authority = Authority(tmp_path / "ca")
    tls = authority.pair("registry")
    tokens = tmp_path / "tokens.yaml"
    add = ("registry", "token", "add", "--tokens", tokens)
    code, token, _ = command_line(*add, "team", "--scope", "read")
    assert code == 0
    assert token.strip() not in tokens.read_text()
    [port] = free_ports(1)
    process = serve(
        *("--address", f"127.0.0.1:{port}", "--tokens", tokens),
        *("--certificate", tls.certificate, "--key", tls.key),
    )
    file = tmp_path / "handed-out.yaml"
    RegistryFile(
        publisher=RegistryFile.read(scene.store.path / FILE).publisher,
        address=f"127.0.0.1:{port}",
        ca_certificate=authority.certificate.read_text(),
        token=token.strip(),
    ).write(file)

    pull = ("adapters", "pull", "demo", "--registry", file, "--into")
    code, out, err = command_line(*pull, tmp_path / "mine")
    assert (code, err) == (0, "")
    assert release.id[:12] in out
    promote = ("adapters", "promote", "demo@latest", "--to", "production", "--reason", "x")
    key = tmp_path / "publisher.key"
    code, _, err = command_line(*promote, "--key", key, "--registry", file)
    assert (code, "team may not do this: it needs publish" in err) == (2, True)

    assert command_line("registry", "token", "remove", "team", "--tokens", tokens)[0] == 0
    code, _, err = command_line(*pull, tmp_path / "again")
    assert (code, "UNAUTHENTICATED" in err) == (2, True)

    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stderr]
    assert lines[-1]["event"] == "registry stops"
    assert {line["process"] for line in lines} == {"registry"}
    assert {line.get("caller") for line in lines if line["event"] == "call"} == {"team"}
    assert token.strip() not in str(lines)


def test_callers_are_listed_and_come_once(command_line: CommandLine, tmp_path: Path) -> None:
    """Names, scopes and what they show; never a token."""
    tokens = tmp_path / "tokens.yaml"
    add = ("registry", "token", "add", "--tokens", tokens)
    token = command_line(*add, "ci", "--scope", "publish")[1].strip()
    command_line(*add, "engine.example.org", "--scope", "read", "--certificate")

    _, out, _ = command_line("registry", "token", "list", "--tokens", tokens)
    rows = [line.split()[:2] for line in out.splitlines()]
    assert rows == [["caller", "scope"], ["ci", "publish"], ["engine.example.org", "read"]]
    assert token not in out
    code, _, err = command_line(*add, "ci", "--scope", "read")
    assert (code, "there already" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--address", "0.0.0.0:9445"), "needs a certificate and a list of callers"),
        (("--address", "nonsense"), "HOST:PORT was expected"),
        (("--tokens", "none.yaml"), "fedlora registry token add"),
        (("--certificate", "x.pem"), "belong together"),
        (("--certificate", "x.pem", "--key", "y.pem"), "cannot be read"),
    ],
)
def test_what_would_not_be_safe_does_not_start(
    scene: Scene, command_line: CommandLine, options: tuple[str, ...], reason: str
) -> None:
    """One sentence that says what is missing."""
    code, _, err = command_line("registry", "serve", scene.store.path, *options)

    assert (code, reason in " ".join(err.split())) == (2, True)
