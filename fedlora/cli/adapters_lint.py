"""``fedlora adapters lint, pad``: what serving engines make of an adapter, and what helps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.errors import ReleaseError, StorageError

if TYPE_CHECKING:
    from fedlora.release.engines.lint import Finding, Report
    from fedlora.release.engines.rule import Engine

_STYLES = {"refuses": "bold red", "wrong results": "bold magenta", "warns": "yellow"}
_VERDICTS = {
    "refuses": "refuses it",
    "wrong results": "gives wrong results",
    "warns": "loads it, but",
    None: "loads it",
}


def lint(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An adapter in PEFT's format.")],
    engines: Annotated[
        str, typer.Option("--for", metavar="ENGINE,...", help="Of vllm, lorax, sglang, ollama.")
    ] = "vllm,lorax,sglang,ollama",
    max_lora_rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The engine's --max-lora-rank. Default: 16 for vLLM, no bound for SGLang.",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The base that the engine serves, as it is told."),
    ] = None,
) -> None:
    """Say which serving engines load an adapter as it is, which not, why, and what to do.

    It reads any PEFT folder, also one that fedlora did not make. The exit code is 0 if all of the
    engines load it and compute what PEFT would, else 1.
    """
    from fedlora.release.engines.lint import lint as held_against
    from fedlora.release.engines.traits import Options

    options = Options(max_lora_rank=max_lora_rank, base_model=base_model)
    report = held_against(folder, engines=_engines(engines), options=options)
    _print(report)
    if not report.all_load_it:
        raise typer.Exit(1)


def pad(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An adapter in PEFT's format.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where it goes; a new folder.")],
    rank: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Default: the largest in the adapter.")
    ] = None,
) -> None:
    """Write the same adapter in the form that engines agree on: one rank, one whole alpha.

    It changes each weight as before: further components are zero. Ranks, alphas and scalings of
    single modules move into the factors.
    """
    if out.exists():
        raise StorageError(f"{out}: it is already there. Choose another folder, or remove it.")

    from fedlora.peft_folder import read_peft_folder, write_peft_folder
    from fedlora.release.engines.padding import padded

    state = read_peft_folder(folder)
    result = padded(state, rank=rank or state.spec.rank)
    write_peft_folder(result, out)
    typer.echo(f"{out}: rank {result.spec.rank}, alpha {result.spec.alpha:g}.")
    typer.echo("It changes each weight as before. It is no release: nobody has signed this form.")


def _engines(text: str) -> "list[Engine]":
    from fedlora.release.engines.rule import ENGINES

    known: dict[str, Engine] = {engine: engine for engine in ENGINES}
    names = [name.strip().lower() for name in text.split(",")]
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise ReleaseError(
            f"--for: {', '.join(unknown)!r:.80} is not known; of {', '.join(ENGINES)}."
        )
    return [known[name] for name in names]


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from fedlora.release.engines.lint import UNSEEN

    console = Console(highlight=False)
    console.print(_title(report), style="bold", markup=False)
    console.print()
    verdicts = Table(
        "engine", "verdict", "not looked at", box=None, header_style="bold", pad_edge=False
    )
    for engine in report.engines:
        worst = report.verdict(engine)
        verdict = Text(_VERDICTS[worst], style=_STYLES.get(worst or "", "green"))
        verdicts.add_row(engine, verdict, Text(UNSEEN[engine], style="dim"))
    console.print(verdicts)
    for finding in report.findings:
        console.print()
        console.print(finding.found, style="bold", markup=False)
        console.print(_details(finding))
        advice = finding.advice.replace("FOLDER", str(report.adapter.path))
        console.print(Padding(Text(f"→ {advice}"), (0, 0, 0, 2)))


def _title(report: "Report") -> str:
    from fedlora.release.engines.adapter import shown

    adapter = report.adapter
    modules, kinds = len(adapter.factors), len(adapter.kinds)
    facts = f"rank {adapter.rank}, alpha {adapter.alpha:g}, {modules} modules of {kinds} kinds"
    return f"{adapter.path}: {facts}, for {shown(adapter.base_model) or 'no base'}"


def _details(finding: "Finding") -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(no_wrap=True)
    for engine, verdict in finding.engines.items():
        why = Text(verdict.why).append(f" {verdict.source}", style="dim")
        table.add_row(f"  {engine}", Text(verdict.severity, style=_STYLES[verdict.severity]), why)
    return table
