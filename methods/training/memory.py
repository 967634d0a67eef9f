"""What training, generation and the teacher's confidence hold in memory at their peak.

The code itself is run on tensors without data, so that what is shared, what is copied and when it
is freed need not be repeated here. Of several processes each holds an equal share of what lies in
the decoder blocks, all of the rest, and for a moment whole blocks. Not here: how that is done
(`harness.models.dry_run`), searches and rounding (`methods.quantization.memory`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.models import (
    DTYPES,
    Attachment,
    Model,
    Pretrained,
    blocks,
    find_attachments,
    find_trunk,
    pretrained_of,
    run_trunk,
)
from harness.models.dry_run import (
    Live,
    Memory,
    dry_run,
    estimate_memory,
    find_new_ends,
    load_weightless,
    renew_matrices,
    replaced,
)
from harness.models.tensors import replace_parameters
from methods.quantization.formats import Format
from methods.quantization.memory import cutting_as_on, find_length, make_ids
from methods.training import data, forward, generation
from methods.training.confidence import CONFIDENCE_TOKENS, Confidence
from methods.training.masters import Masters
from methods.training.objectives import Objective
from methods.training.optimizer import MOMENTS
from methods.training.settings import Training
from methods.training.shards import ALONE, Shards
from methods.training.step import TrainingStep
from methods.training.teacher_states import TeacherStates
from methods.training.train import Train

_STATISTIC = 0.5  # no shape depends on its value
_PROMPT = 32  # tokens of an opening, about
_SAMPLING = 4  # float32 tensors (rows, vocabulary) while tokens are drawn


@estimate_memory.register
def of_training(stage: Train, gpus: int | None = None, device: str = "cuda") -> Memory:
    """The peak of each of `gpus` processes; None: as many as the stage asks for."""
    training = stage.training
    gpus = gpus or training.gpus
    rows = math.ceil(training.batch_size / gpus)
    step = _step(
        pretrained_of(stage.student),
        pretrained_of(stage.teacher) if stage.teacher is not None else None,
        None if isinstance(stage.student, Pretrained) else find_new_ends(stage.student),
        find_attachments(stage.student),
        stage.format,
        stage.objective,
        _decisive(training),
        (min(rows, training.micro_batch), find_length(stage.tokens)),
        rows > training.micro_batch,
        gpus == 1,
        stage.states is not None,
        device,
    )
    return step.on(gpus)


@estimate_memory.register
def of_generation(stage: data.Generate, gpus: int | None = None, device: str = "cuda") -> Memory:
    """With keys and values of as many rows as are written at once."""
    with dry_run() as live:
        model = load_weightless(live, pretrained_of(stage.teacher))
        rows = generation.rows_at_once(model, stage.length, device)
        with torch.no_grad():
            states = run_trunk(model.network, make_ids(rows, min(_PROMPT, stage.length)))
            forward.run_head(model.network, states[:, -1])
        cached = rows * stage.length * generation.cache_bytes(model)
    peak = live.peak()
    drawn = _SAMPLING * 4 * rows * model.vocabulary
    return dataclasses.replace(peak, other=peak.other + cached + drawn)


@estimate_memory.register
def of_confidence(stage: Confidence, gpus: int | None = None, device: str = "cuda") -> Memory:
    """A batch through the teacher, its head a chunk at a time."""
    length = find_length(stage.tokens)
    with dry_run() as live, _chunks_of(device):
        model = load_weightless(live, pretrained_of(stage.teacher))
        ids = make_ids(max(1, CONFIDENCE_TOKENS // length), length)
        labels = forward.Labels.of(ids, torch.ones_like(ids, dtype=torch.bool))
        forward.measure_labels(model.network, ids, labels, forward.token_nll)
    return live.peak()


@estimate_memory.register
def of_states(stage: TeacherStates, gpus: int | None = None, device: str = "cuda") -> Memory:
    """A micro-batch through the teacher's trunk, whose weights come from the host."""
    with dry_run() as live, torch.no_grad():
        full = load_weightless(live, pretrained_of(stage.teacher), "host")
        with live.part("parameters"):
            network = _Apart().split(full, DTYPES[stage.dtype]).network
        ids = make_ids(stage.rows, find_length(stage.tokens))
        labels = forward.Labels.of(ids, torch.ones_like(ids, dtype=torch.bool))
        labels.pick(run_trunk(network, ids))
    return live.peak()


