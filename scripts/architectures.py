"""Run the conformance suite and write its table into the docs: `python -m scripts.architectures`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "architectures.md"
START, END = "<!-- architectures -->", "<!-- /architectures -->"
COLUMNS = (
    "architecture", "transformers", "writers", "TransformerLens", "affine", "row norms", "by themselves",
    "largest difference",
)  # fmt: skip


def main() -> None:
    """Every architecture in turn; exit status 1 where a check fails, and then nothing is written."""
    from iconoclast_tl.cli.console import quieten_libraries
    from iconoclast_tl.foundation.progress import rich_track
    from tests.architectures import ARCHITECTURES

    quieten_libraries()
    logging.disable(logging.WARNING)
    rows = [row(name) for name in rich_track(list(ARCHITECTURES), "architectures", len(ARCHITECTURES))]
    write(rows)


def row(name: str) -> list[str]:
    """One architecture's line of the table."""
    from iconoclast_tl.doctor.checks import Check, examine
    from iconoclast_tl.models.config import ModelConfig
    from iconoclast_tl.models.load import load_model
    from tests.architectures import save_architecture

    with TemporaryDirectory() as place:
        model = load_model(ModelConfig(name=str(save_architecture(Path(place), name)), device="cpu"))
        checks: Mapping[str, Check] = {check.name: check for check in (ask() for ask in examine(model, saved=True))}
    failed = [check.name for check in checks.values() if check.ok is False]
    if failed:
        sys.exit(f"{name} fails: {', '.join(failed)}; {PAGE.name} is left as it was")
    affine = checks["fold: affine"]
    folds = [
        check.measured for check in checks.values() if check.name.startswith("fold") and check.measured is not None
    ]
    return [
        name,
        type(model.hf).__name__,
        checks["writers"].note,
        "equal" if checks["TransformerLens"].ok else "not used",
        "–" if affine.ok is None else "adapter" if affine.note else "adapter, merged",
        "–" if checks["fold: rows pre"].ok is None else "pre, full",
        ", ".join(part for part in ("heads", "neurons", "experts") if checks[f"fold: {part}"].ok),
        f"{max(folds):.0e}",
    ]


def write(rows: list[list[str]]) -> None:
    """Put the table between its marks."""
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text("\n".join([before + START, *lines, END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
