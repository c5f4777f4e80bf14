"""What is seen to around a stock SuperNode."""

import inspect
import subprocess
import sys

import pytest
from flwr.supernode import start_client_internal

from fedlora.runtime.client import run_supernode

SAYS = """
import logging
from fedlora.runtime.client.run_supernode import _Drops
flower = logging.getLogger("flwr")
flower.addHandler(_Drops())
flower.error({message!r}, "1", "2")
print("goes on")
"""


def what_follows(message: str) -> tuple[int, str]:
    """Return how a process ends that logs a message as Flower does, and what it says."""
    command = [sys.executable, "-c", SAYS.format(message=message)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("message", run_supernode._DROPPED)
def test_a_supernode_that_drops_a_message_ends(message):
    """Its successor is asked again; else nobody would know."""
    assert what_follows(message) == (1, "")


def test_a_supernode_whose_answer_is_not_wanted_any_more_goes_on():
    """It has forgotten the answer wholly."""
    unwanted = "Run ID %s is not in `RUNNING` status. Ignoring reply message %s."
    assert what_follows(unwanted) == (0, "goes on")


def test_flower_logs_what_is_waited_for():
    """In the very words; another minor release may have others."""
    source = inspect.getsource(start_client_internal)
    missing = [words for words in run_supernode._DROPPED if words not in source]
    assert missing == []
    assert f'"{run_supernode._GREETING}"' in source
