"""Where a registry is: ``host:port``."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from fedlora.errors import ReleaseError

_ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]{0,252}):(?P<port>\d{1,5})"
)
_LARGEST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A host and a port of it."""

    host: str
    """A name or an address, an IPv6 one in brackets."""
    port: int

    @classmethod
    def of(cls, text: str) -> Self:
        """Read ``host:port``.

        Raises:
            ReleaseError: it is something else.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match["port"]) > _LARGEST_PORT:
            raise ReleaseError(
                f"{text!r:.100}: HOST:PORT was expected, such as registry.example.org:9445 or "
                "[::1]:9445."
            )
        return cls(host=match["host"], port=int(match["port"]))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether what is said to it stays on this machine."""
        try:
            return ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"
