"""A round of a large cohort under secure aggregation in the in-process grid, with nothing to train.

Only the app's handler of training is another: it answers at once, with values that mean nothing.
All else is what a simulated site runs: its mods, its outbox on disk, the stages of the sum.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate
from fedlora.errors import RunError
from fedlora.lock import BaseDigests
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.aggregator.strategy import FederatedLora
from fedlora.runtime.carriers.in_process import InProcessGrid
from fedlora.runtime.lock import locked, spec_of
from fedlora.runtime.run_folder import RunFolder
from fedlora.runtime.secure_terms import STAGES, terms_of
from fedlora.runtime.simulation import sites_in
from fedlora.runtime.site.asked import Asked
from fedlora.runtime.site.mods import GUARDS, discreet, receipted
from fedlora.runtime.site.secure_sum import answer_stage
from fedlora.wire.codec import encode_trained
from simulations.benchmarks.replies import increment, recipe_for
from simulations.benchmarks.spent import Spent

_OVERRIDES = (
    "privacy={unit: none, secure_aggregation: true, threat_model: honest-but-curious}",
    "federation.method=freeze-a",
    "federation.rounds=1",
    "federation.evaluate_every=0",
    "federation.server_momentum=0",
    "federation.stage_timeout=1",
    "wire.codec=fp32",
)
_EVERY, _VARIANTS = 20, 4
_EXAMPLES = 8
"""Of each client."""


def is_lost(site: str) -> bool:
    """Whether a site's masked vector never comes: that of one in twenty."""
    return int(site.removeprefix("site-")) % _EVERY == 0


class SecureRound:
    """A round for so many sites, which train the factors B of an adapter."""

    def __init__(self, clients: int, spec: AdapterSpec) -> None:
        digests = BaseDigests(weights_digest="0" * 64, tokenizer_digest="0" * 64)
        self.recipe = locked(recipe_for(clients, *_OVERRIDES), spec, digests)
        self.spec = spec_of(self.recipe)
        self.part = self.spec.part("B")

    @property
    def terms(self) -> Terms:
        """What its attempts go by."""
        return terms_of(self.recipe)

    @property
    def size(self) -> int:
        """Values of a masked vector."""
        return self.part.size + 1

    def play(self, folder: Path, spent: Spent) -> None:
        """Play the round in an empty folder.

        Raises:
            RunError: the new adapter is not the mean of those who stayed.
        """
        run = RunFolder.create(self.recipe, self.spec, data={}, runs=folder / "runs")
        updates = [increment(self.part, seed=variant).values for variant in range(_VARIANTS)]
        grid = _Grid(self.recipe, _app(updates), spent)
        with sites_in(str(folder / "sites")), spent.at_aggregator():
            FederatedLora(run, grid, observe=lambda _: None).start(grid)
        spent.aggregator -= spent.client  # who answered meanwhile
        record = run.records()[-1]
        spent.sent += record["bytes_up"]
        start = AdapterState.initial(self.spec, seed=self.recipe.seed)
        found = run.load().adapter.part(self.part).minus(start.part(self.part))
        stayed = [updates[_variant(site)] for site in self.recipe.site_names if not is_lost(site)]
        off = (found - sum(stayed) / len(stayed)).abs().max()
        if not off <= record["secure_sum"]["error_bound"] + 1e-9:  # and what float32 rounds
            raise RunError(f"The adapter is not the mean of {len(stayed)} clients.")


class _Grid(InProcessGrid):
    """Counts what clients take, and loses the masked vectors of some."""

    def __init__(self, recipe: Recipe, app: ClientApp, spent: Spent) -> None:
        super().__init__(app, clients=len(recipe.site_names))
        self._sites, self._spent = recipe.site_names, spent

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue the messages; count the bytes of a sum's stages."""
        pushed = list(messages)
        for message in pushed:
            if message.metadata.message_type.startswith("train."):
                self._spent.received += len(records.unpack(message.content))
        return super().push_messages(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let a client answer."""
        with self._spent.at_client():
            replies = super().pull_messages(message_ids)
        return [reply for reply in replies if not self._loses(reply)]

    def _loses(self, reply: Message) -> bool:
        masked = reply.metadata.message_type == "train.mask"
        return masked and is_lost(self._sites[reply.metadata.src_node_id - 1])


def _app(updates: Sequence[Tensor]) -> ClientApp:
    """Return the site's app, but for training."""
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        asked = Asked.of(message, context)
        envelope = records.envelope_of_update(asked.envelope, asked.recipe, asked.site)
        values = updates[_variant(asked.site)].clone()
        update = AdapterUpdate(spec=envelope.spec, values=values, num_examples=_EXAMPLES)
        payload = encode_trained(update, envelope)
        return Message(records.reply({}, payload=payload), reply_to=message)

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        return Message(records.introduction(Asked.of(message, context).site), reply_to=message)

    app.train(mods=GUARDS)(train)
    for stage in STAGES:
        app.train(stage, mods=[discreet, receipted])(answer_stage)
    return app


def _variant(site: str) -> int:
    return int(site.removeprefix("site-")) % _VARIANTS
