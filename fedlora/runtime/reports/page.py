"""Pages: HTML files that need no network, no script and no other file."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedlora import __version__
from fedlora.runtime.reports import format as fmt


def render(template: str, **values: object) -> str:
    """Return a page of one of the templates beside this file; what is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(fmt=fmt, version=__version__, **values)
