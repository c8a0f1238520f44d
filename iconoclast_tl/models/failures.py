"""What is said where a library could not load something."""

from __future__ import annotations

from iconoclast_tl.foundation.errors import UserError


def not_loaded(name: str, error: Exception) -> UserError:
    """What is said of a model that a library could not load."""
    return UserError(
        f"cannot load the model {name}",
        got=first_line(error),
        want="a hub id that can be reached, a folder with a causal language model, or a GGUF file",
    )


def loading_errors() -> tuple[type[Exception], ...]:
    """What libraries raise for a folder or hub id that cannot be had, or whose files do not fit each other."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)


def first_line(error: Exception) -> str:
    """The first line that says something: what ends in a colon is read together with what follows it."""
    lines = (str(error) or type(error).__name__).splitlines()
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
