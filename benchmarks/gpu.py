"""What quantising and training cost on a GPU: ten minutes, one JSON file.

    python -m benchmarks.gpu --write        # benchmarks/results/gpu.json
    python -m benchmarks.gpu --small        # the same code in a minute, on a CPU too

In turn: what a format takes beside a copy of the weight; a step of distillation of a random Llama
of 1.1 billion weights (bfloat16, 1024 tokens a sequence) beside an unquantised one, the published
form of one (whole logits, the quantiser left to autograd) and one whose algorithms give the same
bits each time; the clip search and GPTQ of one block of LLaMA-2-7B; foretold and measured peaks of
memory; and steps of a training that all GPUs of this machine share, where there are several.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.objectives import lose_plainly
from benchmarks.record import Record, time_in_turn
from harness.data import Packed, Tokens
from harness.models import Model, device, matrices, pretrained
from harness.run.worker import join_processes
from methods.quantization import clip
from methods.quantization.formats import NF, Format, FullPrecision, Grouped, IntAsym
from methods.quantization.gptq import GPTQ
from methods.training.determinism import compute_deterministically
from methods.training.masters import Masters
from methods.training.memory import of_training
from methods.training.objectives import CAKLD
from methods.training.settings import Training
from methods.training.shards import Shards
from methods.training.step import TrainingStep
from methods.training.train import Train

GAMMA = 0.5  # CAKLD's
MIB = 2**20
SHARED = "--shared"  # one of the processes that take steps together


@dataclass(frozen=True)
class Sizes:
    """Of what is measured, and how often."""

    weight: tuple[int, int]  # of the quantiser's layer
    block: tuple[tuple[int, int, int], ...]  # how many layers of (out, in) a block has
    llama: dict[str, int]
    batch: tuple[int, int]  # sequences, tokens each
    repetitions: int


FULL = Sizes(
    (11008, 4096),
    ((4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)),  # LLaMA-2-7B's
    {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22}
    | {"num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048},
    (4, 1024),
    10,
)
SMALL = Sizes(
    (256, 256),
    ((1, 128, 256), (1, 256, 128)),
    {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64},
    (2, 32),
    2,
)
FORMATS: dict[str, Grouped] = {"int2": IntAsym(2, 128), "nf3": NF(3, 128)}


def settle() -> None:
    """Wait until the GPU has done what it was told."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def settled(run: Callable[[], object]) -> Callable[[], None]:
    """`run`, to its end on the device too."""

    def whole() -> None:
        run()
        settle()

    return whole


def measure_quantiser(record: Record, sizes: Sizes) -> None:
    """Rounding a weight in bfloat16, beside reading and writing it once."""
    weight = torch.randn(sizes.weight, device=device()).to(torch.bfloat16)
    forms: dict[str, Callable[[], object]] = {"plain": weight.clone}
    forms |= {name: partial(each.quantize, weight) for name, each in FORMATS.items()}
    case = f"round a weight of {sizes.weight[0]} x {sizes.weight[1]}, bfloat16; plain: a copy"
    for form, seconds in time_in_turn(
        {form: settled(run) for form, run in forms.items()}, sizes.repetitions
    ).items():
        record.add(case, form, "s", seconds)


def make_llama(sizes: Sizes) -> Model:
    """Random weights in bfloat16, on the device."""
    torch.manual_seed(0)
    with torch.device(device()):
        network = LlamaForCausalLM(LlamaConfig(**sizes.llama)).to(torch.bfloat16)
    words = Tokenizer(
        WordLevel({f"w{i}": i for i in range(sizes.llama["vocab_size"])}, unk_token="w0")
    )
    words = PreTrainedTokenizerFast(tokenizer_object=words)
    return Model(network.eval().requires_grad_(False), words)


def make_step(
    model: Model, format: Format, sizes: Sizes, deterministic: bool = False
) -> Callable[[], None]:
    """A step of this harness: what is returned takes one."""
    sequences, _ = sizes.batch
    training = Training(steps=1, batch_size=sequences, micro_batch=sequences, lr=1e-6)
    shards = Shards.here()
    masters = Masters.of(model, format, training.trained, torch.bfloat16, shards)
    step = TrainingStep(training, CAKLD(), GAMMA, masters, shards.split(model, torch.bfloat16))
    ids = make_ids(model, sizes).to(device())

    def run() -> None:
        exact = compute_deterministically(device()) if deterministic else contextlib.nullcontext()
        with exact:
            _, norm = step.compute_gradients([(ids, torch.ones_like(ids, dtype=torch.bool))])
            step.update(training.lr, norm)

    return settled(run)


