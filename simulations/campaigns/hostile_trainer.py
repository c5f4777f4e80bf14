"""A hostile trainer, under the isolation and behind the link of every site: what gets through?

``attempts()`` starts programs in the trainer's place. One replays answers that no trainer gives,
each judged by the gate that all sites have. The other tries to reach what is not its own. What is
counted is what was reached or left, not what was said.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import PARTITION_ID_KEY
from flwr.supercore.task_identity import TaskIdentity

from fedlora.adapter import AdapterState, AdapterUpdate, InspectedUpdate
from fedlora.errors import FedloraError
from fedlora.privacy.ledger import DEFAULT_ACCOUNT
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.charges import training_charge
from fedlora.runtime.client import isolation
from fedlora.runtime.client.folder import SiteFolder
from fedlora.runtime.client.link import TrainerLink
from fedlora.runtime.client.probes import Place, Report
from fedlora.runtime.site.budget import site_ledger
from fedlora.runtime.site.mods import gate
from fedlora.runtime.site.site import resident_base
from fedlora.wire.codec import Envelope, encode_state, encode_trained, encode_update
from simulations.campaigns.hostile_answers import answer, charge, plain_answers, private_answers
from simulations.campaigns.hostile_site import SITE, baits, data_of, site, started

_RUN, _ROUND = "run", 1
_PATIENCE = 3
"""Seconds after which silence counts as no answer."""
_RECIPE = """\
name: hostile
sequence_len: 64
val_set_size: 0.2
bf16: false
wire: {{codec: fp32}}
datasets: [{{path: {data}, site: north}}]
federation: {{rounds: 30, local_steps: 2, quorum: 1, evaluate_every: 0}}
privacy: {privacy}
"""
_PLAIN = "{unit: none}"
_PRIVATE = "{unit: example, epsilon: 8, delta: 1e-3, records: 20}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one attempt."""

    name: str
    tried: str
    """In general: an answer, or a reach for something."""
    blocked: bool
    by: str
    """What stopped it."""


def attempts() -> list[Outcome]:
    """Try everything once, as root where namespaces can be made.

    Raises:
        RunError: the trainer cannot be isolated here.
        AssertionError: what an honest trainer does is refused too, so that nothing is shown.
    """
    with site() as folder:
        return [*_answers(folder), *reach(folder, "required")]


def reach(folder: SiteFolder, wanted: isolation.Isolation) -> list[Outcome]:
    """Let the program try to reach what is not its own."""
    ledger = folder.gate / SITE / "ledger.sqlite"
    ledger.parent.mkdir(exist_ok=True)
    ledger.touch()
    with ExitStack() as stack:
        facts, leaked = baits(folder, stack)
        process = stack.enter_context(
            started(
                folder,
                ["reach", str(folder.path), json.dumps(facts)],
                wanted,
                leaked=[leaked],
            )
        )
        output, _ = process.communicate(timeout=60)
    if process.returncode:
        raise AssertionError("The program ended before it had tried everything; see its errors.")
    return [
        Outcome(name=found["name"], tried="to reach", blocked=found["blocked"], by=found["by"])
        for found in map(json.loads, output.splitlines())
    ]


def _answers(folder: SiteFolder) -> Iterator[Outcome]:
    """Yield what became of each answer, after an honest one of each kind has passed."""
    plain, private = (_RECIPE.format(data=data_of(folder), privacy=p) for p in (_PLAIN, _PRIVATE))
    recipe = Recipe.from_yaml(private)
    question = _Question(recipe=Recipe.from_yaml(plain), text=plain)
    planned = training_charge(recipe, SITE, steps=recipe.federation.local_steps)
    update, envelope = question.update, question.envelope
    honest = answer(encode_trained(update, envelope))
    yield from _judged(folder, question, plain_answers(update, envelope), honest=honest)
    question = _Question(recipe=recipe, text=private)
    update, envelope = question.update, question.envelope
    honest = charge(planned) + answer(encode_trained(update, envelope))
    yield from _judged(folder, question, private_answers(update, envelope, planned), honest=honest)
    forged = [row for row in site_ledger(SITE).rows(DEFAULT_ACCOUNT) if row.charge != planned]
    by = "none was committed"
    yield Outcome(name="a forged row in the ledger", tried="to get", blocked=not forged, by=by)


