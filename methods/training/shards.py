"""One model and one batch over the processes that train together; of one process, all of both.

    shards = Shards.here()              # among torchrun's processes, or alone
    model = shards.split(model, dtype)  # FSDP2: the rows of each block's weights, spread out
    mine = shards.take_rows(rows)       # this process's rows of a step
    total = shards.all_reduce(total)    # the sum over all processes

Blocks are sharded, embeddings, last norm and head are copied to every process: trunk and head are
called apart (`forward`), many models tie the two ends, and by default they are not trained.
Every process must make the same calls in the same order. Not here: starting processes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from harness.models import Model, blocks, device, find_trunk
from harness.models.tensors import Make, move_buffers, replace_parameters
from methods.compat import find_local_rows

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """Which of how many processes this one is. Alone, every method gives back what it is given."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Shards:
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all of them computed."""
        return self.rank == 0

    def split(self, model: Model, dtype: torch.dtype, moved: Container[str] = ()) -> Model:
        """A model in `dtype` on this process's device that holds its rows of the blocks' weights.

        The parameters `moved` take gradients and share no memory with the model's. Gradients are
        added up over the processes in float32 and come back in the weights' dtype: in bfloat16 each
        process's is rounded, and their sum once more. The model is split block by block, so that
        however many processes share it none has it whole a second time.
        """
        here, fork = device(), model.fork()
        layers = blocks(fork.network)
        inside = {id(p) for layer in layers.values() for p in layer.parameters()}

        def make(name: str, old: nn.Parameter) -> nn.Parameter:
            # A parameter of its own even where nothing moves: FSDP changes it in place.
            tensor = old.detach().to(here, dtype, copy=name in moved)
            return nn.Parameter(tensor, requires_grad=name in moved)

        def outside(name: str, old: nn.Parameter) -> nn.Parameter:
            return old if id(old) in inside else make(name, old)

        def of(block: str) -> Make:
            return lambda name, old: make(f"{block}.{name}", old)

        move_buffers(fork.network, here)
        if self.world == 1:
            replace_parameters(fork.network, make)
            return fork
        replace_parameters(fork.network, outside)
        copied = {p for p in fork.network.parameters() if id(p) not in inside}
        mesh = init_device_mesh(here.type, (self.world,))
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        for prefix, layer in layers.items():
            replace_parameters(layer, of(prefix))
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(find_trunk(fork.network)[1], mesh=mesh, mp_policy=policy, ignored_params=copied)
        for layer in layers.values():
            assert isinstance(layer, FSDPModule)
            layer.set_gradient_divide_factor(1.0)
            layer.set_force_sum_reduction_for_comms(True)
        return fork

    def take_rows(self, rows: Tensor) -> Tensor:
        """Every `world`-th of them, so that rows sorted by length are shared out evenly."""
        return rows[self.rank :: self.world]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def list_replicated(self, places: Mapping[str, Tensor]) -> list[str]:
        """Those of which each process has a copy, whose gradients nobody else adds up."""
        return [n for n, p in places.items() if self.world > 1 and not isinstance(p, DTensor)]

    def total_norm(self, gradients: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> Tensor:
        """The 2-norm of all gradients of all processes, copies counted once: a scalar."""
        split = [g for name, g in gradients.items() if isinstance(places[name], DTensor)]
        rest = [g for name, g in gradients.items() if not isinstance(places[name], DTensor)]
        norm = torch.nn.utils.get_total_norm(rest)
        if not split:
            return norm
        return (
            self.all_reduce(torch.nn.utils.get_total_norm(split).square()) + norm.square()
        ).sqrt()

    def all_follow(self, decision: bool) -> bool:
        """The main process's decision, in all of them."""
        if self.world == 1:
            return decision
        decided = torch.tensor([decision], dtype=torch.uint8)  # on the host: no GPU waits
        dist.broadcast(decided, 0)
        return bool(decided)

    def find_first(self, thing: T | None) -> T | None:
        """The first process's `thing` that is not None: the same answer in all of them."""
        return next((each for each in self._all_gather(thing) if each is not None), None)

    def gather(self, part: Tensor, place: Tensor) -> Tensor | None:
        """The whole of what is spread like `place`, on the host: in the main process, else None."""
        if self.world == 1:
            return part.cpu()
        if isinstance(place, DTensor):
            shape = self.full_shape(part, place)
            stride = torch.empty(shape, device="meta").stride()
            part = DTensor.from_local(
                part.contiguous(), place.device_mesh, place.placements, shape=shape, stride=stride
            ).full_tensor()
        return part.cpu() if self.is_main else None

    def full_shape(self, part: Tensor, place: Tensor) -> torch.Size:
        """The shape of what `gather` gives."""
        rows = place.shape[:1] if isinstance(place, DTensor) else part.shape[:1]
        return rows + part.shape[1:]

    def _all_gather(self, thing: T | None) -> list[T | None]:
        if self.world == 1:
            return [thing]
        things: list[T | None] = [None] * self.world
        dist.all_gather_object(things, thing)
        return things


ALONE = Shards()


def find_rows(place: Tensor) -> slice | None:
    """Which rows of a parameter of the network this process holds; None: the whole."""
    if not isinstance(place, DTensor):
        return None
    return find_local_rows(place)


def local_part(tensor: Tensor) -> Tensor:
    """This process's rows of a parameter or gradient of the network; not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
