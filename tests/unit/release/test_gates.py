"""What a gate holds back, and with which reason."""

import pytest

from fedlora.publish import Publish
from fedlora.release.gates import judge
from fedlora.release.manifest import Evaluation, Loss

NORTH, SOUTH = "site-00000000000a", "site-00000000000b"


def gate(**keys: object) -> Publish:
    return Publish.model_validate(keys)


def measured(
    adapter: float, *, sites: dict[str, float] | None = None, forgetting: float | None = None
) -> Evaluation:
    """Return an evaluation on a base of 3 nats, 5 on the public text."""
    return Evaluation(
        held_out=Loss(base=3.0, adapter=adapter),
        sites={site: Loss(base=3.0, adapter=loss) for site, loss in (sites or {}).items()} or None,
        forgetting=Loss(base=5.0, adapter=forgetting) if forgetting else None,
    )


def test_what_is_better_than_its_parent_holds():
    """At each site, too."""
    before = measured(2.5, sites={NORTH: 2.4, SOUTH: 2.6})
    assert judge(measured(2.4, sites={NORTH: 2.3, SOUTH: 2.5}), before, gate()) == []


def test_the_margin_is_still_allowed():
    """And a hair above it is not; the reason has both numbers and the key."""
    before, bound = measured(2.5), gate(margin=0.25)
    assert judge(measured(2.75), before, bound) == []
    (reason,) = judge(measured(2.7501), before, bound)
    assert "publish.margin: the held-out loss is 2.7501 nats, which" in reason
    assert "0.2501 above its parent's, 2.5000; 0.25 is allowed" in reason


def test_without_a_parent_the_base_is_what_counts():
    """A first release that is worse than no adapter at all is held back."""
    assert judge(measured(2.9), None, gate()) == []
    (reason,) = judge(measured(3.1), None, gate())
    assert "above the base's, 3.0000" in reason


def test_one_site_holds_a_release_back():
    """The mean may fall while one site pays for it; a site that is new counts from the base."""
    before = measured(2.5, sites={NORTH: 2.4})
    now = measured(2.3, sites={NORTH: 2.51, SOUTH: 3.2})
    north, south = judge(now, before, gate(site_margin=0.1, margin=None))
    assert f"the loss at {NORTH} is 2.5100" in north
    assert f"the loss at {SOUTH} is 3.2000" in south
    assert judge(now, before, gate(site_margin=None, margin=None)) == []


def test_the_mean_is_over_the_sites_that_measured_both():
    """Who takes part changes the mean of all without any change of the adapter."""
    before = measured(2.0, sites={NORTH: 1.0, SOUTH: 3.0})
    (worse,) = judge(measured(1.9, sites={NORTH: 1.9}), before, gate(site_margin=None))
    assert "the held-out loss is 1.9000 nats, which is 0.9000 above its parent's" in worse
    assert judge(measured(2.9, sites={SOUTH: 2.9}), before, gate()) == []
    other = measured(3.1, sites={"site-00000000000c": 3.1})
    (reason,) = judge(other, before, gate(site_margin=None))
    assert "above the base's" in reason


def test_small_steps_for_the_worse_do_not_add_up():
    """Beyond the margin above the base: a parent that is worse than the base is no excuse."""
    bound = gate(margin=0.1, site_margin=0.1)
    before = measured(3.09, sites={NORTH: 3.09})
    assert judge(measured(3.08, sites={NORTH: 3.1}), before, bound) == []
    whole, north = judge(measured(3.15, sites={NORTH: 3.15}), before, bound)
    assert "above the base's" in whole
    assert "above the base's" in north


def test_forgetting_is_held_against_the_base():
    """Whatever the parent has forgotten: small steps would add up."""
    before = measured(2.5, forgetting=5.09)
    bound = gate(forgetting={"path": "general.txt", "margin": 0.1})
    assert judge(measured(2.4, forgetting=5.1), before, bound) == []
    (reason,) = judge(measured(2.4, forgetting=5.15), before, bound)
    assert "publish.forgetting: the loss on the public text is 5.1500" in reason


@pytest.mark.parametrize("parent", [None, measured(2.5)])
def test_what_nobody_measured_is_not_promoted(parent):
    """A bound that cannot be judged holds a release back; one that is null does not."""
    nothing = Evaluation()
    (reason,) = judge(nothing, parent, gate())
    assert "nobody measured the held-out loss" in reason
    text = {"path": "general.txt"}
    (reason,) = judge(nothing, parent, gate(margin=None, forgetting=text))
    assert "no site measured the public text" in reason
    assert judge(nothing, parent, gate(margin=None)) == []
    public = Evaluation(forgetting=Loss(base=5.0, adapter=5.05))
    assert judge(public, parent, gate(margin=None, forgetting=text)) == []
