"""The conformance suite: every check of the doctor on a tiny random model of every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from iconoclast_tl.architecture.writers import require_writers
from iconoclast_tl.doctor.checks import Check, examine
from iconoclast_tl.models.model import Model
from tests.architectures import ARCHITECTURES, save_architecture


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_conforms(name: str, load: Callable[..., Model], tmp_path: Path) -> None:
    model, architecture = load(save_architecture(tmp_path / "model", name)), ARCHITECTURES[name]
    writers = require_writers(model.hf)
    assert sum(writer.n_matrices for writer in writers.values()) == architecture.matrices
    checks = {check.name: check for check in (ask() for ask in examine(model, saved=True))}
    assert not [check for check in checks.values() if check.ok is False]
    left_out = {name for name, check in checks.items() if check.ok is None}
    dense = all(writer.is_dense for writer in writers.values())
    expected = {"fold: experts"} if dense else {"fold: affine", "fold: rows pre", "fold: rows full"}
    if not any(writer.is_dense for site, writer in writers.items() if site.component == "mlp_out"):
        expected |= {"fold: neurons"}
    assert left_out == expected | (set() if architecture.bridged else {"TransformerLens"})
    assert all(tells(check) for check in checks.values())


def tells(check: Check) -> bool:
    """Whether a check that was left out says why."""
    return check.ok is not None or bool(check.note)
