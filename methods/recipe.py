"""The space that most methods are points of:
format × init × rounding × objective × data × training.

    student = init(base)                 clamp, scale, or leave the weights
    student = train(student, teacher)    quantisation-aware, where the objective says how
    model   = round(student, format)     to nearest, or block by block

Where parameters of the format alone are trained (`train.trained: parameters`) a rounding that walks
blocks comes before the training, which moves what it chose.

A method of this folder is a named point of the space, in a file of its own that registers it; every
ablation of the BitDistiller paper varies one field of `Recipe`. Not here: the points (`rtn`, `awq`,
`awq_clip`, `llm_qat`, `bitdistiller`, `bf16`), and what they are made of (`quantization`,
`training`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import methods.training.sums  # noqa: F401 (an objective of several, which a grid may name)
from harness.core.component import Several
from harness.core.errors import BitgridError
from harness.core.stage import Stage
from harness.method import Method, Step, list_budget_settings
from harness.models import Attachment, Model, another, build_attached, check_length
from methods.quantization.formats import Format, FullPrecision, Grouped, IntAsym
from methods.quantization.inits import Init, NoInit
from methods.quantization.learned import Learned, is_learned
from methods.quantization.rounding import Nearest, Rounding
from methods.training.contribution import Contribution
from methods.training.data import Data
from methods.training.objectives import Objective, Untrained
from methods.training.settings import Training
from methods.training.teacher_states import build_states
from methods.training.train import Train


@dataclass(frozen=True)
class Recipe(Method):
    """A point of the space. Without `data` and `train` the objective must be `none`.

    `init`: applied in order; only the last one may change what the model computes. `teacher` names
    a model as a grid does; without one the base teaches itself. `attach`: what the model does as it
    runs, while it is trained too; a teacher never does.
    """

    name = "recipe"
    format: Format = IntAsym(bits=2, group_size=128)  # what weights are rounded to
    init: Several[Init] = (NoInit(),)  # what is done to the weights first, in this order
    rounding: Rounding = Nearest()  # how weights become levels at the end
    objective: Objective = Untrained()  # what is trained; none: nothing is
    data: Data | None = None  # what is trained on
    train: Training | None = None  # how it is trained
    teacher: str | None = None  # a model, named as in a grid; null: the base teaches itself
    attach: tuple[Attachment, ...] = ()  # what the model does as it runs

    @property
    def is_reference(self) -> bool:
        is_plain = isinstance(self.format, FullPrecision) and isinstance(self.objective, Untrained)
        return is_plain and not self.attach and not self._inits

    def check(self, layers: Mapping[str, tuple[int, int]]) -> None:
        self.rounding.check(self.format)
        for name, (_, in_features) in layers.items():
            self.format.of(name).check(name, in_features)

    def build(self, base: Stage[Model], seed: int) -> Stage[Model]:
        return self._round(self._build_trained(self._build_start(base), base, seed), base)

    def steps(self, base: Stage[Model], seed: int) -> tuple[Step, ...]:
        if isinstance(self.format, FullPrecision):
            return ()
        *first, last = self._inits or (NoInit(),)
        prepared = self._prepare(base, first)
        origin, start = self._attach(last.origin(prepared, self._levels)), self._build_start(base)
        trained, unchanged = self._build_trained(start, base, seed), self._attach(base)
        states = {unchanged: ("full precision", unchanged)}
        named = " + ".join(each.name for each in self._inits)
        states.setdefault(start, (named or NoInit.name, origin))
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
        is_rounded = isinstance(model, Train) and self._rounds_first
        return (Nearest() if is_rounded else self.rounding).build(model, base, self._levels)

    @property
    def _rounds_first(self) -> bool:
        """Whether rounding comes before training: what it chose moves, and weights stay."""
        alone = self.train is not None and self.train.trained == "parameters"
        return alone and not isinstance(self.rounding, Nearest)

    @property
    def _levels(self) -> Format:
        """The format for stages that do not train, which cells of all gradients then share."""
        return self.format.for_rounding()

    def _check_learned(self) -> None:
        """Raise BitgridError where some layers have a format without trained parameters: those
        that the rounding chose for them would be rounded again."""
        kinds = [kind for kind in self.format.kinds() if isinstance(kind, Grouped)]
        if other := next((kind.name for kind in kinds if not isinstance(kind, Learned)), None):
            raise BitgridError(
                f"train.trained: 'parameters' on what rounding {self.rounding.name!r} chose needs "
                f"them in all layers that are rounded, and {other!r} has none; format: int-step"
            )

    def _build_teacher(self, base: Stage[Model]) -> Stage[Model]:
        return base if self.teacher is None else another(base, self.teacher)

    def _build_start(self, base: Stage[Model]) -> Stage[Model]:
        """What is trained, or rounded where nothing is."""
        for init in self._inits:
            for each in self.attach:
                if each.folds:
                    raise BitgridError(
                        f"attachment {each.name!r} changes weights, and init {init.name!r} "
                        "finds its values for those before; use it with init: none"
                    )
        return self._attach(self._prepare(base, self._inits))

    @property
    def _inits(self) -> tuple[Init, ...]:
        return tuple(each for each in self.init if not isinstance(each, NoInit))

    def _prepare(self, base: Stage[Model], inits: Sequence[Init]) -> Stage[Model]:
        """The model after `inits` in turn. Raises BitgridError where one behind another would
        rescale values that were chosen for the scales before."""
        model = base
        for number, each in enumerate(inits):
            prepared = each.build(model, self._levels)
            is_last = number + 1 == len(self._inits)
            if not is_last and prepared != each.origin(model, self._levels):
                raise BitgridError(
                    f"init {each.name!r} changes what the model computes, so nothing may follow "
                    f"it, and {self._inits[number + 1].name!r} does; put it last"
                )
            model = prepared
        return model

    def _attach(self, model: Stage[Model]) -> Stage[Model]:
        return build_attached(model, self.attach)

    def _build_trained(self, student: Stage[Model], base: Stage[Model], seed: int) -> Stage[Model]:
        if isinstance(self.objective, Untrained):
            return student
        if self.data is None or self.train is None:
            raise BitgridError(
                f"objective {self.objective.name!r} trains, so the method needs 'data' and "
                "'train'; start from llm-qat or bitdistiller"
            )
        whole = next((each.name for each in self.format.kinds() if not each.by_row), None)
        if whole and self.train.gpus > 1:
            raise BitgridError(
                f"format {whole!r} rounds a weight whole, and processes that train together share "
                "its rows; train.gpus: 1"
            )
        train = self.train
        if not is_learned(self.format):
            if train.trained == "parameters":
                raise BitgridError(
                    f"train.trained: 'parameters' are those of a format, and {self.format.name!r} "
                    "has none; format: int-step or int-lsq, or train.trained: linears"
                )
            train = replace(train, parameter_lr=None)  # cells of all such rates are one
        turning = next((each.name for each in self._inits if each.turns_states), None)
        if turning and any(term.objective.sees == "blocks" for term in self.objective.list_terms()):
            raise BitgridError(
                f"objective {self.objective.name!r} compares hidden states with the teacher's, and "
                f"init {turning!r} turns the student's; use an objective that sees logits"
            )
        teacher = self._build_teacher(base)
        for model in (base, teacher):
            check_length(model, self.data.length, "data.length")
        tokens = self.data.build(teacher)
        statistic = self.objective.build_statistic(teacher, tokens)
        if self._rounds_first:
            self._check_learned()
            student = self._round(student, base)
        return Train(
            student,
            teacher if self.objective.needs_teacher else None,
            tokens,
            self.format,
            self.objective,
            statistic,
            train,
            seed,
            states=build_states(teacher, tokens, self.objective, train),
        )


@list_budget_settings.register
def _of_recipe(method: Recipe) -> tuple[str, ...]:
    is_trained = method.train is not None and not isinstance(method.objective, Untrained)
    return ("train.steps", "train.epochs") if is_trained else ()
