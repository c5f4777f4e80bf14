"""The gate's end of the connection to the trainer."""

import socket

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from fedlora.runtime import records
from fedlora.runtime.client.link import TrainerLink, TrainerLostError

RECIPE = "{datasets: [{path: x, site: north}], privacy: {unit: none}}"


def question() -> Message:
    TaskIdentity.task_id, TaskIdentity.node_id, TaskIdentity.run_id = 1, 1, 1
    task = records.Task(recipe=RECIPE, run="demo-1", round=1)
    return Message(records.instruction(task.to_record(), records.pack(b"adapter")), 1, "train")


def test_a_trainer_that_does_not_say_hello_is_not_there_yet(tmp_path):
    """Its supervisor holds the socket while it starts: who is taken for lost is asked again."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "trainer.sock"))
        listening.listen()
        link = TrainerLink(tmp_path / "trainer.sock", greet=lambda _: None, patience=0.1)
        with pytest.raises(TrainerLostError, match="does not say hello"):
            link.ask(question(), recipe=RECIPE, site="north", timeout=60)


def test_a_socket_without_a_listener_is_a_trainer_that_is_not_there(tmp_path):
    """No supervisor has made one."""
    link = TrainerLink(tmp_path / "trainer.sock", greet=lambda _: None)
    with pytest.raises(TrainerLostError, match="No such file"):
        link.ask(question(), recipe=RECIPE, site="north", timeout=60)
