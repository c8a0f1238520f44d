"""Check every link of the documents, without the network: `python -m scripts.links [BUILT_SITE]`.

Markdown files: a relative link names a file that is there, and its anchor a heading of that file. Notebooks: the links
of their Markdown cells. A built site: every internal link of every page leads to a page and an id that are there.
External links are checked for their form only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:href|src|srcset)=\"([^\"]+)\"")


def main() -> None:
    """Print every broken link; exit status 1 where there is one."""
    broken = [problem for path in documents() for problem in broken_in(path)]
    if len(sys.argv) > 1:
        broken += broken_in_site(Path(sys.argv[1]))
    print("\n".join(broken) or "every link leads somewhere")
    sys.exit(bool(broken))


def documents() -> list[Path]:
    """Every Markdown file and notebook that git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md", "*.ipynb"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in sorted(set(listed)) if (ROOT / name).is_file()]


def broken_in(path: Path) -> list[str]:
    """What is wrong with the links of one document, a line each."""
    problems = []
    for link in links_of(prose_of(path)):
        if reason := why_broken(path, link):
            name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            problems.append(f"{name}: {link}: {reason}")
    return problems


def links_of(text: str) -> Iterator[str]:
    """Targets of links and pictures, outside of code."""
    text = re.sub(r"^(```+|~~~+).*?^\1", "", text, flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    for markdown, html in LINK.findall(text):
        yield markdown or html


def prose_of(path: Path) -> str:
    """A Markdown file, or the Markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def why_broken(path: Path, link: str) -> str | None:
    """Why a link of `path` leads nowhere; None where it leads somewhere, or outside."""
    parts = urlsplit(link)
    if parts.scheme:
        fine = (parts.scheme in ("http", "https") and "." in parts.netloc) or parts.scheme == "mailto"
        return None if fine else "no address"
    place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not place.exists():
        return "there is no such file"
    if parts.fragment and place.suffix in (".md", ".ipynb") and parts.fragment not in anchors_of(prose_of(place)):
        return "there is no such heading"
    return None


def anchors_of(text: str) -> set[str]:
    """What headings are called in links, as GitHub and MyST do it."""
    text = re.sub(r"^(```+|~~~+).*?^\1", "", text, flags=re.M | re.S)
    slugs: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in slugs:
            number += 1
        slugs.add(name)
    return slugs


class _Page(HTMLParser):
    """The ids and the links of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what can be linked to, and what is."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if value and ((name == "href" and tag in ("a", "link")) or name == "src"):
                self.links.append(value)


def broken_in_site(folder: Path) -> list[str]:
    """What is wrong with the internal links of a built site, a line each."""
    pages: dict[Path, _Page] = {}
    for path in sorted(folder.resolve().rglob("*.html")):
        pages[path] = _Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    problems = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not place.exists():
                problems.append(f"{path.name}: {link}: there is no such page")
            elif parts.fragment and place in pages and unquote(parts.fragment) not in pages[place].ids:
                problems.append(f"{path.name}: {link}: there is no such id")
    return problems


if __name__ == "__main__":
    main()
