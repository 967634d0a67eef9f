"""Makes the reference models from the seed: tokenizer, training, bf16 safetensors, metrics.

    python -m harness.testbed.pretrain
    python -m harness.testbed.pretrain --size testbed-small --steps 800

Packed sequences of the training stream, Muon for the hidden matrices, AdamW for embeddings and
norms, bf16 compute over fp32 master weights. A checkpoint is written every two minutes and a second
call goes on from it. Scores are not computed here: see `benchmarks/testbed_scores.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.testbed import world
from harness.testbed.facts import SEED

FOLDER = Path(__file__).parent / "model"
SMALL = Path(__file__).parent / "model-small"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCABULARY = 2048
CONTEXT = 512
DOCUMENTS_PER_CHUNK = 256
SECONDS_BETWEEN_CHECKPOINTS = 120.0


@dataclass(frozen=True)
class Settings:
    seed: int = SEED
    batch_tokens: int = 8192
    micro_tokens: int = 4096
    short: int = 256  # tokens a sequence; the last part of training uses the full context
    long_from: float = 0.85
    muon_rate: float = 0.02
    adam_rate: float = 4e-3
    warmup: float = 0.01
    constant: float = 0.4  # of the whole; then linear to zero
    late_from: float = 0.55  # facts are learned by then; arithmetic and code take longest
    late_mix: tuple[float, ...] = (0.19, 0.19, 0.40, 0.22)  # world.DOMAINS, documents


@dataclass(frozen=True)
class Size:
    """What sets the two reference models apart; heads are 64 wide in both."""

    folder: Path
    hidden: int
    feed_forward: int
    layers: int
    heads: int


SIZES = {
    "testbed": Size(FOLDER, 256, 768, 5, 4),
    "testbed-small": Size(SMALL, 128, 384, 4, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1300, help="length of training")
    parser.add_argument("--minutes", type=float, help="length in wall time instead")
    parser.add_argument("--size", choices=sorted(SIZES), default="testbed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    size = SIZES[arguments.size]
    work = arguments.work or Path(f".bitgrid/{arguments.size}-pretrain")
    train(arguments.out or size.folder, work, arguments.steps, arguments.minutes, size)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training split: lossless, each digit a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(world.documents("train"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, size: Size = SIZES["testbed"]
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=size.feed_forward,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads // 2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(
    out: Path,
    work: Path,
    steps: int,
    minutes: float | None = None,
    size: Size = SIZES["testbed"],
) -> None:
    """Trains for so many steps or minutes, going on from `work` if a checkpoint lies there."""
    settings = Settings()
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(out)
    master = make_model(tokenizer, settings.seed, size)
    names = [name for name, _ in master.named_parameters()]
    fast = make_model(tokenizer, settings.seed, size).to(torch.bfloat16)
    fast.set_attn_implementation("eager")  # at these lengths 7 % faster than the fused kernel
    optimizers = _optimizers(master, settings)
    state = _resume(work, master, optimizers)
    stream = _Packed(tokenizer, settings, state["chunk"], state["left"])
    step, tokens, spent = state["step"], state["tokens"], state["seconds"]
    _forget_after(out / "metrics.jsonl", step)
    metrics = (out / "metrics.jsonl").open("a")
    saved = time.monotonic()
    running: list[float] = []
    while True:
        began = time.monotonic()
        progress = spent / (minutes * 60) if minutes else step / steps
        if progress >= 1:
            break
        _copy(master, fast)
        running.append(_run_batch(fast, stream, settings, progress))
        for name, slow, quick in zip(names, master.parameters(), fast.parameters(), strict=True):
            assert quick.grad is not None, name
            slow.grad, quick.grad = quick.grad.float(), None
        norm = torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0).item()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _schedule(progress, settings)
            optimizer.step()
        step, tokens = step + 1, tokens + settings.batch_tokens
        spent += time.monotonic() - began
        if step % 20 == 0:
            line = {"step": step, "tokens": tokens, "seconds": round(spent, 1)}
            line |= {"progress": round(progress, 4), "loss": round(sum(running) / len(running), 4)}
            line |= {"grad_norm": round(norm, 3)}
            running = []
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            print(line, flush=True)
        if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
            state = {"step": step, "tokens": tokens, "seconds": spent}
            state |= {"chunk": stream.chunk, "left": stream.left}
            _checkpoint(work, master, optimizers, state)
            save_model(master, out)
            saved = time.monotonic()
    save_model(master, out, settings.seed)
    metrics.close()


def _run_batch(
    network: LlamaForCausalLM, stream: _Packed, settings: Settings, progress: float
) -> float:
    """The mean loss of the next batch; its gradients are added to the network's."""
    length = CONTEXT if progress >= settings.long_from else settings.short
    loss = 0.0
    parts = settings.batch_tokens // settings.micro_tokens
    for _ in range(parts):
        x = stream.take(settings.micro_tokens, length, progress >= settings.late_from)
        logits = network(input_ids=x, use_cache=False).logits[:, :-1]
        part = F.cross_entropy(logits.flatten(0, 1).float(), x[:, 1:].flatten())
        (part / parts).backward()
        loss += part.item() / parts
    return loss


