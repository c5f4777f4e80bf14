"""The sites that a site knows by their keys, whatever the aggregator says of them.

The aggregator runs the federation's CA and passes every message on, so that its word on who a key
belongs to is worth nothing where it must not learn single updates. Operators exchange fingerprints
of their gates' keys by telephone instead, and pin them.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from fedlora.document import parse_section, write_yaml
from fedlora.errors import PeerError, PolicyError
from fedlora.sections import NAME, Name, Section
from fedlora.signing import PublicKey

_HEADER = (
    "# Sites that this one knows by the fingerprints of their gates' keys: fedlora client peers.\n"
)
_KIND = "SHA256:"
_DIGEST_BYTES = 32


def require_fingerprint(text: str) -> str:
    """Return a fingerprint as ``PublicKey.fingerprint`` gives it.

    Raises:
        ValueError: it is none.
    """
    try:
        raw = base64.b64decode(text.removeprefix(_KIND), validate=True)
    except ValueError:
        raw = b""
    if len(raw) != _DIGEST_BYTES or f"{_KIND}{base64.b64encode(raw).decode()}" != text:
        raise ValueError(
            f"{text!r:.80} is no fingerprint: {_KIND} and 44 letters were expected, as fedlora "
            "client peers list shows at the peer"
        )
    return text


Fingerprint = Annotated[str, AfterValidator(require_fingerprint)]


class _Pinned(Section):
    """The document that keeps them."""

    peers: dict[Name, Fingerprint] = Field(
        description="say which sites are known, such as peers: {north: SHA256:…}"
    )

    @model_validator(mode="after")
    def _are_different(self) -> Self:
        _require_pins(self.peers)
        return self


@dataclass(frozen=True)
class Peers:
    """Sites and the fingerprints of their gates' keys.

    Guarantees:
        No two sites have one key: who holds a key counts once.
    """

    fingerprints: Mapping[str, str]
    """By site, in the order of pinning."""

    @classmethod
    def of(cls, fingerprints: Mapping[str, str]) -> Self:
        """Return the peers of these names and fingerprints.

        Raises:
            PolicyError: one is no name or no fingerprint, or two sites have one key.
        """
        try:
            _require_pins(fingerprints)
        except ValueError as error:
            raise PolicyError(f"peers: {error}.") from None
        return cls(dict(fingerprints))

    @classmethod
    def from_yaml(cls, text: str, *, source: str) -> Self:
        """Read what ``to_yaml`` wrote.

        Args:
            text: the YAML.
            source: what error messages call it, usually its path.

        Raises:
            PolicyError: it is wrong; source, line and key are named.
        """
        return cls(parse_section(text, _Pinned, source=source, error=PolicyError).peers)

    def to_yaml(self) -> str:
        """Return the text that ``from_yaml`` reads."""
        return _HEADER + write_yaml({"peers": dict(self.fingerprints)})

    def require(self, site: str, key: PublicKey) -> None:
        """Do nothing if a key is the one that is pinned for a site.

        Raises:
            PeerError: the site is not pinned, or its key is another.
        """
        if self._of(site) != key.fingerprint:
            raise PeerError(
                f"Site {site} is pinned to the key {self._of(site)}, but {key.fingerprint} signed "
                "in its name: nothing is masked for it. Ask its operator by telephone. If its "
                f"gate has a new key: fedlora client peers remove {site}, and add it anew."
            )

    def matches(self, site: str, fingerprint: str) -> bool:
        """Return whether a site is pinned to a fingerprint.

        Raises:
            PeerError: the site is not pinned.
        """
        return self._of(site) == fingerprint

    def adding(self, site: str, fingerprint: str) -> Self:
        """Return these peers with one more.

        Raises:
            PolicyError: the site has another key already, its key is another site's, or this is
                no name or no fingerprint.
        """
        known = self.fingerprints.get(site, fingerprint)
        if known != fingerprint:
            raise PolicyError(
                f"Site {site} is pinned to {known} already. If its gate has a new key, as its "
                f"operator says by telephone: fedlora client peers remove {site}, and add it anew."
            )
        return self.of({**self.fingerprints, site: fingerprint})

    def removing(self, site: str) -> Self:
        """Return these peers without one.

        Raises:
            PeerError: it is not pinned.
        """
        self._of(site)
        return type(self)({name: f for name, f in self.fingerprints.items() if name != site})

    def _of(self, site: str) -> str:
        if site not in self.fingerprints:
            raise PeerError(
                f"Site {site!r:.80} is not pinned: ask its operator by telephone for the "
                f"fingerprint of its gate's key, then fedlora client peers add {site:.64} "
                "FINGERPRINT."
            )
        return self.fingerprints[site]


def _require_pins(fingerprints: Mapping[str, str]) -> None:
    """Refuse what is no pin, and a key that counts twice: its holder would be several sites."""
    sites: dict[str, str] = {}
    for site, fingerprint in fingerprints.items():
        if not re.fullmatch(NAME, site):
            raise ValueError(f"{site!r:.80} is no name of a site")
        first = sites.setdefault(require_fingerprint(fingerprint), site)
        if first != site:
            raise ValueError(
                f"{first} and {site} have one key, {fingerprint}, but who holds it is one site: "
                "remove one of them"
            )