class _Question:
    """A round that is asked for, and the update that an honest trainer would answer with."""

    def __init__(self, *, recipe: Recipe, text: str) -> None:
        self.recipe, self.text = recipe, text
        whole = Envelope(spec=resident_base(recipe).spec, run=_RUN, round=_ROUND)
        self.envelope = records.envelope_of_update(whole, recipe, SITE)
        values = torch.linspace(-1, 1, self.envelope.spec.size)
        examples = recipe.examples_of_round[-1]
        self.update = AdapterUpdate(spec=self.envelope.spec, values=values, num_examples=examples)
        state = AdapterState.initial(whole.spec, seed=recipe.seed)
        adapter = encode_state(state, whole, compress=recipe.wire.compress)
        task = records.Task(recipe=text, run=_RUN, round=_ROUND)
        # Flower builds a message only inside a task, as in fedlora.runtime.carriers.in_process.
        TaskIdentity.task_id, TaskIdentity.node_id, TaskIdentity.run_id = 1, 1, 1
        content = records.instruction(task.to_record(), records.pack(adapter))
        self.message = Message(content, 1, "train")

    @property
    def leaves(self) -> bytes:
        """What leaves the site when all is as it should be."""
        inspected = InspectedUpdate(
            spec=self.update.spec,
            values=self.update.values,
            num_examples=self.update.num_examples,
        )
        wire = self.recipe.wire
        return encode_update(inspected, self.envelope, codec=wire.codec, compress=wire.compress)


def _judged(
    folder: SiteFolder, question: _Question, hostile: Mapping[str, bytes], *, honest: bytes
) -> Iterator[Outcome]:
    """Yield what the gate makes of each answer; the honest one comes first and last."""
    names = ["honest", *hostile, "honest again"]
    answers = folder.path.parent / "answers"
    answers.mkdir(exist_ok=True)
    files = [answers / f"{index:03}" for index in range(len(names))]
    for file, content in zip(files, (honest, *hostile.values(), honest), strict=True):
        file.write_bytes(content)
    program = ["replay", str(folder.path), *map(str, files)]
    with started(folder, program, "required", readable=(answers,)):
        for name in names:
            left, by = _left(folder, question)
            if name.startswith("honest"):
                if left != b"":
                    raise AssertionError(f"An honest answer did not leave as it should: {by}")
                continue
            yield Outcome(name=name, tried="to answer with", blocked=not left, by=by)


def _left(folder: SiteFolder, question: _Question) -> tuple[bytes | None, str]:
    """Return what left that should not have, nothing where all was as it should be; and why not.

    None where the answer was refused.
    """
    link = TrainerLink(folder.trainer_socket, greet=_greet)

    def trainer(message: Message, _: Context) -> Message:
        return link.ask(message, recipe=question.text, site=SITE, timeout=_PATIENCE)

    context = Context(
        run_id=1, node_id=1, node_config={PARTITION_ID_KEY: 0}, state=RecordDict(), run_config={}
    )
    try:
        reply = gate()(question.message, context, trainer)
    except FedloraError as error:
        return None, f"{type(error).__name__}: {error}"
    finally:
        link.close()
    payload = records.unpack(reply.content)
    same = payload == question.leaves and not records.metrics_of(reply.content)
    return (b"", "what left is the gate's own encoding") if same else (payload, "")


def _greet(report: Report) -> None:
    found = isolation.compared(report, gate=Place.here(), user=os.geteuid())
    isolation.require(found, "required")
