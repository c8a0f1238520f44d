"""Warm start: whose profile it is, what its trials are, and a study that begins with them and is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.edits.profiles import Kernel
from iconoclast_tl.search import study as study_module
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.objective import Goal, ValScores
from iconoclast_tl.search.pareto import Candidate
from iconoclast_tl.search.published import PUBLISHED, Published
from iconoclast_tl.search.space import KernelSpace, suggest
from iconoclast_tl.search.study import ended, open_study
from iconoclast_tl.search.warm_start import (
    GENERAL,
    MODEL_TYPES,
    PROFILES,
    Shape,
    StartProfile,
    first_trials,
    median_profile,
    warm_start,
)
from tests.search.dummy import CONFIG, START, TRIALS, score, search

WIDE = KernelSpace(
    points=(0, 1),
    max_weight=(0, 9),
    max_weight_position=(0, 1),
    min_weight=(0, 1),
    min_weight_distance=(0, 1),
)
EVERY = {**PROFILES, "general": GENERAL}


# Whose profile --------------------------------------------------------------------------------------------------------


def test_every_family_has_a_profile_and_every_type_is_one_of_transformers() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert set(MODEL_TYPES) == set(PROFILES)
    kinds = [kind for known in MODEL_TYPES.values() for kind in known]
    assert set(kinds) <= set(CONFIG_MAPPING_NAMES)
    assert len(set(kinds)) == len(kinds)  # of one family only


def test_a_family_is_told_by_the_type_and_not_by_the_name() -> None:
    from transformers import Gemma3TextConfig, LlamaConfig, PhiConfig

    called_gemma = LlamaConfig(name_or_path="google/gemma-3-1b-it")
    called_llama = Gemma3TextConfig(name_or_path="meta-llama/Llama-3.2-1B-Instruct")
    assert [warm_start(config).family for config in (called_gemma, called_llama)] == ["llama", "gemma"]
    assert str(warm_start(called_llama)) == "gemma profile"
    assert warm_start(called_llama).profile == PROFILES["gemma"] != PROFILES["llama"]
    unknown = warm_start(PhiConfig(name_or_path="meta-llama/Llama-3.2-1B-Instruct"))
    assert (unknown.family, unknown.profile) == (None, GENERAL)
    assert str(unknown) == "no profile of model type phi: the general one"


def test_of_several_modalities_the_text_model_counts() -> None:
    from transformers import Gemma3Config, LlavaConfig, MistralConfig, Qwen2_5_VLConfig

    assert warm_start(Gemma3Config()).family == "gemma"
    assert warm_start(Qwen2_5_VLConfig()).family == "qwen"
    assert [warm_start(LlavaConfig(text_config=text)).family for text in (None, MistralConfig())] == [
        "llama",
        "mistral",
    ]


# Its trials -----------------------------------------------------------------------------------------------------------


def test_at_its_own_depth_a_profile_of_one_card_is_the_card() -> None:
    (card,) = PUBLISHED["gemma"]
    first, second = first_trials(PROFILES["gemma"], WIDE, "suppress", card.n_layers)
    assert first["direction_scope"] == "global"
    assert card.direction_index is not None
    assert first["direction_point"] == pytest.approx(card.direction_index + 1)
    for component, kernel in (("attn_out", card.attn_out), ("mlp_out", card.mlp_out)):
        assert first[f"{component}.max_weight"] == kernel.max_weight
        assert first[f"{component}.max_weight_position"] == pytest.approx(kernel.max_weight_position)
        assert first[f"{component}.max_weight"] * first[f"{component}.min_weight"] == pytest.approx(kernel.min_weight)
        assert first[f"{component}.min_weight_distance"] == pytest.approx(kernel.min_weight_distance)
    assert second == first | {"direction_scope": "per layer"}
    twice = first_trials(PROFILES["gemma"], WIDE, "suppress", 2 * card.n_layers - 1)[0]  # L−1 doubles
    assert twice["attn_out.max_weight_position"] == pytest.approx(2 * first["attn_out.max_weight_position"])
    assert twice["attn_out.max_weight"] == first["attn_out.max_weight"]


@pytest.mark.parametrize("one", [one for cards in PUBLISHED.values() for one in cards], ids=lambda one: one.card)
def test_what_was_published_lies_in_heretics_ranges_at_the_depth_that_is_told(one: Published) -> None:
    """A depth that is wrong, or a number that was copied wrongly, would be likely to lie outside."""

    def misfits(last: int) -> list[float]:
        indices = [] if one.direction_index is None else [one.direction_index / last]
        kernels = (one.attn_out, one.mlp_out)
        return [
            *(x for x in indices if not 0.4 <= x <= 0.9),
            *(k.max_weight_position for k in kernels if not 0.6 <= k.max_weight_position / last <= 1),
            *(k.min_weight_distance for k in kernels if not 1 <= k.min_weight_distance <= 0.6 * last),
            *(k.min_weight for k in kernels if not 0 <= k.min_weight <= k.max_weight),
        ]

    assert misfits(one.n_layers - 1) == []
    assert misfits((one.n_layers - 1) // 2)  # the negative control
    assert misfits(2 * (one.n_layers - 1))


def card(index: float | None, *attention: float) -> Published:
    return Published(
        card="card",
        model="model",
        n_layers=11,
        refusals=(100, 0),
        kl=0.1,
        direction_index=index,
        attn_out=Kernel(*attention),
        mlp_out=Kernel(1.0, 5.0, 0.5, 2.0),
    )


def test_a_profile_is_the_median_of_its_cards() -> None:
    cards = [card(None, 1.0, 6.0, 0.5, 2.0), card(4.0, 2.0, 8.0, 0.5, 4.0), card(None, 4.0, 10.0, 4.0, 5.0)]
    found = median_profile(cards)
    assert found.shapes["attn_out"] == Shape(2.0, 0.8, 0.5, 0.4)
    assert found.attention_to_mlp == 2.0
    assert (found.point, found.scope) == (0.4, "per layer")
    assert first_trials(found, WIDE, "suppress", 11)[0]["direction_scope"] == "per layer"
    assert median_profile(cards[:2]).scope == "global"


class Ranges:
    """A trial that remembers what may be chosen."""

    def __init__(self) -> None:
        self.may: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.may[name] = (low, high)
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.may[name] = choices
        return choices[0]


def outside(choices: Mapping[str, Any], space: KernelSpace, n_layers: int) -> set[str]:
    """Choices that the space does not allow."""
    asked = Ranges()
    suggest(asked, space, n_layers)
    assert set(asked.may) == set(choices)
    scopes = asked.may.pop("direction_scope")
    found = {name for name, (low, high) in asked.may.items() if not low <= choices[name] <= high}
    return found | ({"direction_scope"} - {"direction_scope" for scope in scopes if scope in choices.values()})


@pytest.mark.parametrize("profile", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("goal", ["suppress", "strengthen"])
@pytest.mark.parametrize("n_layers", [1, 2, 6, 80])
def test_first_trials_lie_in_the_space(profile: StartProfile, goal: Goal, n_layers: int) -> None:
    narrow = KernelSpace(max_weight=(0.1, 0.4), points=(0.0, 0.1), min_weight=(0.0, 0.2)).for_goal(goal)
    for space in (KernelSpace().for_goal(goal), narrow):
        for trial in first_trials(profile, space, goal, n_layers):
            assert not outside(trial, space, n_layers)
    wide = first_trials(profile, WIDE.for_goal(goal), goal, n_layers)[0]
    assert {"attn_out.max_weight", "mlp_out.max_weight"} <= outside(wide, narrow, n_layers)  # the negative control


def test_peaks_turn_with_the_goal_and_nothing_else() -> None:
    down, up = (first_trials(GENERAL, WIDE.for_goal(goal), goal, 6)[0] for goal in ("suppress", "strengthen"))
    turned = {"attn_out.max_weight", "mlp_out.max_weight"}
    assert {name for name in down if down[name] != up[name]} == turned
    assert all(up[name] == -down[name] < 0 for name in turned)


def test_a_space_of_one_scope_has_one_first_trial() -> None:
    (only,) = first_trials(GENERAL, KernelSpace(direction_scopes=("per layer",)), "suppress", 6)
    assert only["direction_scope"] == "per layer"


# The study ------------------------------------------------------------------------------------------------------------

BATCHED = CONFIG.model_copy(update={"batch_trials": 3})


@pytest.fixture(scope="module", params=[CONFIG, BATCHED], ids=["one by one", "in batches"])
def config(request: pytest.FixtureRequest) -> SearchConfig:
    found: SearchConfig = request.param
    return found


@pytest.fixture(scope="module")
def uninterrupted(config: SearchConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Candidate]:
    return search(tmp_path_factory.mktemp("study") / "journal", config=config, start=START)


def test_a_study_begins_with_them(uninterrupted: list[Candidate], config: SearchConfig, tmp_path: Path) -> None:
    assert [one.choices for one in uninterrupted[: len(START)]] == START
    cold = search(tmp_path / "cold", config=config)
    assert all(one.choices not in START for one in cold)
    # They count among those before TPE, and what is random stays what it was: a function of the trial's number.
    random = slice(len(START), config.startup_trials)
    assert [one.choices for one in uninterrupted[random]] == [one.choices for one in cold[random]]
    assert uninterrupted[config.startup_trials + 3 :] != cold[config.startup_trials + 3 :]  # TPE saw others


@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_an_interrupt_changes_nothing(
    uninterrupted: list[Candidate], config: SearchConfig, tmp_path: Path, at: int
) -> None:
    left = at

    def stop(choices: dict[str, Any]) -> ValScores:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return score(choices)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "journal", stop, config, START)
    assert search(tmp_path / "journal", config=config, start=START) == uninterrupted


@pytest.mark.parametrize(("at", "known"), [(0, 0), (0, 3), (1, 1), (3, 9)])
def test_neither_does_one_amid_the_choices(
    uninterrupted: list[Candidate],
    config: SearchConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    known: int,
) -> None:
    """Stopped when trial `at` had been given so many of its ten choices."""
    honest = study_module._giving
    answered: list[str] = []

    def stopping(choices: Mapping[str, Any], sampler: Any) -> Any:
        given = honest(choices, sampler)
        answer = given.sample_independent

        def amid(study: Any, trial: Any, name: str, *rest: Any) -> Any:
            if len(answered) == 10 * at + known:
                raise KeyboardInterrupt
            answered.append(name)
            return answer(study, trial, name, *rest)

        monkeypatch.setattr(given, "sample_independent", amid)
        return given

    monkeypatch.setattr(study_module, "_giving", stopping)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "journal", config=config, start=START)
    assert len(set(answered[10 * at :])) == known
    monkeypatch.setattr(study_module, "_giving", honest)
    assert search(tmp_path / "journal", config=config, start=START) == uninterrupted


@pytest.mark.parametrize("n", [1, 3])
def test_a_longer_search_does_not_begin_again(
    uninterrupted: list[Candidate], config: SearchConfig, tmp_path: Path, n: int
) -> None:
    if config.batch_trials > 1:
        n *= config.batch_trials  # what a trial's batch had seen is part of it
    search(tmp_path / "journal", config=config.model_copy(update={"n_trials": n}), start=START)
    found = search(tmp_path / "journal", config=config, start=START)
    assert found == uninterrupted
    assert len(found) == TRIALS


def test_one_that_fails_is_not_given_again(tmp_path: Path) -> None:
    def second(choices: dict[str, Any]) -> ValScores:
        if choices == START[1]:
            raise ArithmeticError("this one")
        return score(choices)

    found = search(tmp_path / "journal", second, start=START)
    assert [one.choices for one in found[:3]] == [START[0], START[2], START[3]]
    assert len(found) == TRIALS - 1


def test_kill_9_changes_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.search.dummy", str(journal), "warm"],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
    )
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_text().count('"state":1') >= 1):
        assert time.monotonic() < deadline, "the search did not start"
        assert process.poll() is None, "the search ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(ended(open_study(journal))) < TRIALS
    assert search(journal, start=START) == search(tmp_path / "whole", start=START)


def test_a_queue_filled_at_every_start_would_begin_again(tmp_path: Path) -> None:
    """The negative control: what `enqueue_trial` without a memory of its own does to a search that is continued."""
    for trials in (2, 6):
        study = open_study(tmp_path / "journal")
        for choices in START[:2]:
            study.enqueue_trial(choices)
        found = search(tmp_path / "journal", config=CONFIG.model_copy(update={"n_trials": trials}))
    assert [one.choices for one in found].count(START[0]) == 2


def test_the_space_is_asked_as_ever(tmp_path: Path) -> None:
    """Every choice is suggested, not set beside: TPE learns from the first trials as from all others."""
    search(tmp_path / "journal", config=CONFIG.model_copy(update={"n_trials": 5}), start=START)
    trials = ended(open_study(tmp_path / "journal"))
    assert trials[0].params == START[0]
    assert trials[0].distributions == trials[4].distributions