def make_ids(model: Model, sizes: Sizes) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, model.vocabulary, sizes.batch, generator=draw)


class _Rounded(nn.Module):
    """A linear layer whose weight is rounded on the way by plain operations, as autograd takes
    them: the range, the scale, the codes with the gradient passed through `round`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, inputs: Tensor) -> Tensor:
        groups = self.weight.unflatten(-1, (-1, 128))
        high, low = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
        scale = (high - low).clamp(min=1e-5) / 3
        zero = -(low / scale).round().clamp(-3, 3)
        ratios = groups / scale
        codes = ratios + (ratios.round() - ratios).detach()
        rounded = ((codes + zero).clamp(0, 3) - zero) * scale
        return linear(inputs, rounded.flatten(-2))


def make_published_step(model: Model, sizes: Sizes) -> Callable[[], None]:
    """The same step in the form of the published code: a student of fake-quantised layers, whole
    logits of both models in float32, CAKLD by torch's own functions, AdamW on float32 masters."""
    student = model.fork().network
    for name in list(matrices(student)):
        owner, _, child = name.rpartition(".")
        layer = student.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(layer.weight.clone())
        setattr(student.get_submodule(owner), child, _Rounded(layer))
    trained = [p for p in student.parameters() if p.requires_grad]
    masters = [p.detach().float() for p in trained]
    optimizer = torch.optim.AdamW(masters, lr=1e-6, weight_decay=0.0)
    ids = make_ids(model, sizes).to(device())

    def run() -> None:
        with torch.no_grad():
            guide = model.network(ids).logits[:, :-1].float()
        logits = student(ids).logits[:, :-1].float()
        lose_plainly("cakld", logits, guide, ids[:, 1:], GAMMA).mean().backward()
        for master, parameter in zip(masters, trained, strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, trained, strict=True):
                parameter.copy_(master)

    return settled(run)


def measure_steps(record: Record, sizes: Sizes) -> None:
    """One form after the other, since no two need fit on the device at once: time and peak."""
    model = make_llama(sizes)
    weights = sum(each.weight.numel() for each in matrices(model.network).values())
    tokens = sizes.batch[0] * sizes.batch[1]
    case = f"step of a random Llama, {tokens} tokens; plain: unquantised, in the same loop"
    forms: dict[str, Callable[[], Callable[[], None]]] = {
        "plain": lambda: make_step(model, FullPrecision(), sizes),
        **{name: partial(make_step, model, format, sizes) for name, format in FORMATS.items()},
        "int2, deterministic": lambda: make_step(model, FORMATS["int2"], sizes, True),
        "int2, through-range": lambda: make_step(
            model, replace(FORMATS["int2"], gradient="through-range"), sizes
        ),
        "published form": lambda: make_published_step(model, sizes),
    }
    for form, make in forms.items():
        run = make()
        with measured_peak() as peak:
            seconds = time_in_turn({form: run}, sizes.repetitions)[form]
        record.add(case, form, "s", seconds)
        if peak:
            record.add(case, form, "MiB", peak)
        # Of the blocks' matrices: two a weight and token forward, twice that backward; the teacher.
        record.add(case, form, "TFLOP/s", [8e-12 * weights * tokens / each for each in seconds])
        del run
    size = sizes.weight[1]
    square = torch.randn(size, size, device=device()).to(torch.bfloat16)
    product = settled(lambda: square @ square)
    seconds = time_in_turn({"": product}, sizes.repetitions)[""]
    case = f"product of two matrices of {size} x {size}, bfloat16"
    record.add(case, "plain", "TFLOP/s", [2e-12 * size**3 / each for each in seconds])


@contextlib.contextmanager
def measured_peak() -> Iterator[list[float]]:
    """The peak of the GPU's memory within, in MiB, once it ends; nothing on a CPU."""
    peak: list[float] = []
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield peak
    if device().type == "cuda":
        peak.append(torch.cuda.max_memory_allocated() / MIB)


