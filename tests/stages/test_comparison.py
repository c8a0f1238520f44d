"""Comparisons of run folders: arms, pairs, verdicts, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.run_comparison.compare import Comparison
from iconoclast_tl.run_comparison.verdict import Rule
from iconoclast_tl.stages.comparison import compare_runs, read_run, write_comparison
from tests.run_folders import labels, write_run

PROBE: Mapping[str, Any] = {"directions": {"estimator": "probe"}}


def compared(*runs: Path, against: tuple[Path, ...] = (), rule: Rule | None = None) -> Comparison:
    return compare_runs(runs, against, rule or Rule(), 0.05)


def noise(seed: int, rise: float = 0.0, n: int = 20) -> list[float]:
    generator = random.Random(seed)
    return [0.01 + rise + 0.002 * generator.random() for _ in range(n)]


def two(place: Path, before: int, after: int, rise: float = 0.0, **settings: Any) -> tuple[Path, Path]:
    """A run by `mean` and one by `probe`, whose KL is higher by `rise`, of 50 prompts."""
    first = write_run(place / "mean", labels(before, 50), kl=noise(0), settings=settings)
    second = write_run(place / "probe", labels(after, 50), kl=noise(1, rise), settings={**PROBE, **settings})
    return first, second


def test_a_clear_difference_is_accepted_and_with_a_worse_kl_it_is_not(tmp_path: Path) -> None:
    found = compared(*two(tmp_path, 30, 5, rise=-0.005))
    (one,) = found.contrasts
    assert str(one.verdict) == "accept"
    assert one.behaviour.test == "mcnemar"
    assert one.behaviour.p == pytest.approx(2 / 2**25)
    assert one.behaviour.value == pytest.approx(-0.5)
    assert found.arms[1].differs == {"directions.estimator": ("mean", "probe")}
    (worse,) = compared(*two(tmp_path / "worse", 30, 5, rise=0.02)).contrasts
    assert worse.verdict.word == "reject"
    assert worse.verdict.reasons[0].startswith("KL is worse by 0.0")
    assert worse.behaviour.to_json() == one.behaviour.to_json()
    (lenient,) = compared(*two(tmp_path / "lenient", 30, 5, rise=0.02), rule=Rule(kl_margin=0.03)).contrasts
    assert lenient.verdict.word == "accept"


def test_an_arm_against_a_copy_of_itself_is_not_accepted(tmp_path: Path) -> None:
    first = write_run(tmp_path / "one", labels(20, 50), kl=noise(0))
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    (one,) = compared(first, copy).contrasts
    assert (one.behaviour.p, one.behaviour.d.value, one.spill.p, one.kl.test.p) == (1, 0, 1, 1)
    assert one.kl.difference.value == 0
    assert one.verdict.word == "inconclusive"


def test_swapping_the_arms_flips_signs_and_keeps_p(tmp_path: Path) -> None:
    generator, folders = random.Random(0), []
    for seed in range(3):
        for name, rate in (("mean", 0.5), ("probe", 0.2)):
            shown = [generator.random() < rate for _ in range(40)]
            spill = [generator.random() < rate / 4 for _ in range(20)]
            settings = PROBE if name == "probe" else {}
            folders.append(
                write_run(tmp_path / f"{name}-{seed}", shown, spill=spill, kl=noise(seed), seed=seed, settings=settings)
            )
    means, probes = folders[::2], folders[1::2]
    (one,), (other,) = compared(*means, *probes).contrasts, compared(*probes, *means).contrasts
    for ours, theirs in ((one.behaviour, other.behaviour), (one.spill, other.spill)):
        assert ours.value == pytest.approx(-theirs.value, abs=1e-12)
        assert (ours.low, ours.high) == pytest.approx((-(theirs.high or 0), -(theirs.low or 0)), abs=1e-9)
        assert ours.p == theirs.p
        assert ours.d.value == -theirs.d.value
    assert one.behaviour.value != 0
    assert one.behaviour.p < 0.05
    assert (one.verdict.word, other.verdict.word) == ("accept", "reject")
    assert one.kl.difference.value == -other.kl.difference.value


def test_seeds_and_models_are_averaged_by_prompt(tmp_path: Path) -> None:
    """Three seeds with the same test prompts: eight prompts change in all of them, which is p = 2 / 2⁸."""
    runs = []
    for seed in range(3):
        runs.append(write_run(tmp_path / f"mean-{seed}", labels(10, 20), seed=seed))
        runs.append(write_run(tmp_path / f"probe-{seed}", labels(2, 20), seed=seed, settings=PROBE))
    found = compared(*runs[::2], *reversed(runs[1::2]))
    (one,) = found.contrasts
    assert one.behaviour.p == pytest.approx(2 / 2**8)
    assert one.behaviour.test == "sign flips, exact"
    assert (one.behaviour.n, len(one.pairs), len(found.arms[0].runs)) == (20, 3, 3)
    assert [pair.reference.seed for pair in one.pairs] == [pair.candidate.seed for pair in one.pairs]
    assert found.spread_of(found.arms[1], "behaviour").value == pytest.approx(0.1)
    assert found.spread_of(found.arms[1], "behaviour").sd == 0
    widest = one.spill.pairs[0].difference  # nothing spills anywhere, and twenty prompts do not prove that nothing does
    assert (one.spill.value, one.spill.low, one.spill.high) == (0, widest.low, widest.high)
    assert widest.low < 0 < widest.high
    models = [
        write_run(tmp_path / f"{arm}-{model}", labels(k, 20), model=model, settings=settings)
        for arm, k, settings in (("m", 10, {}), ("p", 2, PROBE))
        for model in ("garden", "kitchen")
    ]
    (over_models,) = compared(*models).contrasts
    assert len(over_models.pairs) == 2
    assert all(pair.reference.model == pair.candidate.model for pair in over_models.pairs)
    assert over_models.behaviour.p == pytest.approx(2 / 2**8)


def test_runs_of_one_arm_are_summarised_base_against_edited(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(s), labels(k, 20), seed=s, prompts=f"split {s}") for s, k in enumerate((2, 4, 6))]
    found = compared(*runs)
    (arm,), (one,) = found.arms, found.contrasts
    assert found.against_base
    assert (one.reference, one.candidate) == ("base", "edited")
    assert one.behaviour.value == pytest.approx(-0.8)
    assert one.behaviour.n == 60
    assert found.spread_of(arm, "behaviour").sd == pytest.approx(0.1)
    assert found.spread_of(arm, "behaviour", "base").value == 1
    assert one.verdict.word == "accept"
    assert one.kl.difference.value == pytest.approx(found.spread_of(arm, "kl").value)


def test_settings_that_change_no_number_keep_an_arm_together(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", labels(2, 20))
    other = {
        "evaluation": {"batch_size": 3},
        "model": {"device": "cpu", "dtype": "bfloat16"},
        "fold": {"merge": True},
        "harness": {"tasks": ["x"]},
    }
    second = write_run(tmp_path / "b", labels(4, 20), seed=1, settings=other)
    assert len(compared(first, second).arms) == 1
    third = write_run(tmp_path / "c", labels(4, 20), settings={"search": {"preset": "heretic"}})
    found = compared(first, third)
    assert found.arms[1].differs["search.preset"] == ("iconoclast", "heretic")


def test_a_setting_that_is_younger_than_a_run_is_its_default(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a", labels(2, 20)), write_run(tmp_path / "b", labels(3, 20))
    manifest = json.loads((second / "manifest.json").read_text())
    del manifest["settings"]["search"]["warm_start"]
    (second / "manifest.json").write_text(json.dumps(manifest))
    assert read_run(first).settings == read_run(second).settings
    manifest["settings"]["search"]["warm_start"] = False
    (second / "manifest.json").write_text(json.dumps(manifest))
    assert compared(first, second).arms[1].differs == {"search.warm_start": (True, False)}


def test_before_and_after_a_change_of_code_the_versions_are_named(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", labels(30, 50))
    second = write_run(tmp_path / "b", labels(5, 50), manifest={"versions": {"iconoclast-tl": "0.2.0"}})
    found = compared(first, second)
    assert found.arms[1].differs == {"versions.iconoclast-tl": ("0.1.0", "0.2.0")}
    assert found.contrasts[0].verdict.word == "accept"


def test_against_names_the_reference_of_runs_with_the_same_settings(tmp_path: Path) -> None:
    old = [write_run(tmp_path / f"old-{seed}", labels(30, 50), seed=seed) for seed in range(2)]
    adapters = [{"evaluated": {"adapter": f"adapters/{seed}"}} for seed in range(2)]
    new = [write_run(tmp_path / f"new-{s}", labels(5, 50), seed=s, results=adapters[s]) for s in range(2)]
    found = compared(*new, against=tuple(old))
    assert [[run.seed for run in arm.runs] for arm in found.arms] == [[0, 1], [0, 1]]
    assert found.contrasts[0].behaviour.value == pytest.approx(-0.5)
    same = [write_run(tmp_path / f"same-{seed}", labels(5, 50), seed=seed) for seed in range(2)]
    with pytest.raises(
        UserError, match=r"old-0 and .*same-0 have the same settings, seed, model and prompts.*--against"
    ):
        compared(*old, *same)
    assert len(compared(*same, against=tuple(old)).contrasts[0].pairs) == 2
    probe = write_run(tmp_path / "probe", labels(5, 50), seed=2, settings=PROBE)
    with pytest.raises(
        UserError, match=r"--against have different settings: got directions\.estimator: 'mean' and 'probe'"
    ):
        compared(*same, against=(*old, probe))


def test_holm_runs_over_all_candidates(tmp_path: Path) -> None:
    """Seven prompts change: p = 2 / 2⁷ = 0.0156 alone, 0.0625 beside three others of the same."""
    first = write_run(tmp_path / "a", labels(17, 20))
    others = [
        write_run(tmp_path / name, labels(10, 20), settings={"directions": {"estimator": name}})
        for name in ("probe", "median", "pca", "lda")
    ]
    (alone,) = compared(first, others[0]).contrasts
    assert (alone.behaviour.p, alone.p_holm, alone.verdict.word) == (2 / 2**7, 2 / 2**7, "accept")
    among = compared(first, *others).contrasts
    assert [one.p_holm for one in among] == [8 / 2**7] * 4
    assert {one.verdict.word for one in among} == {"inconclusive"}
    assert among[0].resolution.n > alone.resolution.n


def test_prompts_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [*labels(30, 48), None, None])
    second = write_run(tmp_path / "b", [None, *labels(5, 49)], settings=PROBE)
    (one,) = compared(first, second).contrasts
    assert (one.behaviour.n, one.behaviour.left_out) == (47, 3)
    nothing = write_run(tmp_path / "c", [None] * 50, settings=PROBE)
    with pytest.raises(UserError, match=r"no target prompt of .*c has a label"):
        compared(first, nothing)


def test_the_goal_says_which_direction_is_better(tmp_path: Path) -> None:
    found = compared(*two(tmp_path, 5, 30, rise=-0.005, search={"goal": "strengthen"}))
    assert found.contrasts[0].verdict.word == "accept"
    assert "higher" in found.rule_in_words
    (other,) = compared(*two(tmp_path / "other", 5, 30, rise=-0.005)).contrasts
    assert other.verdict.reasons == ("the behaviour rate rises, and the goal is to suppress it",)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "budget": ({"settings": {**PROBE, "evaluation": {"max_new_tokens": 100}}}, "budget: 64 and 100"),
    "budget in one arm": ({"settings": {"evaluation": {"max_new_tokens": 100}}}, "budget: 64 and 100"),
    "tokens of the KL": ({"settings": {"evaluation": {"kl_tokens": 8}}}, "kl_tokens: 16 and 8"),
    "goal": ({"settings": {"search": {"goal": "strengthen"}}}, "goal: 'suppress' and 'strengthen'"),
    "behaviour": ({"settings": {"behaviour": "hedging"}}, "behaviour: 'refusal' and 'hedging'"),
    "detector": (
        {"results": {"detectors": {"markers": {"about": {"match": "prefix"}}}}},
        "detector.about.match: 'anywhere' and 'prefix'",
    ),
    "prompts": ({"prompts": "gardens", "settings": PROBE}, "target test prompts"),
    "prompts in one arm": ({"prompts": "gardens"}, "different target test and neutral test prompts"),
    "neutral prompts": (
        {"manifest": {"prompts": {"neutral_test": "f" * 64}}, "settings": PROBE},
        "neutral test prompts",
    ),
    "prompts of another seed": ({"prompts": "gardens", "seed": 1, "settings": PROBE}, "seed: 0 and 1"),
    "sources of another seed": (
        {"prompts": "gardens", "seed": 1, "settings": {"prompts": {"target": "gardens.txt"}}},
        "prompts.target: None and 'gardens.txt'",
    ),
    "model": ({"model": "kitchen", "settings": PROBE}, "model: garden"),
    "template": ({"manifest": {"tokens": "f" * 64}, "settings": PROBE}, "as different tokens: got tokens"),
    "raw prompts": ({"settings": {**PROBE, "prompts": {"raw_prompts": True}}}, "raw_prompts: False and True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_runs_that_cannot_be_compared_are_named_with_what_differs(name: str, tmp_path: Path) -> None:
    change, says = REFUSED[name]
    first, second = (
        write_run(tmp_path / "first", labels(9, 20)),
        write_run(tmp_path / "second", labels(3, 20), **change),
    )
    with pytest.raises(UserError) as caught:
        compared(first, second)
    for part in (str(first), str(second), says):
        assert part in str(caught.value)


def test_a_run_without_a_partner(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"mean-{seed}", labels(9, 20), seed=seed) for seed in range(2)]
    probe = write_run(tmp_path / "probe", labels(3, 20), settings=PROBE)
    with pytest.raises(UserError, match=r"mean-1 of arm A has no partner in arm B.*nearest .*probe: seed: 0 and 1"):
        compared(*runs, probe)
    other = write_run(tmp_path / "other", labels(3, 20), seed=7, settings=PROBE)
    assert len(compared(runs[0], other).contrasts[0].pairs) == 1  # the only ones there are, and the same prompts


def spoiled(place: Path, file: str, content: str) -> Path:
    folder = write_run(place, labels(3, 20), settings=PROBE)
    (folder / file).write_text(content)
    return folder


def test_a_folder_that_cannot_be_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", labels(9, 20))
    rows = (first / "responses.jsonl").read_text().splitlines(keepends=True)
    cases = {
        "is no run folder": tmp_path / "nowhere",
        "was not evaluated": write_run(tmp_path / "a", labels(3, 20)),
        "has no edited model": write_run(tmp_path / "b", labels(3, 20), results={"edited": None}),
        "KeyError: 'nothing'": write_run(tmp_path / "c", labels(3, 20), results={"detector": "nothing"}),
        "cannot read": spoiled(tmp_path / "d", "responses.jsonl", "{"),
        "stand in one responses.jsonl alone": spoiled(tmp_path / "e", "responses.jsonl", "".join(rows[1:])),
        "holds a prompt twice": spoiled(tmp_path / "f", "responses.jsonl", "".join([*rows, rows[0]])),
        "has no neutral prompts": spoiled(tmp_path / "g", "responses.jsonl", "".join(rows[:20])),
        "KeyError: 'kl_sequence'": spoiled(
            tmp_path / "h", "responses.jsonl", "".join(rows).replace("kl_sequence", "kl_something")
        ),
        "is named twice": first,
    }
    (cases["was not evaluated"] / "results.json").unlink()
    for message, folder in cases.items():
        with pytest.raises(UserError) as caught:
            compared(first, folder)
        assert message in str(caught.value)
        assert str(folder) in str(caught.value)
    with pytest.raises(UserError, match="two runs or more"):
        compared(first)
    with pytest.raises(UserError, match="--resolve"):
        compare_runs([first, spoiled(tmp_path / "i", "x", "")], [], Rule(), 0.0)


def test_what_is_written_holds_everything_and_needs_no_network(tmp_path: Path) -> None:
    found = compared(*two(tmp_path, 50, 0, rise=-0.005))
    write_comparison(tmp_path / "out", found)
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (one,) = kept["contrasts"]
    assert one["behaviour"]["cohens_d"]["says"] == "minus infinite"
    assert one["pairs"][0]["behaviour"]["reference"] == 1
    assert one["pairs"][0]["behaviour"]["candidate"] == 0
    assert one["behaviour"]["p_holm"] == one["behaviour"]["p"]
    assert {run["arm"] for run in kept["runs"]} == {"A", "B"}
    assert kept["runs"][1]["base_against_edited"]["behaviour"]["lost"] == 50
    assert kept["rule"]["words"] == found.rule_in_words
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script src" not in page
    assert found.rule_in_words.replace("<", "&lt;").replace(">", "&gt;") in page
    with pytest.raises(UserError, match="is a run's folder"):
        write_comparison(tmp_path / "mean", found)
    assert not (tmp_path / "mean" / "comparison.json").exists()
