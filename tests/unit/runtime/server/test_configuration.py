"""aggregator.yaml says where sites find the front, and where loopback services listen."""

from pathlib import Path

import pytest

from fedlora.document import parse_section, write_yaml
from fedlora.errors import FedloraError, RunError
from fedlora.runtime.server.configuration import Configuration

EXAMPLE = Path(__file__).parents[4] / "server" / "aggregator.example.yaml"


@pytest.mark.parametrize(
    ("hosts", "address", "port", "names"),
    [
        (["fl.example.org"], "fl.example.org:9443", 9443, ("fl.example.org",)),
        (["fl.example.org:9500", "10.0.0.1"], "fl.example.org:9500", 9500,
         ("fl.example.org", "10.0.0.1")),
        (["[2001:db8::1]"], "[2001:db8::1]:9443", 9443, ("2001:db8::1",)),
        (["[2001:db8::1]:443"], "[2001:db8::1]:443", 443, ("2001:db8::1",)),
    ],
)  # fmt: skip
def test_the_first_host_is_where_sites_find_the_front(hosts, address, port, names):
    """Its port is the front's; names go into the certificate without brackets and ports."""
    configuration = Configuration.of(hosts)
    assert (configuration.address, configuration.port, configuration.names) == (
        address,
        port,
        names,
    )


def test_a_configuration_survives_its_yaml():
    """What init writes is what start reads."""
    configuration = Configuration.of(["fl.example.org:9500"])
    text = write_yaml(configuration.model_dump(mode="json"))
    assert parse_section(text, Configuration, source="x", error=RunError) == configuration


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts: [a]\nprot: 1\n", "aggregator.yaml, line 2: prot"),
        ("hosts: [a]\nport: 0\n", "aggregator.yaml, line 2: port"),
        ("hosts: [a]\nport: 9092\n", "four different ports"),
        ("hosts: ['https://a']\n", "hosts"),
        ("hosts: []\n", "hosts"),
        ("listen: everywhere\nhosts: [a]\n", "aggregator.yaml, line 1: listen"),
        ("port: 1\n", "hosts is missing"),
    ],
)
def test_a_wrong_configuration_names_line_and_key(text, said):
    """An operator learns where to look."""
    with pytest.raises(FedloraError) as caught:
        parse_section(text, Configuration, source="aggregator.yaml", error=RunError)
    assert said in str(caught.value)


def test_a_folder_without_a_configuration_is_no_aggregator(tmp_path):
    """The error says how to make one."""
    with pytest.raises(RunError, match="fedlora server init"):
        Configuration.read(tmp_path / "aggregator.yaml")


def test_the_example_shows_every_key_and_the_defaults():
    """server/aggregator.example.yaml never lags behind."""
    example = Configuration.read(EXAMPLE)
    assert example.model_fields_set == set(Configuration.model_fields)
    assert example == Configuration(hosts=example.hosts)
