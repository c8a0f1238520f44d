"""Sphinx builds this site with `make docs`: pages in Markdown (MyST), the Python reference from the docstrings.

What follows from the code is written from the code before every build (`scripts/reference.py`): settings, command
line, list of modules, public names. The build needs no network, and neither does the site.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import iconoclast_tl  # noqa: E402
from scripts.reference import write_reference  # noqa: E402

write_reference(ROOT / "docs" / "reference" / "_generated")

project = "iconoclast_tl"
author = copyright = "The iconoclast_tl authors"  # noqa: A001
release = version = iconoclast_tl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build", "reference/_generated"]
source_suffix = {".md": "markdown"}
nitpicky = True
# Types of torch, pydantic and of rooms that are not public have no page to link to.
nitpick_ignore_regex = [("py:.*", ".*")]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
default_role = "code"
smartquotes = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = "iconoclast_tl"
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True


def as_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain prose with Markdown's backticks: an indented block is code, and * and | are themselves."""
    written: list[str] = []
    for line in lines:
        after_blank = bool(written) and not written[-1].strip()
        starts_block = line.startswith("    ") and after_blank and not _in_block(written)
        if starts_block:
            written += ["::", ""]
        written.append(line if line.startswith("    ") else _escaped(line))
    lines[:] = written


def _in_block(written: list[str]) -> bool:
    said = [line for line in written if line.strip()]
    return bool(said) and said[-1].startswith("    ")


def _escaped(line: str) -> str:
    """What reStructuredText would take for emphasis, substitution or reference, outside of backticks."""
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([*|])", r"\\\1", re.sub(r"(\w)_(?!\w)", r"\1\\_", piece))
        for piece in pieces
    )


def without_modules(app: Any, what: str, name: str, obj: Any, options: Any, given: Any, returned: Any) -> Any:
    """The signatures that dataclasses write name types by their modules; a reader wants `Float[Tensor, "n d"]`."""
    return tuple(text and re.sub(r"~?\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text) for text in (given, returned))


def setup(app: Any) -> None:
    """Connect what reads docstrings and signatures."""
    app.connect("autodoc-process-signature", without_modules)
    app.connect("autodoc-process-docstring", as_restructured_text)
