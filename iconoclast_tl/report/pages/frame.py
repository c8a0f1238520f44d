"""An HTML page of lines, tables and plotly figures that needs no network: everything is in it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

STYLE = """body { font-family: system-ui, sans-serif; max-width: 1100px; margin: 2em auto; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } p, li { line-height: 1.5; }"""


def figure_page(title: str, lines: Sequence[str], figures: Sequence[Any], table: str = "") -> str:
    """The page; `lines` are plain text, `table` is HTML, figures share one copy of plotly."""
    bodies = [figure.to_html(full_html=False, include_plotlyjs=not number) for number, figure in enumerate(figures)]
    return "\n".join(
        [
            f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>",
            f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
            *(f"<p>{html.escape(line)}</p>" for line in lines),
            table,
            *bodies,
            "</body></html>",
        ]
    )
