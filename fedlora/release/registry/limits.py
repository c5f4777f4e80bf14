"""All that is bounded about a registry: sizes, times, and how much one caller may ask."""

from collections.abc import Sequence
from dataclasses import dataclass

CHUNK = 2**20
"""Bytes of a file that a message carries."""
MESSAGE = 4 * 2**20
"""Bytes of a whole message: the largest index, or a chunk, with room to spare."""

Options = Sequence[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a registry and its client keep to."""

    release: int = 64 * 2**30
    """Bytes of all files of a release together."""
    call_s: float = 30
    """For a call that is one question and one answer."""
    stream_s: float = 600
    """For a stream of answers; its reader then asks again from where it is."""
    watch_s: float = 300
    """After this long, a watch ends with good grace."""
    upload_s: float = 3600
    """For the largest release on its way in."""
    idle_s: float = 60
    """Between two messages of an upload."""
    calls: int = 256
    """At once, of all callers."""
    calls_each: int = 64
    """At once, of one caller."""
    uploads: int = 4
    """At once, of all callers: each may take the room of a release."""
    rate: float = 50
    """Calls a second of one caller, on average."""
    burst: int = 200
    """Calls of one caller that may come together."""

    def upload_of(self, size: int) -> float:
        """Return the seconds that a release of so many bytes may be on its way in.

        Two minutes, and a second for each MiB, to a limit.
        """
        return min(self.upload_s, 120 + size / 2**20)

    def server_options(self) -> Options:
        """Return what gRPC keeps to on the server's side."""
        return (
            ("grpc.max_receive_message_length", MESSAGE),
            ("grpc.max_concurrent_streams", self.calls_each),
            ("grpc.max_metadata_size", 8 * 1024),
            ("grpc.max_connection_idle_ms", 5 * 60_000),
            ("grpc.max_connection_age_ms", int(self.stream_s * 1000)),
            ("grpc.max_connection_age_grace_ms", int((self.upload_s + 1) * 1000)),
            ("grpc.keepalive_time_ms", 60_000),  # finds out who has gone without a word
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.so_reuseport", 0),  # or a second registry would get half of the calls
        )


CLIENT_OPTIONS: Options = (
    ("grpc.max_receive_message_length", MESSAGE),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # in truth, what one attempt to connect may take
)
