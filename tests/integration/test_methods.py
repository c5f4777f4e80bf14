"""Each method of aggregation in whole runs: what it trains, sends, keeps and publishes."""

import pytest
import torch

from fedlora.errors import AdapterError
from fedlora.methods import METHODS
from fedlora.peft_folder import read_peft_folder
from fedlora.runtime import simulation
from fedlora.runtime.comparison import overall, read_comparison
from fedlora.runtime.conversation import Conversation
from fedlora.runtime.events import RoundFinished, UpdateSettled
from fedlora.runtime.plan import plan
from fedlora.runtime.run_folder import RunFolder

FASTER = (
    "federation.local_steps=2",
    "federation.evaluate_every=0",
    "federation.server_momentum=0",
)


def play(recipe, folder, *, observe=lambda _: None) -> RunFolder:
    run = simulation.start(plan(recipe), runs=folder)
    simulation.simulate(run, observe=observe)
    return run


class Stop:
    """An observer that presses Ctrl-C at the ``count``-th event of a kind."""

    def __init__(self, kind: type, count: int) -> None:
        self.kind, self.left = kind, count

    def __call__(self, event: object) -> None:
        self.left -= isinstance(event, self.kind)
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(small_recipe, tmp_path, method):
    """Three rounds lower the held-out loss of the base."""
    run = play(small_recipe(f"federation.method={method}", "federation.local_steps=5"), tmp_path)
    comparison = read_comparison(run)
    assert overall(comparison.federated).loss < overall(comparison.base).loss - 0.05


@pytest.mark.parametrize(
    "overrides",
    [
        *(f"federation.method={method}" for method in METHODS),
        "federation.server_momentum=0.5",
        "federation.publish_rank=12",
        "federation.robust=geometric-median",
        "federation: {method: average, server_momentum: 0}, wire: {codec: nf4}",
        "federation: {method: freeze-a, server_optimizer: yogi, server_momentum: 0.5}",
        "wire.compress=true",
    ],
)
def test_a_stopped_run_of_any_method_goes_on_to_the_same_adapter(small_recipe, tmp_path, overrides):
    """Whatever server and sites remember between rounds is there again after a stop."""
    recipe = small_recipe(*FASTER, *_overrides(overrides))
    whole = play(recipe, tmp_path / "whole")
    run = simulation.start(plan(recipe), runs=tmp_path / "stopped")
    for kind, count in ((UpdateSettled, 1), (RoundFinished, 1), (UpdateSettled, 3)):
        with pytest.raises(KeyboardInterrupt):
            simulation.simulate(run, observe=Stop(kind, count))
    simulation.simulate(RunFolder.open(run.path), observe=lambda _: None)
    assert torch.equal(whole.load().adapter.values, run.load().adapter.values)
    files = {path.relative_to(whole.release) for path in whole.release.rglob("*.safetensors")}
    assert files
    for file in files:
        assert (whole.release / file).read_bytes() == (run.release / file).read_bytes()


@pytest.mark.parametrize(
    ("method", "number", "moves"),
    [("freeze-a", 1, "B"), ("alternate", 1, "B"), ("alternate", 2, "A"), ("share-a", 1, "A")],
)
def test_only_what_a_method_sends_moves_the_global_adapter(
    small_recipe, tmp_path, method, number, moves
):
    """The other factor comes out of the round bit for bit as it went in."""
    recipe = small_recipe(*FASTER, f"federation.method={method}", f"federation.rounds={number}")
    run = simulation.start(plan(recipe), runs=tmp_path)
    states = []

    def watch(event: object) -> None:
        if isinstance(event, RoundFinished):
            states.append(run.load().adapter)

    simulation.simulate(run, observe=watch)
    before, after = (dict(states[n].factors()) for n in (number - 1, number))
    moved = {tensor.factor for tensor in after if not torch.equal(before[tensor], after[tensor])}
    assert moved == {moves}


def test_half_of_the_bytes_are_sent_where_one_factor_is(small_recipe, tmp_path):
    """B alone costs less than both."""
    sizes = {}
    for method in ("product", "freeze-a"):
        recipe = small_recipe(*FASTER, f"federation.method={method}", "federation.rounds=1")
        run = play(recipe, tmp_path / method)
        sizes[method] = run.records()[1]["bytes_up"]
    assert sizes["freeze-a"] < 0.7 * sizes["product"]


def test_sites_of_different_ranks_train_one_adapter(small_recipe, sites, tmp_path):
    """The global adapter has the larger rank; the smaller site trains and sends fewer values."""
    data = ", ".join(
        f"{{path: {sites[site]}, site: {site}, lora_r: {rank}}}"
        for site, rank in (("north", 2), ("south", 8))
    )
    run = play(small_recipe(f"datasets=[{data}]", "federation.local_steps=5"), tmp_path)
    folded = run.records()[1]["folded"]
    assert read_peft_folder(run.release).spec.rank == 8
    assert folded["north"]["bytes"] < 0.5 * folded["south"]["bytes"]
    comparison = read_comparison(run)
    assert overall(comparison.federated).loss < overall(comparison.base).loss - 0.05


def test_a_wider_global_adapter_cuts_less(small_recipe, tmp_path):
    """What a cut to the trained rank drops is told, and kept with a higher publish_rank."""
    tails = {}
    for rank in (8, 16, 32):
        recipe = small_recipe(
            *FASTER, f"federation.publish_rank={rank}", "federation.server_momentum=0"
        )
        run = play(recipe, tmp_path / str(rank))
        assert read_peft_folder(run.release).spec.rank == rank
        tails[rank] = run.records()[1]["tail"]
    assert 0.01 < tails[8] < 1
    assert tails[16] < 0.01 * tails[8]  # two sites of rank 8 in the first round


def test_with_personal_factors_each_site_has_its_own_release(small_recipe, tmp_path):
    """One A for all, a B of each site's own; chatting with the run asks which is meant."""
    run = play(small_recipe(*FASTER, "federation.method=share-a"), tmp_path)
    north, south = (read_peft_folder(run.release / site) for site in ("north", "south"))
    for (tensor, ours), (_, theirs) in zip(north.factors(), south.factors(), strict=True):
        assert torch.equal(ours, theirs) == (tensor.factor == "A")
        assert ours.any()
    with pytest.raises(AdapterError, match=r"Name the folder of one: .*north, .*south"):
        Conversation.open([str(run.path)])
    both = Conversation.open([str(run.release / site) for site in ("north", "south")])
    assert len(both.ask("What is a fig?", max_new_tokens=4)) == 3


def test_a_robust_rule_names_whom_it_excludes(small_recipe, sites, tmp_path):
    """An excluded client stands among the refused, with the rule's reason."""
    data = f"datasets=[{{path: {sites['north']}}}, {{path: {sites['south']}}}]"
    recipe = small_recipe(
        *FASTER,
        data,
        "federation.sites=5",
        "federation.rounds=1",
        "federation.robust=multi-krum",
    )
    record = play(recipe, tmp_path).records()[1]
    assert (len(record["folded"]), len(record["refused"])) == (4, 1)
    assert "multi-krum" in next(iter(record["refused"].values()))


def _overrides(text: str) -> list[str]:
    """Return ``section.key=value`` items of a flow mapping, or the one item that it is."""
    if "{" not in text:
        return [text]
    sections = [section.split(": {") for section in text.rstrip("}").split("}, ")]
    return [
        f"{name}.{key.replace(': ', '=')}" for name, keys in sections for key in keys.split(", ")
    ]
