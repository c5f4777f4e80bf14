"""How a site joins: the bundle that it is given, the request that it sends back, and their words.

The aggregator's operator hands a bundle to the site. The site makes its keys on the spot and sends
their public halves with the bundle's token. Both operators compare the fingerprint of the keys by
another channel, then the aggregator's operator admits the site.
"""

import base64
import hashlib
import re
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

import httpx
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AfterValidator, Field, ValidationError, model_validator

from fedlora.document import read_section, write_yaml
from fedlora.errors import EnrolmentError
from fedlora.sections import Name, Section
from fedlora.signing import PublicKey, RawKey

ENROL_PATH = "/fedlora/v1/enroll"
MAX_REQUEST_BYTES = 4096
"""A request in JSON is far below."""

State = Literal["invited", "waiting", "admitted", "revoked"]
"""Where a site stands with the aggregator; only the aggregator sees it as invited."""

_PATIENCE_S = 30


def _canonical_node_key(line: str) -> str:
    """Return an OpenSSH key as OpenSSH writes it, without a comment."""
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    with suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_ssh_public_key(line.encode())
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
            return key.public_bytes(*openssh).decode()
    raise ValueError("expected an EC P-384 public key in OpenSSH's format")


def _token(text: str) -> str:
    """Require a token's form; the error does not repeat a secret."""
    if not re.fullmatch("[A-Za-z0-9_-]{43}", text):
        raise ValueError("expected the token as the bundle came with it, of 43 letters")
    return text


NodeKey = Annotated[str, Field(max_length=1024), AfterValidator(_canonical_node_key)]
"""EC P-384 public key of a site's SuperNode, a line of OpenSSH's format without a comment."""
Token = Annotated[str, AfterValidator(_token)]
"""256 random bits, URL-safe base64 without padding."""
Address = Annotated[
    str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?):[0-9]{1,5}$")
]
"""``host:port``; an IPv6 address in brackets."""


class JoinBundle(Section):
    """What a site needs to join and to know its aggregator again. It holds no private key."""

    site: Name = Field(description="the name that the aggregator knows the site by")
    aggregator: Address = Field(description="where its front answers, host:port")
    ca_certificate: str = Field(description="the PEM certificate that its certificate hangs on")
    ca_fingerprint: str = Field(description="SHA-256 of that certificate's DER, in hex")
    aggregator_key: RawKey = Field(description="the Ed25519 public key that signs its receipts")
    token: Token | None = None
    """Good for one enrolment; a site that has enrolled keeps the bundle without it."""

    @model_validator(mode="after")
    def _certificate_is_the_one_named(self) -> Self:
        try:
            certificate = x509.load_pem_x509_certificate(self.ca_certificate.encode())
        except ValueError:
            raise ValueError("ca_certificate is not a certificate in PEM") from None
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        if self.ca_certificate.strip() != pem.strip():
            raise ValueError(
                "ca_certificate is to be one certificate in PEM and nothing else; what stands "
                "beside it would be trusted without being in ca_fingerprint"
            )
        if certificate_fingerprint(certificate) != self.ca_fingerprint:
            raise ValueError("ca_fingerprint is not the SHA-256 of ca_certificate")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a bundle from a YAML file.

        Raises:
            EnrolmentError: there is none, or a key is missing, unknown or wrong.
        """
        return read_section(
            path,
            cls,
            error=EnrolmentError,
            otherwise="The aggregator's operator makes a join bundle with fedlora server invite.",
        )

    def to_yaml(self) -> str:
        """Return the text that ``read`` reads."""
        return write_yaml(self.model_dump(exclude_none=True))

    def without_token(self) -> Self:
        """Return what a site keeps once it has enrolled."""
        return self.model_copy(update={"token": None})


class EnrolmentRequest(Section):
    """What a site sends to be admitted: its name and the public halves of its keys."""

    site: Name
    token: Token | None = None
    """The bundle's; without it the request only asks where its keys stand."""
    node_key: NodeKey
    gate_key: RawKey

    @property
    def fingerprint(self) -> str:
        """What both operators compare out of band."""
        return fingerprint(self.node_key, self.gate_key)

    def to_json(self) -> bytes:
        """Return the bytes that ``from_json`` reads."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a request that came from outside.

        Raises:
            EnrolmentError: it is too large, or not what ``to_json`` writes.
        """
        if len(data) > MAX_REQUEST_BYTES:
            raise EnrolmentError(f"An enrolment request has at most {MAX_REQUEST_BYTES} bytes.")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            wrong = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, wrong["loc"])) or "the request"
            raise EnrolmentError(f"Enrolment request: {where}: {wrong['msg']}.") from None


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate's DER, in hex."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def fingerprint(node_key: str, gate_key: str) -> str:
    """Return ``SHA256:`` and the base64 of the digest over both keys, each in its one spelling.

    Raises:
        EnrolmentError: one of them is no such key.
    """
    try:
        lines = f"{_canonical_node_key(node_key)}\n{PublicKey.of(gate_key).text}\n"
    except (ValueError, EnrolmentError) as error:
        raise EnrolmentError(f"A fingerprint is over a node's and a gate's key: {error}.") from None
    return f"SHA256:{base64.b64encode(hashlib.sha256(lines.encode()).digest()).decode()}"


def post(request: EnrolmentRequest, bundle: JoinBundle) -> State:
    """Send a request to the bundle's aggregator, and return where the site stands.

    TLS trusts the bundle's certificate alone. Sent again with the same keys, it changes nothing.

    Raises:
        EnrolmentError: the aggregator cannot be reached, is not the bundle's, or refuses.
    """
    trusted = ssl.create_default_context(cadata=bundle.ca_certificate)
    trusted.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        response = httpx.post(
            f"https://{bundle.aggregator}{ENROL_PATH}",
            content=request.to_json(),
            headers={"content-type": "application/json"},
            verify=trusted,
            timeout=_PATIENCE_S,
        )
    except httpx.TransportError as error:
        raise EnrolmentError(_unreachable(error, bundle)) from error
    answer = _answer(response)
    if response.status_code != httpx.codes.OK or answer.state is None:
        reason = answer.error or f"HTTP status {response.status_code}"
        raise EnrolmentError(f"{bundle.aggregator} does not enrol {request.site}: {reason}")
    return answer.state


def state_of(request: EnrolmentRequest, bundle: JoinBundle) -> State:
    """Ask the bundle's aggregator where a site with these keys stands. It needs no token.

    Raises:
        EnrolmentError: as ``post``; also when the aggregator does not know these keys.
    """
    return post(request.model_copy(update={"token": None}), bundle)


class Answer(Section):
    """What the aggregator says to a request: where the site stands, or why not."""

    state: State | None = None
    error: str | None = None


def _answer(response: httpx.Response) -> Answer:
    try:
        return Answer.model_validate_json(response.content)
    except ValidationError:
        return Answer()


def _unreachable(error: httpx.TransportError, bundle: JoinBundle) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"{bundle.aggregator} shows a certificate that does not hang on the bundle's "
            f"(SHA-256 {bundle.ca_fingerprint}), or is not for this name ({error}). Nothing was "
            "sent. Ask the aggregator's operator before going on."
        )
    return (
        f"{bundle.aggregator} cannot be reached ({str(error) or type(error).__name__}). "
        "Check the name, the port and the firewall on the way, then run again."
    )
