"""The space that most methods are points of: format × init × objective × data × training.

    student = init(base)                 clamp, scale, or leave the weights
    student = train(student, teacher)    quantisation-aware, where the objective says how
    model   = round(student, format)

RTN, AWQ, AWQ-clip, LLM-QAT and BitDistiller are presets of `Recipe`; every ablation of the paper varies one
of its fields. Not here: the components themselves (`formats`, `inits`, `objectives`, `data`, `train`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.core.errors import BitgridError
from harness.core.stage import Input, Stage, value
from harness.method import Method, Step, register
from harness.models import Model, another, check_length
from methods.quantization.awq import AWQ
from methods.quantization.formats import Format, FullPrecision, IntAsym, IntSym, quantize_model
from methods.quantization.inits import Clip, Init, NoInit
from methods.training.contribution import Contribution
from methods.training.data import Data, Generated, SelfGenerated
from methods.training.objectives import CAKLD, KL, Objective, Untrained
from methods.training.train import Train, Training


@dataclass(frozen=True)
class Round(Stage[Model]):
    """Weights to what the format can represent: what is evaluated (rule 8), in the base's dtype.

    Training leaves float32 weights. Evaluated as such they would have an advantage over methods
    whose models stay in the base's 16 bits.
    """

    stored: ClassVar[bool] = False
    model: Input[Model]
    base: Input[Model]
    format: Format

    def run(self, work: Path) -> Model:
        return quantize_model(value(self.model), self.format, like=value(self.base))


@dataclass(frozen=True)
class Recipe(Method):
    """A point of the space. Without `data` and `train` the objective must be `none`.

    `teacher` names a model as a grid does; without one the base teaches itself.
    """

    name = "recipe"
    format: Format = IntAsym(bits=2, group_size=128)
    init: Init = NoInit()
    objective: Objective = Untrained()
    data: Data | None = None
    train: Training | None = None
    teacher: str | None = None

    def check(self, layers: Mapping[str, tuple[int, int]]) -> None:
        for name, (_, in_features) in layers.items():
            self.format.check(name, in_features)

    def build(self, base: Stage[Model], seed: int) -> Stage[Model]:
        student = self.init.build(base, self.format)
        return Round(self._trained(student, base, seed), base, self.format)

    def steps(self, base: Stage[Model], seed: int) -> tuple[Step, ...]:
        if isinstance(self.format, FullPrecision):
            return ()
        origin, start = self.init.origin(base, self.format), self.init.build(base, self.format)
        trained = self._trained(start, base, seed)
        states = {base: ("full precision", base)}
        states.setdefault(start, (self.init.name, origin))
        states.setdefault(trained, (self.objective.name, origin))
        return tuple(
            Step(name, whence, state, Round(state, base, self.format))
            for state, (name, whence) in states.items()
        )

    def diagnostics(self, base: Stage[Model], seed: int) -> dict[str, tuple[Stage[dict], ...]]:
        start = self.init.build(base, self.format)
        trained = self._trained(start, base, seed)
        if not isinstance(trained, Train):
            return {}
        found = tuple(
            Contribution(
                step,
                self._teacher(base),
                Round(student, base, self.format),
                trained.tokens,
                self.objective,
                trained.statistic,
            )
            for step, student in (("before training", start), ("after training", trained))
        )
        return {"confidence": found}

    def _teacher(self, base: Stage[Model]) -> Stage[Model]:
        return base if self.teacher is None else another(base, self.teacher)

    def _trained(self, student: Stage[Model], base: Stage[Model], seed: int) -> Stage[Model]:
        if isinstance(self.objective, Untrained):
            return student
        if self.data is None or self.train is None:
            raise BitgridError(
                f"objective {self.objective.name!r} trains, so the method needs 'data' and 'train'; "
                "start from llm-qat or bitdistiller"
            )
        teacher = self._teacher(base)
        for model in (base, teacher):
            check_length(model, self.data.length, "data.length")
        tokens = self.data.build(teacher)
        statistic = self.objective.statistic(teacher, tokens)
        return Train(
            student,
            teacher if self.objective.teacher else None,
            tokens,
            self.format,
            self.objective,
            statistic,
            self.train,
            seed,
        )


register(
    "bf16",
    Recipe(format=FullPrecision()),
    title="BF16",
    about="the full-precision model itself: the reference",
    fixed=("format", "init", "objective", "data", "train", "teacher"),
)
register(
    "rtn",
    Recipe(),
    title="RTN",
    about="round to nearest, asymmetric, no data",
    fixed=("init", "objective", "data", "train", "teacher"),
)
register(
    "awq-clip",
    Recipe(init=Clip()),
    title="AWQ-clip",
    about="asymmetric clip search on calibration activations, then round (BitDistiller sec. 3.1)",
    fixed=("init", "objective", "data", "train", "teacher"),
)
register(
    "awq",
    Recipe(init=AWQ(clip=True)),
    title="AWQ",
    about="activation-aware scaling, then the clip search, then round (arXiv 2306.00978)",
    fixed=("init", "objective", "data", "train", "teacher"),
)
register(
    "llm-qat",
    Recipe(
        format=IntSym(bits=2, group_size=128),
        objective=KL(),
        data=SelfGenerated(),
        train=Training(epochs=1, lr=2e-5, schedule="cosine"),
    ),
    title="LLM-QAT",
    about="distilled by forward KL on data that the model generates alone (arXiv 2305.17888)",
    fixed=("init", "objective", "data", "teacher"),
)
register(
    "bitdistiller",
    Recipe(init=Clip(), objective=CAKLD(), data=Generated(), train=Training()),
    title="BitDistiller",
    about="asymmetric clipping, then self-distillation by confidence-aware KL (arXiv 2402.10631)",
    fixed=("init", "objective", "data", "teacher"),
)
