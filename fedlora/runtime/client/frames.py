"""What gate and trainer say to each other, and how it travels: over one Unix stream socket.

A frame is two lengths, a header in JSON, and raw bytes: an encoded adapter, or nothing. Neither end
believes the other: each header must be the very text that its reader would write of it, so there
are no unknown fields, other types, other spellings, or numbers that are none.
"""

import socket
import struct
import time
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedlora.errors import WireError
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger import ChargeRow, Purpose
from fedlora.runtime.client.probes import Report

_PREFIX = struct.Struct("<IQ")
LONGEST_QUESTION = 2**20
"""Bytes of a header from the gate, in which a whole recipe stands."""
LONGEST_ANSWER, _MOST_METRICS = 2**16, 256
"""Bytes of a header from the trainer."""


class _Frame(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, ser_json_inf_nan="null"
    )


class Ask(_Frame):
    """The gate asks for work; the bytes are the encoded global adapter."""

    kind: Literal["ask"] = "ask"
    purpose: Purpose
    site: str
    run: str
    round: int
    recipe: str
    """With the site's own paths of data and base model."""
    seconds: float = Field(gt=0)
    """For all of it: a trainer that is not done then ends itself, and is started anew."""


class Charged(_Frame):
    """The gate says what it has committed."""

    kind: Literal["charged"] = "charged"
    row: ChargeRow


class Hello(_Frame):
    """The trainer says how isolated it found itself when it started."""

    kind: Literal["hello"] = "hello"
    report: Report


class ChargeRequest(_Frame):
    """Asks for leave to draw noise."""

    kind: Literal["charge"] = "charge"
    purpose: Purpose
    number: int = Field(ge=0, lt=2**32)
    charge: Charge
    data: str = Field(pattern="^[0-9a-f]{64}$")
    """Keyed fingerprint of the data."""


Number = Annotated[int, Field(gt=-(2**53), lt=2**53)] | float


class Answer(_Frame):
    """The trainer has done the work; the bytes are the encoded increment, if it trained."""

    kind: Literal["answer"] = "answer"
    metrics: dict[Annotated[str, Field(max_length=80)], Number] = Field(max_length=_MOST_METRICS)


class Failure(_Frame):
    """The trainer cannot do the work."""

    kind: Literal["failure"] = "failure"
    error: str = Field(max_length=40)
    """Name of a class in ``fedlora.errors``."""
    text: str = Field(max_length=4000)


FromGate = TypeAdapter[Ask | Charged](Annotated[Ask | Charged, Field(discriminator="kind")])
FromTrainer = TypeAdapter[Hello | ChargeRequest | Answer | Failure](
    Annotated[Hello | ChargeRequest | Answer | Failure, Field(discriminator="kind")]
)
_Said = TypeVar("_Said", Ask | Charged, Hello | ChargeRequest | Answer | Failure)


class Channel:
    """One end of a connection between gate and trainer.

    Raises:
        ConnectionError: from each method, when the other end has gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, said: _Frame, body: bytes = b"", *, deadline: float | None = None) -> None:
        """Send a frame.

        Args:
            said: its header.
            body: its bytes.
            deadline: on the clock ``time.monotonic``.

        Raises:
            TimeoutError: the other end does not take it.
        """
        header = said.model_dump_json().encode()
        self._connection.settimeout(_left(deadline))
        self._connection.sendall(_PREFIX.pack(len(header), len(body)) + header)
        self._connection.settimeout(_left(deadline))
        self._connection.sendall(body)

    def receive(
        self,
        expected: TypeAdapter[_Said],
        *,
        longest: int,
        longest_body: int,
        deadline: float | None = None,
    ) -> tuple[_Said, bytes]:
        """Return the next frame's header and bytes.

        Args:
            expected: the kinds that may come.
            longest: bytes of the header that are read.
            longest_body: bytes after it that are read.
            deadline: on the clock ``time.monotonic``.

        Raises:
            WireError: something else came; nothing of it was used.
            TimeoutError: it did not come whole in time.
        """
        header_size, body_size = _PREFIX.unpack(self._read(_PREFIX.size, deadline))
        if header_size > longest or body_size > longest_body:
            raise WireError(
                f"A frame of {header_size:,} and {body_size:,} bytes came; at most {longest:,} and "
                f"{longest_body:,} are read."
            )
        header = self._read(header_size, deadline)
        try:
            said = expected.validate_json(header)
        except (ValidationError, ValueError, RecursionError):
            raise WireError("A frame came whose header is none of those expected.") from None
        if expected.dump_json(said) != header:
            raise WireError("A frame came whose header is not written as it should be.")
        return said, bytes(self._read(body_size, deadline))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _read(self, size: int, deadline: float | None) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            self._connection.settimeout(_left(deadline))
            count = self._connection.recv_into(view)
            if not count:
                raise ConnectionResetError("The other end has gone.")
            view = view[count:]
        return data


def _left(deadline: float | None) -> float | None:
    """Return the seconds until a deadline; a moment, where it is over."""
    return None if deadline is None else max(1e-3, deadline - time.monotonic())
