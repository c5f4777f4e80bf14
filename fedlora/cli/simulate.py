"""``fedlora simulate``: a whole federated run on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedlora.cli.adapters_read import Registry
from fedlora.cli.arguments import recipe_of
from fedlora.errors import RecipeError, ReleaseError

if TYPE_CHECKING:
    from fedlora.recipe import Recipe
    from fedlora.release.publisher import Publisher
    from fedlora.runtime.run_folder import RunFolder

DEMO = Path(__file__).parent.parent / "demo.yaml"

Engine = Literal["in-process", "ray"]


def simulate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]..."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Where run folders are made: ./runs.", show_default=False)
    ] = Path("runs"),
    engine: Annotated[
        Engine | None, typer.Option(help="What carries the messages: simulation.engine.")
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Also train each site alone and all data pooled: simulation.compare.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Publish with this private key, to --registry: what the recipe's publish says.",
        ),
    ] = None,
    registry: Registry = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print what it would cost, stop.")
    ] = False,
) -> None:
    """Simulate a federated run: sites train, an aggregator combines, a release is published.

    RECIPE is a YAML file, and KEY=VALUE replaces one of its keys, such as federation.rounds=20.
    Without a recipe it runs the demo: four sites with different parts of the Python standard
    library's documentation teach a small language model what functions do.
    """
    if resume:
        if arguments or engine or compare is not None or dry_run:
            raise RecipeError("--resume goes on with the run's own recipe: give nothing beside it.")
        _go_on(resume, key=key, registry=registry)
        return
    recipe = _read(arguments or [], engine=engine, compare=compare)

    from fedlora.cli import tables
    from fedlora.runtime import simulation
    from fedlora.runtime.plan import plan

    planned = plan(recipe)
    if dry_run:
        typer.echo(recipe.to_yaml())
        tables.print_plan(planned)
        return
    tables.print_plan(planned)
    publisher = _publisher(key, registry)
    _play(simulation.start(planned, runs=runs), publisher)


def _read(arguments: list[str], *, engine: Engine | None, compare: bool | None) -> "Recipe":
    overrides = []
    if engine:
        overrides.append(f"simulation.engine={engine}")
    if compare is not None:
        overrides.append(f"simulation.compare={str(compare).lower()}")
    return recipe_of(arguments, default=DEMO, overrides=overrides)


def _go_on(path: Path, *, key: Path | None, registry: Path | None) -> None:
    from fedlora.runtime import simulation

    publisher = _publisher(key, registry)
    _play(simulation.resume(path), publisher)


def _publisher(key: Path | None, registry: Path | None) -> "Publisher | None":
    """Return what publishes, before a run begins; None for nowhere."""
    from fedlora.release.home import publisher
    from fedlora.signing import Signer

    if key is None:
        if registry:
            raise ReleaseError("--registry without --key publishes nothing: give both or neither.")
        return None
    return publisher(registry, Signer.load(key))


def _play(run: "RunFolder", publisher: "Publisher | None") -> None:
    from fedlora.cli import tables
    from fedlora.cli.view import RunView
    from fedlora.runtime.publication import Publication
    from fedlora.runtime.simulation import simulate as play

    try:
        with RunView() as view:
            observe = Publication(run, publisher, view).begin() if publisher else view
            play(run, observe=observe)
    except BaseException as stop:
        typer.echo(f"\nStopped. Go on with: fedlora simulate --resume {run.path}", err=True)
        if isinstance(stop, KeyboardInterrupt):
            raise typer.Exit(130) from None
        raise
    tables.print_comparison(run)
    tables.print_outcome(run)
