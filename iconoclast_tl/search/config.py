"""Settings of every search: by gradient, by TPE, or by TPE outside and gradient inside."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from iconoclast_tl.attribution.config import MethodName
from iconoclast_tl.directions.config import Difference, EstimatorName
from iconoclast_tl.foundation.stage_config import Changeable, StageConfig, require_part
from iconoclast_tl.search.objective import Goal, KlKind
from iconoclast_tl.search.pareto import Rule
from iconoclast_tl.search.space import KernelSpace


def _known_method(name: str) -> str:
    if name in get_args(BuiltIn):
        return name
    from iconoclast_tl.search.methods import METHODS  # which needs this module, and brings optuna along

    return require_part(METHODS, name)


BuiltIn = Literal["gradient", "tpe", "outer"]
Method = Annotated[str, AfterValidator(_known_method)]
"""A name in `search.methods.METHODS`."""
ProfileName = Literal["free", "kernel", "head", "neuron"]


class GradientConfig(StageConfig):
    """The search by gradient through the hooks."""

    prompts: int = Field(48, ge=2)
    """Train prompts of each side that the gradient sees."""
    batch_size: int = Field(8, ge=1)
    """Prompts of each side in one step."""
    steps: int = Field(4, ge=1)
    """Steps of Adam at every price."""
    learning_rate: float = Field(0.2, gt=0)
    """Adam's, in units of strength."""
    margin: float = Field(3.0, ge=0)
    """How far below even the log-odds of the behaviour are pressed, in nats."""
    prices: tuple[float, float, int] = (400.0, 1.0, 7)
    """Weights of the KL, from strict to loose: first, last, how many (a geometric grid, walked from its middle to both
    ends). In units of one over the KL that a typical direction costs at strength 1 on this model, so that the same grid
    suits all."""
    profile: ProfileName = "free"
    """`free`: a strength for every site; `kernel`: four numbers a component; `head`: one for every head and every MLP;
    `neuron`: one for every MLP, of the neurons that write most along the direction."""
    smoothness: float = Field(0.0, ge=0)
    """Weight of the mean squared difference of neighbouring layers' strengths."""
    bound: float = Field(2.0, gt=0)
    """Largest strength."""
    allow_negative: bool = False
    """Let strengths change sign: from -bound to bound."""
    survivors: int = Field(4, ge=1)
    """Candidate directions that are left after screening."""
    refine_steps: int = Field(6, ge=0)
    """Steps in which the survivors compete, in one batch; after a third of them the worse half is dropped."""
    objective: Literal["sequence", "first_token"] = "sequence"
    """Log-odds of the token prefixes that open the behaviour, or of the first tokens that rise."""

    @model_validator(mode="after")
    def _prices_fall(self) -> GradientConfig:
        strict, loose, n = self.prices
        if not (strict >= loose > 0 and 1 <= n <= 100):
            raise ValueError(
                f"prices are [strict, loose, n] with strict >= loose > 0 and n from 1 to 100; got {self.prices}"
            )
        return self


class OuterConfig(StageConfig):
    """What the outer study may choose, beside `search.space`'s scopes and points and `search.gradient`'s prices."""

    estimators: tuple[EstimatorName, ...] = Field(get_args(Difference), min_length=1)
    """Estimators of directions."""
    benign_ranks: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 8), min_length=1)
    """Ranks of the benign subspace that is projected out. Whether the neutral mean is, too, is a choice of its own."""
    profiles: tuple[Literal["free", "kernel"], ...] = Field(("free", "kernel"), min_length=1)
    """Profiles of strengths."""
    row_normalizations: tuple[Literal["none", "pre"], ...] = Field(("none", "pre"), min_length=1)
    """Of edits."""
    rounds: int = Field(2, ge=1)
    """Rounds of `search.gradient.steps` steps in every trial; after each the edited model generates anew."""


class SearchConfig(StageConfig):
    """What is searched, how, for how long, and which point is taken."""

    preset: Literal["iconoclast", "heretic"] = "iconoclast"
    """Defaults of directions, edit and search together; anything set explicitly wins."""
    method: Method = "gradient"
    """`gradient` through the hooks; `tpe`: Optuna over the kernel space; `outer`: Optuna over what has no gradient, a
    gradient in every trial; or one of your own, which a plugin registers."""
    top_k: int | None = Field(None, ge=1)
    """Edit these many heads only, or, under the profile `neuron`, neurons (256 where it is not set): the first by
    `search.by`. What else writes is left alone."""
    by: MethodName = "integrated"
    """The method of attribution that ranks heads, along the best separating direction; neurons go by `direct`."""
    goal: Goal = "suppress"
    """Make the behaviour rarer on target prompts, or more frequent."""
    n_trials: Annotated[int | None, Changeable] = Field(None, ge=1)
    """Trials in all, 200 of `tpe` and 40 of `outer` where it is not set; a continued search counts those there are."""
    n_startup_trials: int | None = Field(None, ge=1)
    """Random trials before TPE models the results; 60 and 12."""
    n_ei_candidates: int = Field(24, ge=1)
    """Candidates among which TPE takes the one of largest expected improvement."""
    warm_start: bool = True
    """The first trials of `tpe` are those of a profile of the model's family, by `config.model_type`."""
    batch_trials: int = Field(1, ge=1)
    """Trials whose edits run in one batch of the model."""
    max_new_tokens: int = Field(32, ge=1)
    """Tokens of a response to train and val prompts, at most `evaluation.max_new_tokens`: labels are mostly decided
    within twenty."""
    kl: KlKind = "sequence"
    """The divergence by which candidates are compared: over the base's continuation, or at its first token only. The
    search by gradient always prices the one over the continuation."""
    space: KernelSpace = KernelSpace()
    """Ranges of the kernel, for `tpe`."""
    gradient: GradientConfig = GradientConfig()
    """The search by gradient, and what `outer` solves in every trial."""
    outer: OuterConfig = OuterConfig()
    """The outer study."""
    choose: Annotated[Rule, Changeable] = "interval"
    """How the edit is taken from the candidates."""
    take: Annotated[int | None, Changeable] = Field(None, ge=0)
    """Take this candidate (the number of a trial or point) in place of the rule's."""
    max_rate: Annotated[float, Changeable] = Field(0.05, ge=0, le=1)
    """Largest behaviour rate for the rule `least-kl` (for `strengthen`: largest share without the behaviour)."""

    @model_validator(mode="after")
    def _profiles_are_of_a_gradient(self) -> SearchConfig:
        profile = self.gradient.profile
        if self.method != "gradient" and profile in ("head", "neuron"):
            raise ValueError(f"the profile {profile} is of a search by gradient, and search.method is {self.method}")
        return self

    @property
    def trials(self) -> int:
        """`n_trials`, or the method's."""
        return self.n_trials or (40 if self.method == "outer" else 200)

    @property
    def startup_trials(self) -> int:
        """`n_startup_trials`, or the method's."""
        return self.n_startup_trials or (12 if self.method == "outer" else 60)
