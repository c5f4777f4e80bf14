"""The app bundle that Flower asks of each run: it holds no code.

A SuperLink hands it to every SuperNode. Ours run what is installed on their hosts and never unpack
what comes over the network, so there is nothing in it to be unpacked.
"""

from flwr.cli.build import build_fab_from_files

from fedlora import __version__

_PROJECT = f"""\
[project]
name = "fedlora"
version = "{__version__}"
description = "Run by what is installed on each host."
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = []

[tool.flwr.app]
publisher = "fedlora"
fab-include = ["pyproject.toml"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
"""


def app_bundle() -> bytes:
    """Return the bundle."""
    return build_fab_from_files({"pyproject.toml": _PROJECT.encode()})[0]
