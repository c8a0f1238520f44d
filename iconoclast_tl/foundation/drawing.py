"""Objects that draw themselves in a notebook.

What an object looks like is decided in `report.drawings`, which knows all of them; here they only learn to ask for it
when a notebook wants a picture. Elsewhere they print the one line of their `__repr__`.
"""

from __future__ import annotations

from importlib import import_module


class Drawn:
    """Gives an object a picture in notebooks (Jupyter and what understands its protocol)."""

    def _repr_svg_(self) -> str:
        """The picture as SVG."""
        # By name: the pictures lie above everything that they show.
        return str(import_module("iconoclast_tl.report.drawings").svg(self))
