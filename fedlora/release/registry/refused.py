"""What the service says no with; the door says it to the caller."""

from collections.abc import Iterator
from contextlib import contextmanager

from grpc import StatusCode

from fedlora.errors import ReleaseError


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """A call is refused.

    Args:
        code: gRPC's.
        message: what the caller is told.
        times: that it was, since the log had it; with 0 it is not to have it yet.
    """

    def __init__(self, code: StatusCode, message: str, *, times: int = 1) -> None:
        super().__init__(message)
        self.code, self.times = code, times


@contextmanager
def refusing(code: StatusCode) -> Iterator[None]:
    """Turn what a store or a signature objects to into a refusal."""
    try:
        yield
    except ReleaseError as error:
        raise Refused(code, str(error)) from error