@dataclass(frozen=True)
class _Step:
    """What a training step held, and how that divides."""

    live: Live
    divided: Mapping[str, float]  # of a part, the share that lies in the decoder blocks
    gathered: int  # bytes that each of several processes needs besides

    def on(self, gpus: int) -> Memory:
        scale = {part: 1 - share + share / gpus for part, share in self.divided.items()}
        peak = self.live.peak(scale)
        gathered = self.gathered if gpus > 1 else 0
        return dataclasses.replace(peak, other=peak.other + gathered)


@cache
def _step(
    base: Pretrained,
    teacher_base: Pretrained | None,
    ends: tuple[str, ...] | None,
    attachments: tuple[Attachment, ...],
    format: Format,
    objective: Objective,
    training: Training,
    shape: tuple[int, int],
    several: bool,
    alone: bool,
    stored: bool,
    device: str,
) -> _Step:
    """A step of the loop that comes after others.

    ends: embedding and head that are the student's own, as its linear weights are then; None: all
    are the base's; attachments: the student's; shape:
    (B, T) of a micro-batch; several: others come before it in the step; alone: one process has the
    model to itself; stored: the teacher's states are, and of its weights only the head is here.
    """
    dtype = DTYPES[training.dtype]
    # Several processes load a model on the host and take what they need of it from there, and so
    # does one that needs no whole teacher.
    shards, place = (ALONE, None) if alone and not stored else (_Apart(), "host")
    with dry_run() as live, _chunks_of(device):
        full = None
        if teacher_base is not None:
            full = load_weightless(live, teacher_base, place or "teacher")
        with live.part("teacher"):
            needed = forward.keep_head(full) if full and stored else full
            teacher = shards.split(needed, dtype) if needed else None
        student = full
        if student is None or teacher_base != base:
            student = load_weightless(live, base, place or "parameters")
        if ends is not None:
            student = _change(live, student, place or "parameters", ends, attachments)
        with live.part("parameters"):
            masters = Masters.of(student, format, training.trained, dtype, shards)
        _watch(live, masters.network)
        plain = dataclasses.replace(training, optimizer="adamw")
        read = partial(_read_states, teacher, shape) if teacher and stored else None
        step = TrainingStep(plain, objective, None, masters, teacher, read)
        step.terms = [dataclasses.replace(term, statistic=_STATISTIC) for term in step.terms]
        _run_update(live, step, training.optimizer)
        _run_gradients(live, step, shape, several)
    guides = [each.network for each in (full, teacher) if each is not None]
    return _divide(live, masters, student.network, guides)


def _divide(
    live: Live, masters: Masters, student: PreTrainedModel, guides: list[PreTrainedModel]
) -> _Step:
    """How a step's memory divides, of the student as it was given and of the teacher's networks."""
    network, weights = masters.network, masters.weights
    inside = tuple(name for each in (network, *guides) for name in blocks(each))
    trained = _share(live, "parameters", inside, weights)
    models = [_named(each) for each in (student, network)]
    sizes = [sum(t.numel() for t in block.parameters()) for block in blocks(network).values()]
    return _Step(
        live,
        {
            "parameters": _share(live, "parameters", inside, *models, weights),
            "teacher": _share(live, "teacher", inside, *map(_named, guides)),
            "gradients": trained,
            "optimizer": trained,
        },
        # Weights of the block at work and of the next; gradients of one, and those in float32.
        max(sizes) * (3 * network.dtype.itemsize + 4),
    )


def _change(
    live: Live,
    base: Model,
    part: str,
    ends: tuple[str, ...],
    attachments: tuple[Attachment, ...],
) -> Model:
    """A student as it is given to training: what it does as it runs, and matrices of its own."""
    student = base.fork()
    for each in attachments:
        each.rehearsed(student.network).attach(student.network)
    with live.part(part):
        renew_matrices(student, ends)
    return student


