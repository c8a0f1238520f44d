"""The rule, part by part, on changes of known size."""

from __future__ import annotations

import math

import pytest

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.run_comparison.changes import KlChange, RateChange, kl_change, rate_change
from iconoclast_tl.run_comparison.verdict import Rule, decide


def rates(before: int, after: int, n: int = 40) -> RateChange:
    return rate_change([{f"{i:03}": (i < before, i < after) for i in range(n)}], "target")


def nats(rise: float) -> KlChange:
    return kl_change([{f"{i:03}": (0.01 * i, 0.01 * i + rise + 1e-6 * i) for i in range(20)}])


RULE = Rule()


def test_every_part_of_the_rule_is_needed() -> None:
    good, level = rates(38, 8), nats(-0.01)
    assert str(decide(RULE, "suppress", good, good.p, level, False)) == "accept"
    weak = decide(RULE, "suppress", good, 0.06, level, False)
    assert (weak.word, len(weak.reasons)) == ("inconclusive", 1)
    assert weak.reasons[0].startswith("p = 0.06")
    other_way = decide(RULE, "strengthen", good, good.p, level, False)
    assert (other_way.word, other_way.reasons) == (
        "reject",
        ("the behaviour rate falls, and the goal is to strengthen it",),
    )
    risen = decide(RULE, "suppress", rates(8, 38), 0.001, level, False)
    assert (risen.word, risen.reasons) == ("reject", ("the behaviour rate rises, and the goal is to suppress it",))
    worse = decide(RULE, "suppress", good, good.p, nats(0.02), False)
    assert worse.word == "reject"
    assert "KL is worse by 0.02 nats" in worse.reasons[0]
    both = decide(RULE, "suppress", good, 0.06, nats(0.02), False)
    assert (both.word, len(both.reasons)) == ("reject", 2)
    small = rates(380, 340, 1000)
    slight = decide(RULE, "suppress", small, small.p, level, False)
    assert small.p < 0.05
    assert (slight.word, len(slight.reasons)) == ("reject", 1)
    assert slight.reasons[0].startswith("|d| = ")


def test_a_margin_lets_the_divergence_rise_and_no_further() -> None:
    good, rise = rates(38, 8), nats(0.02)
    assert decide(Rule(kl_margin=0.03), "suppress", good, good.p, rise, False).word == "accept"
    assert decide(Rule(kl_margin=0.01), "suppress", good, good.p, rise, False).word == "reject"


def test_against_the_base_the_divergence_is_asked_about_only_with_a_margin() -> None:
    good, rise = rates(40, 8), nats(0.02)
    assert decide(RULE, "suppress", good, good.p, rise, True).word == "accept"
    assert decide(Rule(kl_margin=0.01), "suppress", good, good.p, rise, True).word == "reject"
    assert "KL" not in RULE.words("suppress", True)
    assert "KL" in Rule(kl_margin=0.01).words("suppress", True)


def test_an_infinite_effect_is_large() -> None:
    gone = rates(40, 0)
    assert gone.d.value == -math.inf
    assert decide(RULE, "suppress", gone, gone.p, nats(-0.01), False).word == "accept"


@pytest.mark.parametrize(
    "change", [{"alpha": 0.0}, {"alpha": 1.0}, {"effect": -1.0}, {"kl_margin": -0.1}, {"effect": math.nan}]
)
def test_a_rule_that_makes_no_sense(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match="does not fit"):
        Rule(**change)
