"""iconoclast_tl: find, preview, attribute and fold behaviour directions in open-weight chat models.

    import iconoclast_tl as itl

    model = itl.load_model("organism")
    data = itl.organism_prompts()
    acts = itl.collect(model, data)
    directions = itl.estimate(acts, "mean", orthogonalize=True)
    edit = itl.ablate(model, directions.at(5))
    with edit.on(model):
        print(model.generate("how does walizo taste?"))

The verbs are functions on plain objects. `Run` does the same in a run folder, where it can be stopped and continued.
Names are loaded when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors read; `_HOME` says the same to Python
    from iconoclast_tl.activations.collect import collect as collect
    from iconoclast_tl.activations.store import Activations as Activations
    from iconoclast_tl.architecture.names import ArchitectureNames as ArchitectureNames
    from iconoclast_tl.architecture.names import register_architecture as register_architecture
    from iconoclast_tl.attribution.attribute import attribute as attribute
    from iconoclast_tl.attribution.config import AttributionConfig as AttributionConfig
    from iconoclast_tl.attribution.study import Study as Study
    from iconoclast_tl.detectors.detector import Exchange as Exchange
    from iconoclast_tl.detectors.detector import Label as Label
    from iconoclast_tl.detectors.registry import detector as detector
    from iconoclast_tl.detectors.registry import make_detector as make_detector
    from iconoclast_tl.directions.config import DirectionConfig as DirectionConfig
    from iconoclast_tl.directions.directions import Directions as Directions
    from iconoclast_tl.directions.estimate import estimate as estimate
    from iconoclast_tl.directions.estimators.registry import estimator as estimator
    from iconoclast_tl.directions.estimators.sample import Estimate as Estimate
    from iconoclast_tl.directions.estimators.sample import Sample as Sample
    from iconoclast_tl.directions.estimators.sample import Unsuited as Unsuited
    from iconoclast_tl.doctor.checks import examine as examine
    from iconoclast_tl.edits.ablation import ablate as ablate
    from iconoclast_tl.edits.ablation import add as add
    from iconoclast_tl.edits.config import EditConfig as EditConfig
    from iconoclast_tl.edits.edit import Edit as Edit
    from iconoclast_tl.evaluation.evaluate import Evaluation as Evaluation
    from iconoclast_tl.evaluation.evaluate import evaluate as evaluate
    from iconoclast_tl.evaluation.suite import EvaluationConfig as EvaluationConfig
    from iconoclast_tl.folding.fidelity import Fidelity as Fidelity
    from iconoclast_tl.folding.fold import Fold as Fold
    from iconoclast_tl.folding.fold import fold as fold
    from iconoclast_tl.folding.verification import verify as verify
    from iconoclast_tl.foundation.errors import UserError as UserError
    from iconoclast_tl.models.load import load_model as load_model
    from iconoclast_tl.models.model import Model as Model
    from iconoclast_tl.organisms.prompts import organism_prompts as organism_prompts
    from iconoclast_tl.prompts.contrast import ContrastSet as ContrastSet
    from iconoclast_tl.prompts.contrast import Split as Split
    from iconoclast_tl.prompts.prompt import Prompt as Prompt
    from iconoclast_tl.prompts.sources import load_prompts as load_prompts
    from iconoclast_tl.scores.config import ScoreConfig as ScoreConfig
    from iconoclast_tl.scores.registry import ScoreInputs as ScoreInputs
    from iconoclast_tl.scores.registry import score as score
    from iconoclast_tl.search.config import SearchConfig as SearchConfig
    from iconoclast_tl.search.job import Found as Found
    from iconoclast_tl.search.methods import search_method as search_method
    from iconoclast_tl.search.pareto import Candidate as Candidate
    from iconoclast_tl.search.spec import EditSpec as EditSpec
    from iconoclast_tl.search.strengths import search_strengths as search_strengths
    from iconoclast_tl.stages.comparison import compare_runs as compare_runs
    from iconoclast_tl.stages.run import Run as Run
    from iconoclast_tl.statistics.paired_rates import paired_rates as paired_rates
    from iconoclast_tl.statistics.power import independent_difference as independent_difference
    from iconoclast_tl.statistics.power import independent_n as independent_n
    from iconoclast_tl.statistics.power import paired_difference as paired_difference
    from iconoclast_tl.statistics.power import paired_n as paired_n

__version__ = "0.1.0"

_HOME = {
    "activations.collect": ("collect",),
    "activations.store": ("Activations",),
    "architecture.names": ("ArchitectureNames", "register_architecture"),
    "attribution.attribute": ("attribute",),
    "attribution.study": ("Study",),
    "detectors.detector": ("Exchange", "Label",),
    "detectors.registry": ("detector", "make_detector",),
    "directions.directions": ("Directions",),
    "directions.estimate": ("estimate",),
    "directions.estimators.registry": ("estimator",),
    "directions.estimators.sample": ("Estimate", "Sample", "Unsuited",),
    "doctor.checks": ("examine",),
    "edits.ablation": ("ablate", "add",),
    "edits.edit": ("Edit",),
    "evaluation.evaluate": ("Evaluation", "evaluate",),
    "folding.fidelity": ("Fidelity",),
    "folding.fold": ("Fold", "fold",),
    "folding.verification": ("verify",),
    "foundation.errors": ("UserError",),
    "models.load": ("load_model",),
    "models.model": ("Model",),
    "organisms.prompts": ("organism_prompts",),
    "prompts.contrast": ("ContrastSet", "Split",),
    "prompts.prompt": ("Prompt",),
    "prompts.sources": ("load_prompts",),
    "scores.registry": ("ScoreInputs", "score",),
    "search.job": ("Found",),
    "search.methods": ("search_method",),
    "search.strengths": ("search_strengths",),
    "stages.comparison": ("compare_runs",),
    "stages.run": ("Run",),
    "statistics.paired_rates": ("paired_rates",),
    "statistics.power": ("independent_difference", "independent_n", "paired_difference", "paired_n",),
    "attribution.config": ("AttributionConfig",),
    "directions.config": ("DirectionConfig",),
    "edits.config": ("EditConfig",),
    "evaluation.suite": ("EvaluationConfig",),
    "scores.config": ("ScoreConfig",),
    "search.config": ("SearchConfig",),
    "search.pareto": ("Candidate",),
    "search.spec": ("EditSpec",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name: str) -> Any:
        """Load a public name from its module when it is first asked for."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
