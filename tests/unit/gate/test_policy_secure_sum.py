"""What a site asks of secure sums: of their recipes, whatever digests are allowed, and rosters."""

import pytest

from fedlora.errors import PolicyError
from fedlora.gate.policy import Policy
from fedlora.recipe import Recipe
from tests.strategies import make_spec

SPEC = make_spec(rank=8, alpha=16.0)
SITES = [f"site-{number}" for number in range(8)]
DATASETS = ", ".join(f"{{path: a, site: {site}}}" for site in SITES)
PLAIN = "{unit: none}"
SECURE = "{unit: none, secure_aggregation: true}"
CURIOUS = "{unit: none, secure_aggregation: true, threat_model: honest-but-curious}"
NOISED = "{unit: client, epsilon: 4, delta: 1e-3, clip_norm: 1, secure_aggregation: true}"


def recipe(privacy: str) -> Recipe:
    """Return a recipe of eight sites."""
    return Recipe.from_yaml(f"datasets: [{DATASETS}]\nprivacy: {privacy}\n")


def reasons(privacy: str, **asked: object) -> list[str]:
    """Return why a recipe that is allowed by its digest is refused all the same."""
    told = recipe(privacy)
    policy = Policy.model_validate({"recipes": [told.digest], "secure_aggregation": asked})
    try:
        policy.require_recipe(told, SPEC, site=SITES[0])
    except PolicyError as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return []


@pytest.mark.parametrize(
    ("holds", "broken", "asked", "says"),
    [
        (
            SECURE,
            PLAIN,
            {"required": True},
            "required: a recipe with privacy.secure_aggregation is",
        ),
        (SECURE, CURIOUS, {}, "threat_model: malicious-aggregator is allowed, but honest-but-"),
        (NOISED, SECURE, {"require_dp": True}, "require_dp: privacy.unit: example or client is"),
    ],
)
def test_each_bound_holds_whatever_digests_are_allowed(holds, broken, asked, says):
    """A digest in the policy says that a recipe was read, not that a sum may be opened by fewer."""
    assert reasons(holds, **asked) == []
    [line] = reasons(broken, **asked)
    assert line.startswith(f"secure_aggregation.{says}")


@pytest.mark.parametrize(
    ("key", "most", "says"),
    [
        ("min_cohort", 8, "min_cohort: at least 9 is allowed, but a cohort of 8 is asked"),
        ("colluders", 2, "colluders: at least 3 is allowed, but a threshold against 2 is asked"),
    ],
)
def test_numbers_are_allowed_up_to_the_bound(key, most, says):
    """The recipe's own is enough; one more is not."""
    assert reasons(SECURE, **{key: most}) == []
    assert reasons(SECURE, **{key: most + 1}) == [f"secure_aggregation.{says}"]


def test_a_weaker_model_is_the_operator_s_to_state():
    """It is then allowed, and the stronger one with it."""
    for privacy in (CURIOUS, SECURE):
        assert reasons(privacy, threat_model="honest-but-curious") == []


def test_without_a_sum_nothing_else_is_asked():
    """The other keys are of sums alone; ``required`` is what refuses updates in the clear."""
    assert reasons(PLAIN, min_cohort=100, colluders=50, require_dp=True) == []


def refusal(members: list[str], last: list[str], **asked: object) -> str:
    """Return why a roster is refused; nothing if it is not."""
    try:
        Policy.model_validate({"secure_aggregation": asked}).require_roster(members, last)
    except PolicyError as error:
        return str(error)
    return ""


def test_a_roster_has_the_fewest_sites_that_hide_each_other():
    """Three by default; a name that comes twice is one site."""
    assert refusal(SITES[:3], []) == ""
    says = "secure_aggregation.min_cohort: at least 3 is allowed, but a sum of 2 is asked"
    assert says in refusal(SITES[:2], [])
    assert says in refusal([*SITES[:2], SITES[0]], [])
    assert refusal(SITES[:5], [], min_cohort=5) == ""
    assert "a sum of 4" in refusal(SITES[:4], [], min_cohort=5)


@pytest.mark.parametrize(
    ("members", "share"),
    [(SITES[:4], 1), (SITES[:5], 0.8), (SITES[:3], 0.75), (SITES[1:5], 0.6), (SITES[4:], 0)],
)
def test_cohorts_overlap_by_all_that_differs(members, share):
    """Who came and who left both count: either way a difference of sums tells of them."""
    last = SITES[:4]
    assert refusal(members, last, min_overlap=share) == ""
    if share < 1:
        assert "secure_aggregation.min_overlap" in refusal(members, last, min_overlap=share + 0.01)


def test_the_first_sum_has_none_before_it():
    """No overlap is asked of it."""
    assert refusal(SITES, [], min_overlap=1) == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [("min_cohort", 2), ("colluders", -1), ("min_overlap", 1.1), ("threat_model", "none")],
)
def test_a_policy_cannot_ask_for_less_than_a_sum_is(key, value):
    """Two sites know each other's update from the sum; no weaker model is there."""
    with pytest.raises(ValueError, match=key):
        Policy.model_validate({"secure_aggregation": {key: value}})