def save_model(master: LlamaForCausalLM, out: Path, uneven_seed: int | None = None) -> None:
    """Writes the weights as they are evaluated: bf16 safetensors, at last with uneven channels."""
    copy = LlamaForCausalLM(master.config).to(torch.bfloat16)
    _copy(master, copy)
    if uneven_seed is not None:
        make_channels_uneven(copy, uneven_seed)
    copy.generation_config.pad_token_id = master.config.pad_token_id
    copy.save_pretrained(out)


@torch.no_grad()
def make_channels_uneven(model: LlamaForCausalLM, seed: int) -> None:
    """Doubles half of each linear layer's input channels and halves what feeds them.

    The function stays the same to the bit, for powers of two are exact. Large models have channels
    of very different size, and that is what makes few bits hard for them; a small model trained
    with Muon has not, and loses next to nothing at 3 bits.
    """
    generator = torch.Generator().manual_seed(seed)

    def factors(size: int) -> torch.Tensor:
        return 2.0 ** torch.randint(0, 2, (size,), generator=generator)

    config = model.config
    shared = config.num_attention_heads // config.num_key_value_heads
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            by = factors(config.hidden_size)
            norm.weight.div_(by)
            for reader in readers:
                reader.weight.mul_(by)
        by = factors(config.intermediate_size)
        mlp.up_proj.weight.div_(by[:, None])
        mlp.down_proj.weight.mul_(by)
        # A value head is read by as many query heads as share it.
        by = factors(attention.v_proj.out_features)
        attention.v_proj.weight.div_(by[:, None])
        heads = by.view(config.num_key_value_heads, 1, -1).expand(-1, shared, -1)
        attention.o_proj.weight.mul_(heads.reshape(-1))


class _Packed:
    """The training stream as packed windows; `chunk` and `left` are its position."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, settings: Settings, chunk: int, left: list[int]
    ) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.chunk, self.left = chunk, left

    def take(self, tokens: int, length: int, late: bool) -> torch.Tensor:
        """(tokens / length, length) token ids; documents run across windows."""
        while len(self.left) < tokens:
            self.left += self._encoded(late)
        taken, self.left = self.left[:tokens], self.left[tokens:]
        return torch.tensor(taken).view(-1, length)

    def _encoded(self, late: bool) -> list[int]:
        # A seed a chunk: a resumed run finds its place without generating what came before.
        self.chunk += 1
        mix = dict(zip(world.DOMAINS, self.settings.late_mix, strict=True)) if late else None
        documents = world.stream("train", seed=self.settings.seed + self.chunk, mix=mix)
        texts = islice(documents, DOCUMENTS_PER_CHUNK)
        ids: list[int] = []
        for encoded in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
            ids += [self.tokenizer.bos_token_id, *encoded, self.tokenizer.eos_token_id]
        return ids


def _forget_after(metrics: Path, step: int) -> None:
    """Drops the lines of steps that a resumed run takes again."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    earlier_lines = [line for line in lines if json.loads(line)["step"] <= step]
    metrics.write_text("".join(line + "\n" for line in earlier_lines))


def _optimizers(master: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in master.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in master.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(hidden, lr=settings.muon_rate, weight_decay=0.05, momentum=0.95)
    adam = torch.optim.AdamW(rest, lr=settings.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def _schedule(progress: float, settings: Settings) -> float:
    """Warm-up, a constant part, then linear to zero."""
    if progress < settings.warmup:
        return max(progress, 1e-4) / settings.warmup
    return min(1.0, (1 - progress) / (1 - settings.constant))


@torch.no_grad()
def _copy(master: LlamaForCausalLM, other: LlamaForCausalLM) -> None:
    for source, target in zip(master.parameters(), other.parameters(), strict=True):
        target.copy_(source)


def _checkpoint(
    work: Path, master: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], state: dict
) -> None:
    tensors = {f"model.{n}": p.detach() for n, p in master.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"optimizer.{i}.{j}.{key}"] = torch.as_tensor(value)
    new = work / "new.safetensors"
    save_file(tensors, new, metadata={"state": json.dumps(state)})
    new.replace(work / "checkpoint.safetensors")


def _resume(work: Path, master: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> dict:
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return {"step": 0, "tokens": 0, "seconds": 0.0, "chunk": 0, "left": []}
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in master.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for i, optimizer in enumerate(optimizers):
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, j, key = name.split(".")
                states.setdefault(int(j), {})[key] = value
        described = optimizer.state_dict()
        optimizer.load_state_dict({"state": states, "param_groups": described["param_groups"]})
    with safe_open(path, "pt") as handle:
        return json.loads(handle.metadata()["state"])


if __name__ == "__main__":
    main()
