"""The walk over a model's blocks: what it gives is what the model computes, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.core.errors import ModelError
from harness.core.stage import listening
from harness.data import Tokens
from harness.models import Model, blocks, matrices, pretrained, run_trunk
from methods.quantization import walking
from methods.quantization.readings import Reading
from methods.quantization.walking import Block, check_walk, get_states, sequentially
from tests.support import architectures


def _tokens(rows: int = 6, length: int = 16) -> Tokens:
    ids = torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(0))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "TOKENS_AT_ONCE", 40)  # two rows of 16 at once


def _record(model: Model, ids: Tensor) -> dict[str, Tensor]:
    """What each block gives in a run of the whole model, by name."""
    given: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        given[name] = get_states(output)

    hooks = [
        block.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, block in blocks(model.network).items()
    ]
    with torch.no_grad():
        run_trunk(model.network, ids)
    for hook in hooks:
        hook.remove()
    return given


def _join(batches: list[Any]) -> Tensor:
    return torch.cat([get_states(each) for each in batches])


def _scale(block: Block) -> None:
    for matrix in block.layers.values():
        matrix.replace(matrix.weight * 1.25)


@pytest.mark.parametrize("quantized_inputs", [True, False])
def test_each_block_reads_what_the_model_says(
    llama: Model, tmp_path: Path, quantized_inputs: bool
) -> None:
    """Of changed blocks: what the changed model gives, or the original one."""
    tokens, walked = _tokens(), {}
    original, changed = llama, llama.fork()
    for matrix in matrices(changed.network).values():
        matrix.replace(matrix.weight * 1.25)
    model = llama.fork()
    for block in sequentially(model, tokens, tmp_path, quantized_inputs):
        _scale(block)
        walked[block.name] = _join(block.run_all())
    read = _record(changed if quantized_inputs else original, tokens.ids)
    first, last = read
    # The last block is changed in both; what it reads differs.
    expected = read[first] if quantized_inputs else _record(changed, tokens.ids)[first]
    torch.testing.assert_close(walked[first], expected)
    block = blocks(changed.network)[last]
    with torch.no_grad():
        arguments = _catch(model, last, tokens.ids, read[first])
        torch.testing.assert_close(walked[last], get_states(block(*arguments[0], **arguments[1])))
    for name, weight in changed.network.state_dict().items():
        assert torch.equal(weight, model.network.state_dict()[name])


def _catch(model: Model, name: str, ids: Tensor, states: Tensor) -> tuple[Any, Any]:
    """What the trunk calls a block with, but for the hidden states, which are these."""
    caught: list[Any] = []

    def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
        caught.append((args, kwargs))

    with blocks(model.network)[name].register_forward_pre_hook(keep, with_kwargs=True):
        run_trunk(model.network, ids)
    args, kwargs = caught[0]
    return (states, *args[1:]), kwargs


def test_the_originals_are_what_the_untouched_model_gives(llama: Model, tmp_path: Path) -> None:
    tokens = _tokens()
    expected = _record(llama, tokens.ids)
    for block in sequentially(llama.fork(), tokens, tmp_path, originals=True):
        _scale(block)
        torch.testing.assert_close(torch.cat(block.targets), expected[block.name])


def test_layers_that_read_one_tensor_are_seen_once_and_whole(llama: Model, tmp_path: Path) -> None:
    tokens, seen = _tokens(), dict[Reading, list[Tensor]]()
    expected: dict[str, Tensor] = {}

    def keep(name: str, inputs: tuple[Tensor, ...]) -> None:
        expected[name] = inputs[0].flatten(0, 1)

    hooks = [
        matrix.module.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs))
        for name, matrix in matrices(llama.network).items()
    ]
    run_trunk(llama.network, tokens.ids)
    for hook in hooks:
        hook.remove()
    for block in sequentially(llama.fork(), tokens, tmp_path):
        readings = block.observe(lambda reading, rows: seen.setdefault(reading, []).append(rows))
        kinds = [[name.rpartition(".")[2] for name in each.layers] for each in readings]
        assert kinds == [
            ["q_proj", "k_proj", "v_proj"],
            ["o_proj"],
            ["gate_proj", "up_proj"],
            ["down_proj"],
        ]
    for reading, rows in seen.items():
        for name in reading.layers:
            torch.testing.assert_close(torch.cat(rows), expected[name])


def test_what_was_computed_is_not_computed_again(llama: Model, tmp_path: Path) -> None:
    """A walk that is killed at block 1 goes on there, to the same weights."""
    calls: list[int] = []

    def work(block: Block) -> dict[str, Tensor]:
        calls.append(block.number)
        return {name: matrix.weight * 1.25 for name, matrix in block.layers.items()}

    def walk(stop: int) -> Model:
        model = llama.fork()
        for block in sequentially(model, _tokens(), tmp_path):
            for name, weight in block.once("weights", work).items():
                block.layers[name].replace(weight)
            if block.number == stop:
                raise InterruptedError
        return model

    with pytest.raises(InterruptedError):
        walk(stop=0)
    first = walk(stop=-1)
    assert calls == [0, 1]
    torn = tmp_path / "block-001-weights.safetensors"
    torn.write_bytes(torn.read_bytes()[:-9] + b"123456789")
    again = walk(stop=-1)
    assert calls == [0, 1, 1]
    assert all(
        torch.equal(weight, again.network.state_dict()[name])
        for name, weight in first.network.state_dict().items()
    )


def test_a_trained_block_keeps_its_gradients_to_itself(llama: Model, tmp_path: Path) -> None:
    """Parameters of a block may be trained against what the original gives."""
    model = llama.fork()
    for block in sequentially(model, _tokens(), tmp_path, originals=True):
        matrix = next(iter(block.layers.values()))
        weight = nn.Parameter(matrix.weight.clone() + 0.1)
        matrix.module.weight = weight
        losses = []
        for _ in range(3):
            loss = sum(
                (block.run(inputs) - target).square().mean()
                for inputs, target in zip(block.inputs, block.targets, strict=True)
            )
            assert isinstance(loss, Tensor)
            (gradient,) = torch.autograd.grad(loss, [weight])
            weight.data -= 0.05 * gradient / gradient.norm()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
    assert all(not tensor.requires_grad for tensor in llama.network.parameters())


def test_progress_is_told_and_no_block_is_held(llama: Model, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with listening(lambda done, total, _: told.append((done, total))):
        held = list(sequentially(llama.fork(), _tokens(), tmp_path))
    assert told == [(1, 2), (2, 2)]
    assert all(not block.before and not block.gave for block in held)


@pytest.mark.parametrize("name", ["gemma3-text", "gpt2", "mixtral", "zamba2", "mllama", "bloom"])
def test_blocks_of_many_kinds_are_walked(name: str, tmp_path: Path) -> None:
    """Masks of their own, experts, shared blocks, blocks that text does not run."""
    folder = architectures.build(name, tmp_path / "model")
    check_walk(pretrained(str(folder), "float32").run(tmp_path).fork())


def test_blocks_that_need_more_than_the_trunk_hands_on_are_refused(llama: Model) -> None:
    model = llama.fork()
    first, last = blocks(model.network).values()
    kept: list[Tensor] = []
    first.register_forward_hook(lambda _, __, output: kept.append(get_states(output)))
    last.register_forward_hook(
        lambda _, __, output: output + kept.pop() if len(kept) == 1 else output
    )
    with pytest.raises(ModelError, match="its blocks cannot be run one after the other"):
        check_walk(model)
