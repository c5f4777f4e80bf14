"""``fedlora adapters``: finished adapters, fetched, published, combined and made ready to serve."""

import typer

from fedlora.cli import (
    adapters_combine,
    adapters_diff,
    adapters_export,
    adapters_lint,
    adapters_merge,
    adapters_publish,
    adapters_read,
)

app = typer.Typer(
    help="Work with finished adapters: fetch, publish, combine, make ready to serve.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command("list")(adapters_read.list_)
app.command()(adapters_read.show)
app.command()(adapters_read.pull)
app.command()(adapters_read.verify)
app.command()(adapters_read.watch)
app.command()(adapters_publish.publish)
app.command()(adapters_publish.promote)
app.command()(adapters_publish.rollback)
app.command()(adapters_publish.revoke)
app.command()(adapters_publish.renew)
app.command()(adapters_publish.collect)
app.command()(adapters_diff.diff)
app.command()(adapters_combine.combine)
app.command()(adapters_merge.merge)
app.command()(adapters_lint.lint)
app.command()(adapters_lint.pad)
app.command()(adapters_export.export)
