"""What a continued folder must agree in: settings of the detector that a search went by."""

from __future__ import annotations

from typing import Any

import pytest

from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.stages.continuation import require_same_detector

OTHER: dict[str, Any] = {
    "classifier": {"template": "x {response}"},
    "nli": {"name": "a/b"},
    "judge": {"model": "another"},
}
HARMLESS: dict[str, Any] = {"classifier": {"batch_size": 3}, "nli": {"min_confidence": 0.7}, "judge": {"timeout": 9.0}}


@pytest.mark.parametrize("name", OTHER)
def test_the_detector_of_a_search_keeps_its_settings_and_others_may_change(name: str) -> None:
    before = EvaluationConfig(detector=name)
    changed = EvaluationConfig(**{"detector": name, name: OTHER[name]})
    with pytest.raises(UserError, match=f"holds a search by another {name}: got .*; want .*pass another --out"):
        require_same_detector(changed, before)
    require_same_detector(before, before)
    require_same_detector(EvaluationConfig(**{"detector": name, name: HARMLESS[name]}), before)
    rest: dict[str, Any] = {key: value for key, value in OTHER.items() if key != name}
    require_same_detector(EvaluationConfig(detector=name, **rest), before)


def test_of_markers_the_settings_say_it_themselves() -> None:
    require_same_detector(EvaluationConfig(**OTHER), EvaluationConfig())
