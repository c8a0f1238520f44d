"""Run the notebooks of `examples/` and store what they show: `python -m scripts.notebooks [NAME.ipynb …]`.

Stored are results and pictures. What would differ on another machine is left out: progress and warnings, the times of
cells, the version of Python, and paths. The tests run the same notebooks and fail where a cell raises.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
TIMEOUT = 600
"""Seconds that a cell may take."""


def main() -> None:
    """Run the notebooks that are named, or all, and write them back."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(EXAMPLES.glob("*.ipynb")):
        store(path, stripped(executed(path)))
        print(path.name)


def executed(path: Path) -> Any:
    """The notebook with the outputs of a run in an empty folder; raises `CellExecutionError` where a cell does."""
    import nbformat
    from nbclient import NotebookClient

    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    root = str(EXAMPLES.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=TIMEOUT, resources=place, coalesce_streams=True)
        client.execute(env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)})
    return notebook


def stripped(notebook: Any) -> Any:
    """Without what differs from machine to machine."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.pop("metadata", None)
                if "text" in output:
                    output.text = without_paths(output.text)
                if "data" in output:
                    output.metadata = {}
                    output.data = {kind: _clean(kind, text) for kind, text in output.data.items()}
    return notebook


def _clean(kind: str, content: Any) -> Any:
    return without_paths(content) if isinstance(content, str) and kind.startswith("text/") else content


def without_paths(text: str) -> str:
    """Absolute paths are cut down to their last part."""
    return re.sub(r"(?<![\w.])/(?:[\w.\-]+/)+([\w.\-]+)", r"\1", text)


def store(path: Path, notebook: Any) -> None:
    """Write a notebook, valid by its schema."""
    import nbformat

    nbformat.validate(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
