"""Which parameters of the blocks are matrices: against what real forward passes multiply by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from harness.core.errors import ModelError
from harness.models import Matrix, blocks, matrices, run_trunk, survey
from tests.support import architectures

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv"}
MIXTURES = ("mixtral", "qwen2-moe", "gpt-oss", "llama4-text", "dbrx", "jetmoe", "deepseek-v3")
OTHERS = ("llama", "gpt2", "bloom", "mamba", "recurrent-gemma", "qwen3-next", "nemotron-h")


class Products(TorchDispatchMode):
    """Notes which parameters enter a product, and the last two sizes of each as it does."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.parameters, self.sizes = parameters, dict[str, set[tuple[int, ...]]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            weight = args[2 if name.startswith(("add", "badd")) else 1]
            for parameter, stored in self.parameters.items():
                if 0 <= weight.data_ptr() - stored.data_ptr() < stored.nbytes:
                    self.sizes.setdefault(parameter, set()).add(tuple(weight.shape[-2:]))
        return func(*args, **(kwargs or {}))


def _inside(network: PreTrainedModel) -> dict[str, Tensor]:
    prefixes = tuple(f"{name}." for name in blocks(network))
    return {name: p for name, p in network.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("name", [*MIXTURES, *OTHERS])
def test_what_the_blocks_multiply_by_is_quantised_or_kept(name: str) -> None:
    network = architectures.make(name)
    for module in network.modules():  # one expert at a time, in products that can be seen
        if hasattr(module, "is_transposed"):
            module.config._experts_implementation = "eager"
    found, inside = survey(network), _inside(network)
    with torch.no_grad(), Products(inside) as products:
        run_trunk(network, torch.randint(3, 250, (2, 64)))
    quantised = {matrix.parameter_name: matrix for matrix in found.matrices.values()}
    assert products.sizes.keys() <= quantised.keys() | found.kept.keys()
    assert quantised.keys() <= products.sizes.keys()
    for parameter, matrix in quantised.items():
        # The second factor of a product has the input channels first.
        assert products.sizes[parameter] == {(matrix.in_features, matrix.out_features)}, parameter
        assert matrix.stored is inside[parameter]


@pytest.mark.parametrize("name", MIXTURES)
def test_routers_and_gates_of_shared_experts_are_kept(name: str) -> None:
    found = survey(architectures.make(name))
    kept = {path.split(".", 3)[-1] for path in found.kept}
    expected = {
        "qwen2-moe": {"mlp.gate.weight", "mlp.shared_expert_gate.weight"},
        "gpt-oss": {"mlp.router.weight"},
        "llama4-text": {"feed_forward.router.weight"},
        "dbrx": {"ffn.router.layer.weight"},
        "jetmoe": {"mlp.router.layer.weight", "self_attention.experts.router.layer.weight"},
    }
    assert kept == expected.get(name, {"mlp.gate.weight"})
    # All that is not quantised is the routers: no matrix of the experts or of attention is missing.
    rest = {n for n, p in _inside(architectures.make(name)).items() if p.dim() > 1}
    rest -= {matrix.parameter_name for matrix in found.matrices.values()}
    assert {n for n in rest if "bias" not in n} == set(found.kept)


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "dbrx", "gpt2"])
def test_a_new_weight_comes_back_as_it_was_given(name: str) -> None:
    network = architectures.make(name)
    for matrix in matrices(network).values():
        before, stored = matrix.weight.clone(), matrix.stored.clone()
        given = torch.randn(before.shape)
        matrix.replace(given)
        assert torch.equal(matrix.weight, given)
        assert matrix.stored.shape == stored.shape and matrix.stored.is_contiguous()
        assert torch.equal(matrix.map(lambda rows: rows * 2, stored), stored * 2)


def test_experts_that_are_modules_of_their_own_have_a_router_too() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(64, 4, bias=False)
            self.experts = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)])

    network = architectures.make("llama")
    for layer in network.model.layers:
        layer.mlp = Mixture()
    found = survey(network)
    assert set(found.kept) == {f"model.layers.{i}.mlp.gate.weight" for i in range(2)}
    assert "model.layers.1.mlp.experts.3" in found.matrices


@pytest.mark.parametrize(
    ("part", "shape"),
    [(nn.Conv1d(64, 64, 3), "64 x 64 x 3"), (nn.GRU(64, 8), "24 x 64")],
    ids=["convolution", "recurrence"],
)
def test_a_parameter_of_no_known_kind_is_refused_by_name(part: nn.Module, shape: str) -> None:
    network = architectures.make("llama")
    network.model.layers[1].mlp.extra = part
    with pytest.raises(
        ModelError, match=rf"parameter model\.layers\.1\.mlp\.extra\.\w+ \({shape}\)"
    ):
        matrices(network)


def test_a_bare_parameter_is_refused_by_name() -> None:
    network = architectures.make("llama")
    network.model.layers[0].self_attn.mix = nn.Parameter(torch.zeros(3, 16, 16))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.self_attn\.mix \(3 x 16 x 16\)"):
        matrices(network)


def test_a_new_weight_is_put_where_the_old_one_is_in_its_type() -> None:
    """Methods compute on a device, and models may be kept on another."""
    matrix = Matrix("layer", nn.Linear(8, 4, bias=False, dtype=torch.bfloat16, device="meta"))
    matrix.replace(torch.ones(4, 8))
    assert (matrix.stored.device.type, matrix.stored.dtype) == ("meta", torch.bfloat16)
