"""What a site can find out about its aggregator before it starts: reachable, real, in time."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from fedlora.errors import EnrolmentError
from fedlora.runtime.enrolment import JoinBundle

AHEAD_S, BEHIND_S = 5.0, 305.0
"""How far a SuperNode's clock may differ from SuperLink's; it is refused beyond (Flower 1.41)."""
_PATIENCE_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Reached:
    """An aggregator that answered as who the bundle says it is."""

    healthy: bool
    """Whether its SuperLink works, too."""
    certificate_ends: datetime
    ahead: float
    """Seconds that this host's clock is ahead of the aggregator's; a second is not seen."""


def reach(join: JoinBundle) -> Reached:
    """Ask the aggregator whether it is well, trusting the bundle's certificate alone.

    Raises:
        EnrolmentError: it cannot be reached, or its certificate is not one of the bundle's CA.
    """
    trusted = ssl.create_default_context(cadata=join.ca_certificate)
    address = f"https://{join.aggregator}/healthz"
    try:
        with httpx.Client(verify=trusted, timeout=_PATIENCE_S) as client:
            before = datetime.now(UTC)
            with client.stream("GET", address) as response:
                response.read()
                stream = response.extensions["network_stream"]
                return Reached(
                    healthy=response.status_code == httpx.codes.OK,
                    certificate_ends=_end_of(stream.get_extra_info("ssl_object").getpeercert()),
                    ahead=_ahead(response, before=before, after=datetime.now(UTC)),
                )
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise EnrolmentError(
            f"{join.aggregator} does not answer as the aggregator of the bundle "
            f"({str(error) or type(error).__name__}). Check its name, port and the firewall; if it "
            "is the certificate, ask the aggregator's operator before going on."
        ) from None


def _end_of(certificate: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)


def _ahead(response: httpx.Response, *, before: datetime, after: datetime) -> float:
    """Return how far this clock is ahead at least, or behind as a negative number."""
    theirs = parsedate_to_datetime(response.headers["date"])  # a whole second, cut
    behind, ahead = (after - theirs).total_seconds(), (before - theirs).total_seconds() - 1
    return ahead if ahead > 0 else min(behind, 0.0)
