"""The one exception that means *the user can mend this*.

The command line prints it as one line and exits with status 2; everything else is a defect and exits with status 1.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what was asked for: what, got, want, how to mend, on one line. A `ValueError`, for notebooks.

    `str(error)` is ``what: got …; want …; how to mend``, each part only where it was given, so that every message has
    the same shape wherever it is raised.
    """

    def __init__(self, what: str, *, got: object = None, want: object = None, mend: str | None = None) -> None:
        details = [f"{label} {value}" for label, value in (("got", got), ("want", want)) if value is not None]
        if mend is not None:
            details.append(mend)
        line = f"{what}: {'; '.join(details)}" if details else what
        # Names out of files are quoted in errors: they must not move a terminal's cursor or turn its text round.
        line = "".join(one if one.isprintable() or one.isspace() else "\N{REPLACEMENT CHARACTER}" for one in line)
        super().__init__(" ".join(line.split()))
