"""What a verification finds: how far what was folded is from its preview, at the logits and module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from iconoclast_tl.folding.by_module import ModuleCheck


@dataclass(frozen=True)
class LogitCheck:
    """Largest difference of any logit at any prompt position, against its tolerance."""

    max_abs_logit_diff: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_abs_logit_diff <= self.tolerance

    def to_json(self) -> dict[str, float | bool]:
        """As it stands in results.json."""
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How far adapter and merged weights are from the preview, and what the edit leaves of its direction."""

    preview_vs_adapter: LogitCheck
    adapter_by_module: ModuleCheck
    preview_vs_merged: LogitCheck | None
    """None where no merged weights were asked for."""
    merged_by_module: ModuleCheck | None
    merged_dtype: str | None
    """In which those are stored."""
    preview_vs_base: float
    """Largest logit difference that the edit makes: what the agreements are small against."""
    residual_fraction: Mapping[str, float]
    n_matrices: int
    """Edited matrices, every expert counted."""
    n: int
    """Prompts."""

    def __repr__(self) -> str:
        """Such as `Fidelity(ok: adapter differs by 7.6e-06, tolerance 4e-05; modules by 2e-07; 200 prompts)`."""
        said = [_said("adapter differs", self.preview_vs_adapter, self.adapter_by_module)]
        if self.preview_vs_merged is not None and self.merged_by_module is not None:
            said.append(_said("merged weights differ", self.preview_vs_merged, self.merged_by_module))
        return f"Fidelity({'ok' if self.ok else 'NOT the preview'}: {'; '.join(said)}; {self.n} prompts)"

    @property
    def ok(self) -> bool:
        """Whether everything that was folded agrees with the preview."""
        merged = (self.preview_vs_merged, self.merged_by_module)
        return self.preview_vs_adapter.ok and self.adapter_by_module.ok and all(one is None or one.ok for one in merged)

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {
            "ok": self.ok,
            "n": self.n,
            "preview_vs_adapter": self.preview_vs_adapter.to_json(),
            "adapter_by_module": self.adapter_by_module.to_json(),
            "preview_vs_merged": self.preview_vs_merged.to_json() if self.preview_vs_merged else None,
            "merged_by_module": self.merged_by_module.to_json() if self.merged_by_module else None,
            "merged_dtype": self.merged_dtype,
            "preview_vs_base": self.preview_vs_base,
            "n_matrices": self.n_matrices,
            "residual_fraction": dict(self.residual_fraction),
        }


def _said(what: str, logits: LogitCheck, modules: ModuleCheck) -> str:
    where = "" if modules.ok else f" at {modules.module}"
    return (
        f"{what} by {logits.max_abs_logit_diff:.2g}, tolerance {logits.tolerance:.2g}; "
        f"modules by {modules.max_relative_error:.2g}{where}"
    )
