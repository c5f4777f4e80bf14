"""``fedlora server``: an aggregator's folder, and who may take part."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli import server_runs
from fedlora.cli.arguments import ServerDir
from fedlora.cli.server_runs import opened

if TYPE_CHECKING:
    from fedlora.runtime.server.directory import Entry
    from fedlora.runtime.server.folder import ServerFolder

app = typer.Typer(
    help="Run an aggregator: its folder, its sites, its runs.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

app.command()(server_runs.start)
app.command()(server_runs.run)
app.command()(server_runs.status)
app.command()(server_runs.stop)
app.command()(server_runs.resume)

Site = Annotated[str, typer.Argument(metavar="SITE", help="The site's name.")]
_SOON_DAYS = 30


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    host: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:PORT]",
            help="How sites reach this host: a name or an address. Again for further ones.",
        ),
    ],
    sites: Annotated[str, typer.Option(help="Names of the sites to invite, by commas.")] = "",
) -> None:
    """Make an aggregator's folder: CA, certificates, keys, and a join bundle for each site."""
    from fedlora.runtime.server.configuration import Configuration
    from fedlora.runtime.server.installation import install

    names = [name.strip() for name in sites.split(",") if name.strip()]
    configuration = Configuration.of(host)
    folder = install(path, configuration, sites=names)
    typer.echo(f"Aggregator in {path}; sites will find it at {configuration.address}.")
    for name in names:
        _print_invitation(folder.bundle(name), site=name)
    _print_authority(folder)
    typer.echo(
        f"Start it with fedlora server start --dir {path}. Once all sites have their bundles, "
        f"move {folder.ca_key} off this host: only fedlora server renew needs it."
    )


@app.command()
def invite(site: Site, folder: ServerDir = Path()) -> None:
    """Make a join bundle for a further site, or a new one for a site that lost or leaked its own.

    An earlier bundle of the site is void, and so are keys that it has sent and nobody admitted.
    """
    from fedlora.runtime.server.bundle import invite as invite_site

    _print_invitation(invite_site(opened(folder), site), site=site)


@app.command()
def admit(
    site: Site,
    folder: ServerDir = Path(),
    fingerprint: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256:…",
            help="What the site's operator read to you, by another channel than the bundle's.",
        ),
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A request that came as a file (fedlora client enroll --offline).",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Let a site take part whose keys' fingerprint you have compared. Needs a running aggregator.

    Again, it makes a SuperLink that lost its database know the site anew.
    """
    from fedlora.runtime.enrolment import EnrolmentRequest
    from fedlora.runtime.server import admission
    from fedlora.runtime.server.directory import Directory

    aggregator = opened(folder)
    if request:
        asked = EnrolmentRequest.from_json(request.read_bytes())
        _require_same(site, asked.site, path=request)
        Directory(aggregator).enrol(asked)
    compared = fingerprint or _compared(Directory(aggregator).entry(site))
    node_id = admission.admit(aggregator, site, fingerprint=compared)
    typer.echo(f"Site {site} is admitted, as node {node_id}.")


@app.command()
def revoke(
    site: Site,
    reason: Annotated[str, typer.Option(help="Why; kept on record.")],
    folder: ServerDir = Path(),
) -> None:
    """Refuse a site from now on. Needs a running aggregator."""
    from fedlora.runtime.server import admission

    admission.revoke(opened(folder), site, reason=reason)
    typer.echo(
        f"Site {site} is revoked. To let it in again, invite it anew; it must make new keys."
    )


@app.command("sites")
def list_sites(folder: ServerDir = Path()) -> None:
    """Print the sites: how far each has come, and its keys' fingerprint."""
    from rich.console import Console
    from rich.table import Table

    from fedlora.runtime.server.directory import Directory

    aggregator = opened(folder)
    table = Table("site", "state", "fingerprint", box=None, header_style="bold", pad_edge=False)
    table.add_column("node", justify="right")
    table.add_column("since (UTC)")
    for entry in Directory(aggregator).entries():
        node = "" if entry.node_id is None else str(entry.node_id)
        state = f"{entry.state} ({entry.reason})" if entry.reason else entry.state
        since = entry.since[:16].replace("T", " ")
        table.add_row(entry.site, state, entry.fingerprint or "", node, since)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, Console(width=1000).measure(table).maximum)
    console.print(table)
    _print_authority(aggregator)
    _warn_of_expiry(aggregator)


@app.command()
def renew(
    folder: ServerDir = Path(),
    days: Annotated[int, typer.Option(min=1, help="How long the certificates last.")] = 365,
    ca_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The CA's key, if it is kept off this host."),
    ] = None,
) -> None:
    """Make new server certificates. Sites need nothing: the CA that they trust stays the same."""
    from fedlora.runtime.server.installation import renew as renew_certificates

    renew_certificates(opened(folder), days=days, ca_key=ca_key)
    typer.echo(
        f"New certificates, good for {days} days. They are used from the next start: end fedlora "
        "server start by Ctrl-C or SIGTERM, then start it again."
    )


def _print_invitation(bundle: Path, *, site: str) -> None:
    typer.echo(f"Bundle for {site}: {bundle}. Hand it over by a channel that you both trust.")


def _print_authority(folder: "ServerFolder") -> None:
    """Print what sites compare with their bundle's, by another channel."""
    from fedlora.runtime.server.authority import fingerprint_of

    typer.echo(f"Aggregator's CA:  SHA256 {fingerprint_of(folder.ca_certificate)}")


def _require_same(site: str, asked: str, *, path: Path) -> None:
    from fedlora.errors import EnrolmentError

    if asked != site:
        raise EnrolmentError(f"{path}: this request is of site {asked}, not of {site}.")


def _compared(entry: "Entry") -> str:
    """Show a fingerprint, and return it once the operator says that it is the site's."""
    if entry.fingerprint is None:
        return ""  # admission says what is missing
    typer.echo(f"Site {entry.site} sent keys with the fingerprint\n\n  {entry.fingerprint}\n")
    typer.confirm("Did its operator read the same to you, by another channel?", abort=True)
    return entry.fingerprint


def _warn_of_expiry(folder: "ServerFolder") -> None:
    from fedlora.runtime.server.authority import days_left

    for certificate in (folder.front_certificate, folder.superlink_certificate):
        left = days_left(certificate)
        if left < _SOON_DAYS:
            typer.secho(
                f"{certificate.name} ends in {left} days: fedlora server renew.",
                err=True,
                fg=typer.colors.YELLOW,
            )