def measure_block(record: Record, sizes: Sizes) -> None:
    """The clip search on 512 tokens and GPTQ, over all layers of a block."""
    case = "all layers of a block: " + ", ".join(f"{n} of {o} x {i}" for n, o, i in sizes.block)
    format = FORMATS["int2"]
    searched, rounded = 0.0, 0.0
    for count, rows, columns in sizes.block:
        weight = torch.randn(rows, columns, device=device()) / 50
        inputs = torch.randn(512, columns, device=device())
        (span,) = format.spans(columns)
        groups = span.cut(inputs).transpose(0, 1)
        root = torch.linalg.qr(groups).R.contiguous()  # R'R is what the groups see
        gram = inputs.T @ inputs
        for run, is_search in (
            (partial(clip.search, weight, [root], format, 20, 10), True),
            (partial(GPTQ().round_weight, weight, gram, format), False),
        ):
            took = count * min(time_in_turn({"": settled(run)}, sizes.repetitions // 2)[""])
            searched, rounded = searched + took * is_search, rounded + took * (not is_search)
    record.add(case, "clip search", "s", [searched])
    record.add(case, "GPTQ", "s", [rounded])


def measure_memory(record: Record, sizes: Sizes) -> None:
    """The peak of a training beside what `bitgrid plan --memory` foretells."""
    (sequences, length), vocabulary = sizes.batch, sizes.llama["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        model = make_llama(sizes)
        model.network.save_pretrained(f"{folder}/model")
        model.tokenizer.save_pretrained(f"{folder}/model")
        del model
        training = Training(steps=2, batch_size=2 * sequences, micro_batch=sequences, lr=1e-6)
        training = replace(training, checkpoint_every=0)
        base = pretrained(f"{folder}/model", "bfloat16")
        asked = Packed([], base, length, count=4 * sequences)
        stage = Train(base, base, asked, FORMATS["int2"], CAKLD(GAMMA), None, training)
        case = f"memory of a training, {sequences} sequences of {length} tokens; plain: foretold"
        foretold = of_training(stage, device=device().type).total / MIB
        record.add(case, "plain", "MiB", [foretold])
        ids = torch.randint(0, vocabulary, (4 * sequences, length))
        tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
        loaded = base.run(Path(folder))
        with measured_peak() as peak:
            replace(stage, student=loaded, teacher=loaded, tokens=tokens).run(Path(folder))
        if peak:
            record.add(case, "measured", "MiB", peak)


def measure_together(record: Record, sizes: Sizes) -> None:
    """Steps that all GPUs share by FSDP, as many sequences for each; two processes on a CPU."""
    count = torch.cuda.device_count() if device().type == "cuda" else 2
    if count < 2:
        print("not measured: steps that several GPUs share, since there is one")
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "-m", "benchmarks.gpu", SHARED]
    command += ["--small"] * (sizes == SMALL)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "seconds.json")
        subprocess.run([*command, "--out", str(place)], check=True)
        seconds = json.loads(place.read_text())
    tokens = sizes.batch[0] * sizes.batch[1]
    record.add(f"step of a random Llama, {count} x {tokens} tokens", "int2, shared", "s", seconds)


def share_steps(sizes: Sizes, out: Path) -> None:
    """What each of several processes does; the first writes what its steps took."""
    join_processes()
    seconds = time_in_turn(
        {"": make_step(make_llama(sizes), FORMATS["int2"], sizes)}, sizes.repetitions
    )
    if dist.get_rank() == 0:
        out.write_text(json.dumps(seconds[""]))
    dist.barrier()
    dist.destroy_process_group()


PARTS: dict[str, Callable[[Record, Sizes], None]] = {
    "quantiser": measure_quantiser,
    "step": measure_steps,
    "block": measure_block,
    "memory": measure_memory,
    "together": measure_together,
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    options.add_argument("--small", action="store_true", help="sizes for a try")
    options.add_argument("--write", action="store_true")
    options.add_argument(SHARED, action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args(arguments)
    sizes = SMALL if chosen.small else FULL
    if chosen.out:
        share_steps(sizes, chosen.out)
        return
    if device().type != "cuda" and not chosen.small:
        options.error("there is no GPU here: --small runs the same code on a CPU")
    record = Record("gpu", baseline="plain")
    for part in chosen.parts:
        PARTS[part](record, sizes)
    record.finish(chosen.write)


if __name__ == "__main__":
    main()
