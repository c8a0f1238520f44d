"""The notebooks run from top to bottom, and what is stored in them is what a run shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from scripts.notebooks import executed, stripped

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
PICTURES = {"image/png", "image/svg+xml"}


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def kinds_of(notebook: Any) -> set[str]:
    return {kind for output in outputs_of(notebook) for kind in output.get("data", {})}


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    now = executed(path)
    assert kinds_of(now) & PICTURES == kinds_of(nbformat.read(path, as_version=4)) & PICTURES


def test_a_cell_that_raises_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_was_run_and_names_no_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert kinds_of(notebook) & PICTURES
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs_of(notebook))
    texts = [
        output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs_of(notebook)
    ]
    assert not re.search(r"(?<![\w.])/(?:[\w.\-]+/)+[\w.\-]+", "\n".join(texts))


def test_paths_times_and_warnings_are_not_stored() -> None:
    cell = new_code_cell("x", metadata={"execution": {"iopub.execute_input": "2026-11-28T00:00:00"}})
    said = new_output("stream", name="stdout", text="written to /somewhere/on/this/machine/adapter\n1/2 and a/b stay")
    cell.outputs = [new_output("stream", name="stderr", text="a warning"), said]
    clean = stripped(new_notebook(cells=[cell, new_markdown_cell("x")]))
    assert clean.cells[0].metadata == {}
    assert [output.text for output in clean.cells[0].outputs] == ["written to adapter\n1/2 and a/b stay"]
