"""Where a registry is."""

import pytest

from fedlora.errors import ReleaseError
from fedlora.release.registry.address import Address


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("localhost:9445", True),
        ("127.0.0.1:1", True),
        ("[::1]:9445", True),
        ("127.0.0.1.example.org:9445", False),
        ("registry.example.org:9445", False),
        ("0.0.0.0:9445", False),
        ("[::]:9445", False),
        ("10.0.0.1:9445", False),
    ],
)
def test_what_stays_on_this_machine_is_known(text: str, loopback: bool) -> None:
    """Only loopback's own names and addresses count, and each address is printed as it was."""
    address = Address.of(text)

    assert str(address) == text
    assert address.is_loopback is loopback


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":1", "host:65536", "https://host:1", "a b:1", "unix:/x", "::1:2"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """The message says what was expected."""
    with pytest.raises(ReleaseError, match="HOST:PORT was expected"):
        Address.of(text)
