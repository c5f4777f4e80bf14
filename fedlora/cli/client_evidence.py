"""``fedlora client evidence``: what this site let in and out, and how anybody can check it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.arguments import SiteDir, opened_site

if TYPE_CHECKING:
    from fedlora.gate.evidence.verification import Findings
    from fedlora.runtime.reports.evidence import Line
    from fedlora.signing import PublicKey

app = typer.Typer(
    help="Read, verify and export the evidence of what came in and what left.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_WIDEST = 1_000


@app.command()
def show(
    path: SiteDir = Path(),
    run: Annotated[str, typer.Option(help="Only what is of this run.")] = "",
    last: Annotated[int, typer.Option(min=1, help="How many entries, the newest.")] = 50,
) -> None:
    """Print the log, oldest first: what came in, what left, and what was decided."""
    from fedlora.runtime.reports.evidence import line_of

    found = _verified_site(path)
    lines = [line_of(logged) for logged in found.entries]
    chosen = [line for line in lines if not run or line.run == run]
    if not chosen:
        typer.echo(f"No entry of {f'run {run}' if run else found.site} is in the log.")
        return
    _print(chosen[-last:])
    left = len(chosen) - len(chosen[-last:])
    typer.echo(f"\n{left:,} older entries are not shown." if left else "")


@app.command()
def verify(
    pack: Annotated[
        Path | None,
        typer.Argument(metavar="[PACK]", help="A pack; without one, this site's log.", exists=True),
    ] = None,
    path: SiteDir = Path(),
    gate_key: Annotated[
        Path | None, typer.Option(help="The site's gate.key.pub; by default the one found there.")
    ] = None,
    aggregator_key: Annotated[
        Path | None, typer.Option(help="The aggregator's public key; likewise.")
    ] = None,
    since: Annotated[
        Path | None, typer.Option(help="An older pack, from which the log must have grown.")
    ] = None,
) -> None:
    """Walk the log, or a pack of it, and say what that proves and what not.

    Names the first entry that is broken; exit code 1 then.
    """
    from fedlora.errors import EvidenceError
    from fedlora.gate.evidence.verification import proven, unproven
    from fedlora.signing import PublicKey

    gate = PublicKey.read(gate_key) if gate_key else None
    aggregator = PublicKey.read(aggregator_key) if aggregator_key else None
    try:
        verified = _verified_pack if pack else _verified_site
        found = verified(pack or path, gate=gate, aggregator=aggregator)
        if since:
            older = _verified_pack(since, gate=found.gate, aggregator=aggregator)
            found.require_since(older.head, by=str(since))
    except EvidenceError as error:
        typer.secho(f"broken: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from None
    typer.secho("Whole.", fg=typer.colors.GREEN)
    for sentence in proven(found):
        typer.echo(f"  proven      {sentence}")
    if since:
        typer.echo(f"  proven      It has grown from the log in {since}.")
    for name, key in {"gate": gate_key, "aggregator": aggregator_key}.items():
        if key is None:
            typer.echo(
                f"  not proven  That the {name}'s key is its own: it was found in {pack or path}."
            )
    for sentence in unproven(found):
        typer.echo(f"  not proven  {sentence}")


@app.command()
def export(
    to: Annotated[Path, typer.Option(help="A new file that ends in .zip, or a new folder.")],
    path: SiteDir = Path(),
) -> None:
    """Write a pack that an auditor can check offline. The log notes it, which pins the log.

    The pack holds digests, decisions, recipes and policies; no data and no values.
    """
    from fedlora.gate.evidence import pack
    from fedlora.gate.evidence.log import EvidenceLog
    from fedlora.runtime.enrolment import JoinBundle
    from fedlora.runtime.reports.evidence import page_of
    from fedlora.signing import PublicKey, Signer

    folder = opened_site(path)
    bundle = JoinBundle.read(folder.join)
    site, aggregator = bundle.site, PublicKey.of(bundle.aggregator_key)
    signer = Signer.load(folder.gate_key)
    log = EvidenceLog(folder.evidence, site=site, signer=signer)
    fingerprint = signer.public.fingerprint
    head = pack.export(
        log,
        to,
        aggregator=aggregator,
        page=lambda entries: page_of(entries, site=site, key=fingerprint),
    )
    typer.echo(f"{to}: {head.count} entries; the last has the hash {head.hash}.")
    public = folder.gate_key.with_name(f"{folder.gate_key.name}.pub")
    typer.echo(f"Give the auditor {public} by another way; its fingerprint is {fingerprint}.")
    typer.echo(f"They check it with: fedlora client evidence verify {to} --gate-key {public.name}")


def _verified_site(
    path: Path, *, gate: "PublicKey | None" = None, aggregator: "PublicKey | None" = None
) -> "Findings":
    from fedlora.gate.evidence.verification import verify_log
    from fedlora.runtime.enrolment import JoinBundle
    from fedlora.signing import PublicKey

    folder = opened_site(path)
    bundle = JoinBundle.read(folder.join)
    joined = PublicKey.of(bundle.aggregator_key)
    gate = gate or PublicKey.read(folder.gate_key.with_name("gate.key.pub"))
    return verify_log(folder.evidence, site=bundle.site, gate=gate, aggregator=aggregator or joined)


def _verified_pack(
    path: Path, *, gate: "PublicKey | None", aggregator: "PublicKey | None"
) -> "Findings":
    from fedlora.gate.evidence.pack import AGGREGATOR_KEY, GATE_KEY, Pack
    from fedlora.gate.evidence.verification import verify_pack

    pack = Pack.read(path)
    gate, aggregator = gate or pack.key(GATE_KEY), aggregator or pack.key(AGGREGATOR_KEY)
    return verify_pack(pack, gate=gate, aggregator=aggregator)


def _print(lines: Sequence["Line"]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("entry", "when (UTC)", "way", "run", "round", "what", "bytes", "SHA-256"):
        right = column in {"entry", "round", "bytes"}
        table.add_column(column, justify="right" if right else "left")
    table.add_column("decision")
    ways = {"in": Text("← in", style="cyan"), "out": Text("→ out", style="green")}
    for line in lines:
        size = f"{line.size:,}" if line.size is not None else ""
        said = Text(line.said, style="yellow" if line.bad else "")
        place = str(line.number), line.time, ways.get(line.way, ""), Text(line.run), line.round
        table.add_row(*place, line.what, size, line.digest, said)
    needed = Console(width=_WIDEST).measure(table).maximum
    console = Console(highlight=False)
    console.width = max(console.width, min(needed, _WIDEST))  # names are whole, to be copied
    console.print(table)
