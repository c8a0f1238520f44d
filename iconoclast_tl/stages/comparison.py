"""Read run folders and compare them: `iconoclast-tl compare`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_jsonl, write_json, write_text
from iconoclast_tl.report.pages.comparison import comparison_page
from iconoclast_tl.run_comparison.arms import EDIT
from iconoclast_tl.run_comparison.compare import Comparison, compare_arms
from iconoclast_tl.run_comparison.runs import ComparedRun
from iconoclast_tl.run_comparison.verdict import Rule
from iconoclast_tl.search.presets import PRESETS
from iconoclast_tl.stages.results import published
from iconoclast_tl.stages.run_folder import RunFolder
from iconoclast_tl.stages.settings import Settings, flatten, merge

NOT_OF_AN_ARM = (
    "seed", "model.", "prompts.", "activations.batch_size", "activations.through", "attribution.", "fold.",
    "evaluation.", "harness.", "behaviour",
)  # fmt: skip
"""Settings (or their beginnings) in which runs of one arm may differ: over what a result is averaged, how it was
computed, and what `ComparedRun.terms` holds of them."""
DEFAULT_RULE = Rule()
"""That of the command line."""
TESTED = ("target_test", "neutral_test")


def compare_runs(
    runs: Sequence[str | PathLike[str]],
    against: Sequence[str | PathLike[str]] = (),
    rule: Rule = DEFAULT_RULE,
    resolve: float = 0.05,
) -> Comparison:
    """Compare the runs in these folders; `UserError` for fewer than two, for one named twice, and for other folders.

    against: runs of the reference, where the first of `runs` is not it. rule: when an arm is accepted. resolve: the
    difference of rates for which the result also says how many prompts resolve it.
    """
    reference, candidates = [Path(path) for path in against], [Path(path) for path in runs]
    everything = [*reference, *candidates]
    if not candidates or len(everything) < 2:
        raise UserError("a comparison takes two runs or more", got=len(everything), want="RUN_A RUN_B …")
    places = [path.resolve() for path in everything]
    for path, place in zip(everything, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"the run {path} is named twice")
    return compare_arms([read_run(path) for path in candidates], [read_run(path) for path in reference], rule, resolve)


def write_comparison(place: Path, found: Comparison) -> None:
    """Write comparison.json and comparison.html into `place`; `UserError` where that is a run's own folder."""
    if RunFolder(place).manifest.exists():
        raise UserError(f"{place} is a run's folder", got="a comparison to write", mend="pass another --out")
    page = comparison_page(found)
    write_json(place / "comparison.json", found.to_json())
    write_text(place / "comparison.html", page)


def read_run(path: Path) -> ComparedRun:
    """Read an evaluated run; `UserError` for a folder without a run, or whose run has no evaluated edit."""
    folder = RunFolder(path)
    if not folder.manifest.is_file():
        raise UserError(f"{path} is no run folder", want="a folder with a manifest.json, as `run` makes it")
    manifest, results = folder.read_manifest() or {}, published(folder)
    if not results.get("edited"):
        raise UserError(f"the run {path} has no edited model", got="an evaluation of a model by itself")
    try:
        return _run(folder, manifest, results)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the evaluation in {path} lacks what a comparison needs",
            got=f"{type(error).__name__}: {error}",
            mend=f"`iconoclast-tl evaluate --out {path}` with this version",
        ) from error


def _run(folder: RunFolder, manifest: Mapping[str, Any], results: Mapping[str, Any]) -> ComparedRun:
    settings = _settings(manifest["settings"])
    rows = list(read_jsonl(folder.responses))
    target, neutral = ({row["id"]: row for row in rows if row["set"] == name} for name in ("target", "neutral"))
    if len(target) + len(neutral) != sum(row["set"] in ("target", "neutral") for row in rows):
        raise UserError(f"{folder.responses} holds a prompt twice", want="one row a prompt")
    if not target or not neutral:
        raise UserError(f"{folder.responses} has no {'neutral' if target else 'target'} prompts")
    rest = {key: value for key, value in settings.items() if key.startswith(NOT_OF_AN_ARM)}
    digests = dict(manifest["prompts"])
    return ComparedRun(
        path=str(folder.path),
        seed=int(settings["seed"]),
        model=manifest["model"]["name"],
        fingerprint=manifest["model"]["fingerprint"],
        settings={key: value for key, value in settings.items() if key not in rest} | {EDIT: _edit(results)},
        circumstances={
            **rest,
            "model.dtype": manifest["model"].get("dtype"),
            "tokens": manifest["tokens"],
            "digests": tuple(sorted(digests.items())),
            **{f"versions.{name}": version for name, version in manifest.get("versions", {}).items()},
        },
        prompts={name: digests[name] for name in TESTED},
        terms=_terms(settings, results),
        target={key: _labels(row) for key, row in target.items()},
        neutral={key: _labels(row) for key, row in neutral.items()},
        kl={key: _nats(row, folder) for key, row in neutral.items()},
    )


def _settings(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings; a setting that the run does not have yet takes its preset's value, or the default."""
    preset = PRESETS.get(nested.get("search", {}).get("preset"), {})
    return flatten(merge(merge(Settings().model_dump(mode="json"), preset), nested))


def _edit(results: Mapping[str, Any]) -> str:
    """What was evaluated, where the settings do not tell: an adapter, or a previewed edit."""
    if adapter := results["evaluated"].get("adapter"):
        return f"adapter {adapter}"
    return str((results.get("chosen") or {}).get("previewed", "searched"))


def _terms(settings: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    name = results["detector"]
    return {
        "goal": settings["search.goal"],
        "behaviour": settings["behaviour"],
        "budget": results["budget"],
        "kl_tokens": results["edited"]["kl_sequence"]["tokens"],
        "detector": {"name": name, "about": results["detectors"][name]["about"]},
    }


def _labels(row: Mapping[str, Any]) -> tuple[bool | None, bool | None]:
    return row["base"]["behaviour"], row["edited"]["behaviour"]


def _nats(row: Mapping[str, Any], folder: RunFolder) -> float:
    value = float(row["edited"]["kl_sequence"])
    if not math.isfinite(value):
        raise UserError(f"{folder.responses} has a KL that is no number", got=value)
    return value
