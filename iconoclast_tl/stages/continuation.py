"""What must stay the same when a run folder is continued: model, dtype, prompts, tokens; directions once searched.

The manifest also names the plugins that a run was made with: a missing one is named in an error, and never loaded from
there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from iconoclast_tl.directions.config import SHOWN_ONLY, DirectionConfig
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.plugins import plugin_records
from iconoclast_tl.foundation.registry import UnknownPartError

NOT_OF_LABELS: Final = {
    "min_confidence", "device", "batch_size", "concurrency", "retries", "timeout", "cache", "key_variable",
}  # fmt: skip
"""Detector settings that change no label of a search, which always takes the likeliest class."""


def require_same_directions(now: DirectionConfig, before: DirectionConfig) -> None:
    """Raise `UserError` where the directions of an earlier search would change; settings of their display may."""
    for name in DirectionConfig.model_fields:
        if name not in SHOWN_ONLY and getattr(now, name) != getattr(before, name):
            raise UserError(
                f"the output folder holds a search by another directions.{name}",
                got=getattr(now, name),
                want=getattr(before, name),
                mend="leave the setting as it was or pass another --out",
            )


def require_same_detector(now: EvaluationConfig, before: EvaluationConfig) -> None:
    """Raise `UserError` where the detector of an earlier search would label differently now.

    Marker settings are not looked at here: they may never change (`stages.settings`).
    """
    name = now.detector
    if name not in ("classifier", "nli", "judge"):
        return
    new, old = (getattr(config, name).model_dump(exclude=NOT_OF_LABELS) for config in (now, before))
    changed = [key for key in new if new[key] != old[key]]
    if changed:
        raise UserError(
            f"the output folder holds a search by another {name}",
            got=", ".join(f"{key} {new[key]!r}" for key in changed),
            want=", ".join(f"{key} {old[key]!r}" for key in changed),
            mend="leave its settings as they were or pass another --out",
        )


@contextmanager
def naming_plugins(manifest: Mapping[str, Any] | None) -> Iterator[None]:
    """Where a part is not there that the folder was made with, say which plugin has it and how to pass it."""
    try:
        yield
    except UnknownPartError as error:
        record = _plugin_of(f"{error.kind} {error.name}", (manifest or {}).get("plugins", ()))
        if record is None:
            raise
        origin = f"{record['distribution']} {record['version']}" if record["distribution"] else record["module"]
        spec = record["spec"]
        raise UserError(
            f"the run folder was made with the {error.kind} {error.name} of a plugin that is not loaded",
            got=f"none by this name; it was in {origin}",
            mend=f"pass --plugin {spec}" if spec else "install it, or register it again before the folder is opened",
        ) from error


def require_same_code(now: EvaluationConfig, manifest: Mapping[str, Any]) -> None:
    """A user's own detector by which a search went has the code that it had then."""
    part = f"detector {now.detector}"
    new, old = _plugin_of(part, plugin_records()), _plugin_of(part, manifest.get("plugins", ()))
    if new is not None and old is not None and new["digest"] != old["digest"]:
        raise UserError(
            f"the output folder holds a search by another {now.detector}",
            got=f"changed code in {new['module']}",
            mend="restore it, or pass another --out",
        )


def plugins_known(manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest's entry: the plugins of this process, and those that the folder was made with; empty without any."""
    by_module = {one["module"]: one for one in (*(manifest or {}).get("plugins", ()), *plugin_records())}
    return {"plugins": list(by_module.values())} if by_module else {}


def _plugin_of(part: str, records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((one for one in records if part in one["parts"]), None)


def require_same_run(
    folder: Path, manifest: Mapping[str, Any], dtype: str, fingerprint: str, prompts: Mapping[str, str], tokens: str
) -> None:
    """Raise `UserError` where a folder's manifest is of another dtype, other weights, other prompts or other tokens.

    prompts: the digest of every set, by name. tokens: the digest of all of them as token rows.
    """
    model = manifest["model"]
    if model["dtype"] != dtype:
        raise UserError(
            f"the output folder {folder} holds a run in another dtype",
            got=dtype,
            want=model["dtype"],
            mend=f"pass --dtype {model['dtype']} or another --out",
        )
    there = model["fingerprint"]
    if there != fingerprint:
        raise UserError(
            f"the output folder {folder} belongs to another model",
            got=f"weights {fingerprint[:12]}",
            want=f"weights {there[:12]} ({model['name']})",
            mend="pass another --out",
        )
    changed = [name for name, value in prompts.items() if manifest["prompts"].get(name) != value]
    if changed:
        raise UserError(
            f"the output folder {folder} was made with other prompts",
            got=f"changed: {', '.join(changed)}",
            mend="restore the prompt files or pass another --out",
        )
    if manifest["tokens"] != tokens:
        raise UserError(
            f"the output folder {folder} was made with other tokens of the same prompts",
            got="a changed tokenizer or chat template (one with a date in it changes daily)",
            mend="restore it or pass another --out",
        )
