"""``aggregator.yaml``: the names and ports of an aggregator."""

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from fedlora.document import parse_section, read_section, write_yaml
from fedlora.errors import RunError
from fedlora.sections import Section


def _require_address(text: str) -> str:
    return str(ip_address(text))


Port = Annotated[int, Field(ge=1, le=65535)]
Host = Annotated[
    str,
    Field(
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?$",
    ),
]
"""A name or an address, an IPv6 one in brackets, with a port if it is not ``port``."""


class Configuration(Section):
    """An aggregator's names and ports."""

    hosts: Annotated[tuple[Host, ...], Field(strict=False, min_length=1)]
    """How sites reach the front: NAME or NAME:PORT. Join bundles carry the first."""
    listen: Annotated[str, AfterValidator(_require_address)] = "0.0.0.0"  # noqa: S104 - for the sites
    """The address that the front listens on; by default each of the host's."""
    port: Port = 9443
    """The port that the front listens on: the only one that sites need."""
    superlink_port: Port = 9092
    """Flower's SuperLink, on loopback."""
    metrics_port: Port = 9464
    """Health and metrics, on loopback."""
    registry_port: Port = 9445
    """The port of the registry of releases: for those who serve adapters; sites need it not."""

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if len({self.port, self.superlink_port, self.metrics_port, self.registry_port}) < 4:
            raise ValueError(
                "port, superlink_port, metrics_port and registry_port must be four different ports"
            )
        return self

    @property
    def address(self) -> str:
        """Where sites find the front: ``host:port``."""
        name, port = _split(self.hosts[0])
        return f"{name}:{port or self.port}"

    @property
    def registry_address(self) -> str:
        """Where readers find the registry: ``host:port``."""
        return f"{_split(self.hosts[0])[0]}:{self.registry_port}"

    @property
    def superlink_address(self) -> str:
        """Where SuperLink answers this host's own processes."""
        return f"127.0.0.1:{self.superlink_port}"

    @property
    def names(self) -> Sequence[str]:
        """Names and addresses that the front's certificate is for."""
        return tuple(dict.fromkeys(_split(host)[0].strip("[]") for host in self.hosts))

    @classmethod
    def of(cls, hosts: Sequence[str]) -> Self:
        """Return the configuration of a front that listens where its first name says.

        Raises:
            RunError: a name is none.
        """
        text = write_yaml({"hosts": list(hosts)})
        first = parse_section(text, cls, source="--host", error=RunError)
        port = _split(hosts[0])[1]
        if port:
            return parse_section(f"{text}port: {port}\n", cls, source="--host", error=RunError)
        return first

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``aggregator.yaml``.

        Raises:
            RunError: there is none, or a key is missing, unknown or wrong.
        """
        return read_section(
            path,
            cls,
            error=RunError,
            otherwise="An aggregator's folder has one: make it with fedlora server init.",
        )


def _split(host: str) -> tuple[str, str]:
    """Return the name and the port of ``name:port``, of which the port may be missing."""
    name, separator, port = host.rpartition(":")
    return (name, port) if separator and "]" not in port else (host, "")
