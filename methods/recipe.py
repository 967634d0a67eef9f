"""The space that most methods are points of:
format × init × rounding × objective × data × training.

    student = init(base)                 clamp, scale, or leave the weights
    student = train(student, teacher)    quantisation-aware, where the objective says how
    model   = round(student, format)     to nearest, or block by block

A method of this folder is a named point of the space, in a file of its own that registers it; every
ablation of the BitDistiller paper varies one field of `Recipe`. Not here: the points (`rtn`, `awq`,
`awq_clip`, `llm_qat`, `bitdistiller`, `bf16`), and what they are made of (`quantization`,
`training`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import methods.training.sums  # noqa: F401 (an objective of several, which a grid may name)
from harness.core.errors import BitgridError
from harness.core.stage import Stage
from harness.method import Method, Step
from harness.models import Attach, Attachment, Model, another, check_length
from methods.quantization.formats import Format, FullPrecision, IntAsym
from methods.quantization.inits import Init, NoInit
from methods.quantization.rounding import Nearest, Rounding
from methods.training.contribution import Contribution
from methods.training.data import Data
from methods.training.objectives import Objective, Untrained
from methods.training.settings import Training
from methods.training.train import Train


@dataclass(frozen=True)
class Recipe(Method):
    """A point of the space. Without `data` and `train` the objective must be `none`.

    `teacher` names a model as a grid does; without one the base teaches itself. `attach`: what the
    model does as it runs, while it is trained too; a teacher never does.
    """

    name = "recipe"
    format: Format = IntAsym(bits=2, group_size=128)
    init: Init = NoInit()
    rounding: Rounding = Nearest()
    objective: Objective = Untrained()
    data: Data | None = None
    train: Training | None = None
    teacher: str | None = None
    attach: tuple[Attachment, ...] = ()

    @property
    def is_reference(self) -> bool:
        parts = (self.format, FullPrecision), (self.init, NoInit), (self.objective, Untrained)
        return not self.attach and all(isinstance(part, kind) for part, kind in parts)

    def check(self, layers: Mapping[str, tuple[int, int]]) -> None:
        self.rounding.check(self.format)
        for name, (_, in_features) in layers.items():
            self.format.of(name).check(name, in_features)

    def build(self, base: Stage[Model], seed: int) -> Stage[Model]:
        student = self._build_start(base)
        return self._round(self._build_trained(student, base, seed), base)

    def steps(self, base: Stage[Model], seed: int) -> tuple[Step, ...]:
        if isinstance(self.format, FullPrecision):
            return ()
        origin, start = self._attach(self.init.origin(base, self._levels)), self._build_start(base)
        trained, unchanged = self._build_trained(start, base, seed), self._attach(base)
        states = {unchanged: ("full precision", unchanged)}
        states.setdefault(start, (self.init.name, origin))
        states.setdefault(trained, (self.objective.name, origin))
        return tuple(
            Step(name, whence, state, self._round(state, base))
            for state, (name, whence) in states.items()
        )

    def diagnostics(self, base: Stage[Model], seed: int) -> dict[str, tuple[Stage[dict], ...]]:
        start = self._build_start(base)
        trained = self._build_trained(start, base, seed)
        if not isinstance(trained, Train):
            return {}
        stages = tuple(
            Contribution(
                self._build_teacher(base),
                self._round(student, base),
                trained.tokens,
                self.objective,
                trained.statistic,
                step=step,
            )
            for step, student in (("before training", start), ("after training", trained))
        )
        return {"confidence": stages}

    def _round(self, model: Stage[Model], base: Stage[Model]) -> Stage[Model]:
        return self.rounding.build(model, base, self._levels)

    @property
    def _levels(self) -> Format:
        """The format for stages that do not train, which cells of all gradients then share."""
        return self.format.for_rounding()

    def _build_teacher(self, base: Stage[Model]) -> Stage[Model]:
        return base if self.teacher is None else another(base, self.teacher)

    def _build_start(self, base: Stage[Model]) -> Stage[Model]:
        """What is trained, or rounded where nothing is."""
        if not isinstance(self.init, NoInit):
            for each in self.attach:
                if each.folds:
                    raise BitgridError(
                        f"attachment {each.name!r} changes weights, and init {self.init.name!r} "
                        "finds its values for those before; use it with init: none"
                    )
        return self._attach(self.init.build(base, self._levels))

    def _attach(self, model: Stage[Model]) -> Stage[Model]:
        return Attach(model, self.attach) if self.attach else model

    def _build_trained(self, student: Stage[Model], base: Stage[Model], seed: int) -> Stage[Model]:
        if isinstance(self.objective, Untrained):
            return student
        if self.data is None or self.train is None:
            raise BitgridError(
                f"objective {self.objective.name!r} trains, so the method needs 'data' and "
                "'train'; start from llm-qat or bitdistiller"
            )
        teacher = self._build_teacher(base)
        for model in (base, teacher):
            check_length(model, self.data.length, "data.length")
        tokens = self.data.build(teacher)
        statistic = self.objective.build_statistic(teacher, tokens)
        return Train(
            student,
            teacher if self.objective.needs_teacher else None,
            tokens,
            self.format,
            self.objective,
            statistic,
            self.train,
            seed,
        )