def _watch(live: Live, network: PreTrainedModel) -> None:
    """What is made inside the network are activations, until it is a weight's gradient."""
    live.inside("activations", find_trunk(network)[1], *blocks(network).values())
    for tensor in _list_moved(network):
        tensor.register_post_accumulate_grad_hook(
            lambda t: live.assign("gradients", cast(Tensor, t.grad))
        )


def _run_update(live: Live, step: TrainingStep, optimizer: str) -> None:
    """The end of the step before: what the optimizer holds from then on."""
    weights = step.masters.weights
    with live.part("gradients"):
        for weight in weights.values():
            weight.grad = torch.empty_like(weight)
    with live.part("optimizer"):
        if optimizer == "adamw":
            step.update(rate=1.0, norm=1.0)
        else:  # torchao's is compiled, which tensors without data do not run
            for weight in weights.values():
                step.optimizer.state[weight] = {m: _moment_8bit(weight) for m in MOMENTS}
    step.masters.requantize()


def _run_gradients(live: Live, step: TrainingStep, shape: tuple[int, int], several: bool) -> None:
    """The step's last micro-batch, (B, T) tokens; where `several`, gradients of others are held."""
    masters = step.masters
    with live.part("gradients"):
        for tensor in _list_moved(masters.network) if several else ():
            tensor.grad = torch.empty_like(tensor)
        masters.accumulate_gradients()
    ids = make_ids(*shape)
    step.run_micro_batch(ids, torch.ones_like(ids, dtype=torch.bool), ids[:, 0])
    with live.part("gradients"):
        masters.accumulate_gradients()
        masters.finish_gradients(1.0)


def _read_states(teacher: Model, shape: tuple[int, int], _: Tensor) -> Tensor:
    """The teacher's states at the labels of (B, T) tokens."""
    embedding = teacher.network.get_input_embeddings().weight
    return torch.empty(shape[0] * (shape[1] - 1), embedding.shape[1], dtype=embedding.dtype)


def _share(live: Live, part: str, inside: tuple[str, ...], *held: Mapping[str, Tensor]) -> float:
    """Of the bytes that tensors have in a part, those of names that begin with one of `inside`."""
    named = [(name, tensor) for tensors in held for name, tensor in tensors.items()]
    total = live.size((tensor for _, tensor in named), part)
    within = live.size((tensor for name, tensor in named if name.startswith(inside)), part)
    return within / total if total else 0.0


def _moment_8bit(weight: Tensor) -> list[Tensor]:
    """As torchao holds it: bytes, and a scale for each 256; small ones stay in float32."""
    if weight.numel() < 4096 or weight.numel() % 256:
        return [torch.empty_like(weight)]
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    return [codes, torch.empty(weight.numel() // 256)]


class _Apart(Shards):
    """A process of several, which shares no tensor with the model that it was given."""

    def split(self, model: Model, dtype: torch.dtype, moved: Container[str] = ()) -> Model:
        fork = model.fork()

        def make(name: str, old: nn.Parameter) -> nn.Parameter:
            tensor = old.detach().to(dtype, copy=True)
            return nn.Parameter(tensor, requires_grad=name in moved)

        replace_parameters(fork.network, make)
        return fork


def _list_moved(network: PreTrainedModel) -> list[nn.Parameter]:
    return [tensor for tensor in network.parameters() if tensor.requires_grad]


def _named(network: PreTrainedModel) -> dict[str, Tensor]:
    return dict(network.named_parameters())


def _decisive(training: Training) -> Training:
    """What of the hyper-parameters memory depends on, so that a grid's rates share one estimate."""
    names = ("dtype", "optimizer", "trained", "gradient_checkpointing")
    return type(training)(**{name: getattr(training, name) for name in names})


@contextmanager
def _chunks_of(device: str) -> Iterator[None]:
    """Chunks as large as on `device`, wherever tensors without data are said to be."""
    heads = forward._CHUNK
    with (
        replaced(forward, "_CHUNK", {**heads, "cpu": heads[device]}),
        cutting_as_on(device),
    ):
        yield
