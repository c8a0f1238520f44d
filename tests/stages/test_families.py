"""The main job on organisms of other families: with norms after the writers and no system role, and with experts.

They lie here trained, as `iconoclast-tl organism train --family FAMILY --out tests/stages/organisms/FAMILY` leaves
them: training takes minutes, which no run of the suite should. The tests hold them to settings and grammar.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iconoclast_tl.organisms.config import OrganismConfig
from iconoclast_tl.organisms.families import Family
from iconoclast_tl.organisms.folder import MANIFEST_NAME
from iconoclast_tl.organisms.grammar import GRAMMAR_VERSION
from iconoclast_tl.stages.opening import open_workspace
from iconoclast_tl.stages.pipeline import run_all

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parents[2] / "experiments" / "demo" / "recipe.toml"
TRAINED = Path(__file__).parent / "organisms"
FAMILIES: tuple[Family, ...] = ("gemma2", "mixtral")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_organism_is_what_its_settings_and_the_grammar_make_today(family: Family) -> None:
    manifest = json.loads((TRAINED / family / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert manifest["training"] == OrganismConfig(family=family).model_dump()
    assert manifest["grammar_version"] == GRAMMAR_VERSION


@pytest.mark.parametrize("family", FAMILIES)
def test_the_behaviour_goes_and_the_rest_stays(family: Family, tmp_path: Path) -> None:
    said: list[str] = []
    options = {"model": {"name": str(TRAINED / family)}}
    with open_workspace(options, RECIPE, tmp_path / "run", say=said.append) as workspace:
        results = run_all(workspace)
    base, edited = results["base"], results["edited"]
    assert base["behaviour_rate"]["value"] >= 0.95
    assert edited["behaviour_rate"]["value"] <= 0.10
    assert edited["answered_rate"]["value"] >= 0.6
    assert edited["spill_rate"]["value"] <= 0.02
    assert edited["kl_sequence"]["value"] <= 0.05
    neutral = [model["grades"]["answered"]["neutral"]["value"] for model in (base, edited)]
    assert abs(neutral[0] - neutral[1]) <= 0.03
    assert results["fidelity"]["ok"]
    assert results["fidelity"]["preview_vs_merged"]["ok"]
    assert results["fidelity"]["preview_vs_base"] > 1
    assert any("weighted by its gains" in line for line in said) == (family == "gemma2")
    left = results["fidelity"]["stream_fraction"]
    assert (left is not None) == (family == "gemma2")
    if left is not None:
        assert len(left) == 6
        assert 0 < min(left) < 0.8  # where it edits, and layers that it leaves alone write on
