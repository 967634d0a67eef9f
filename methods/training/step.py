"""One optimisation step, as training takes it, as memory is estimated by it and as it is timed.

    step = TrainingStep(training, objective, statistic, masters, teacher)
    loss, norm = step.compute_gradients(micro_batches)
    step.update(rate, norm)

The masters are rounded once; for each micro-batch teacher and student trunks are run, then head and
objective a chunk of label tokens at a time, each chunk's gradient going back to the hidden states
at once, so that logits of a whole batch never exist; one backward through the trunk; then one AdamW
step on the float32 masters. Gradients are sums over label tokens divided by the whole batch's
weight, so micro-batches of unequal length add up to the big batch: down to rounding, which in
bfloat16 is of each one's gradients to 8 bits and shows in the losses.

Not here: the weights (`masters`), what a loss is (`objectives`), which sequences a step sees
(`batches`), when to take one, to write or to stop (`train`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.models import (
    Model,
    are_distributions,
    count_vocabulary,
    find_first_broken,
    run_trunk,
)
from methods.training.forward import (
    Labels,
    measure_states,
    recompute_blocks,
    run_head,
    split_tokens,
    token_nll,
)
from methods.training.masters import Masters
from methods.training.objectives import Objective, TokenLogits
from methods.training.optimizer import make_adamw, set_rate
from methods.training.settings import Training


@dataclass
class TrainingStep:
    """What a step works on. `statistic`: the value of the objective's stage; `teacher` lies where
    the student computes, and in the same dtype."""

    training: Training
    objective: Objective
    statistic: float | None
    masters: Masters
    teacher: Model | None
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        if self.training.gradient_checkpointing:
            recompute_blocks(self.masters.network)
        self.optimizer = make_adamw(
            self.training.optimizer,
            self.masters.weights.values(),
            self.training.lr,
            self.training.betas,
            self.training.weight_decay,
        )

    def compute_gradients(
        self, micro_batches: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[float, float]:
        """Loss and gradient norm of a batch; its gradients stand in the masters.

        micro_batches: (ids (b, T) int64, mask (b, T) bool) each. Of several processes each gives
        its own, and all get the same two numbers.
        """
        self.masters.requantize()
        sums = torch.zeros(2, device=self.masters.network.device)
        for ids, mask in micro_batches:
            sums += self.run_micro_batch(ids, mask)
            self.masters.accumulate_gradients()
        total, weight = self.masters.shards.all_reduce(sums).tolist()
        scale = 1 / weight if weight else 0.0
        return total * scale, float(self.masters.finish_gradients(scale))

    def run_micro_batch(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Forward and backward: Σ weight·loss and Σ weight, (2,). The gradients of the first are
        left in the network.

        ids (B, T) int64, mask (B, T) bool.
        """
        network, labels = self.masters.network, Labels.of(ids, mask)
        teacher_states = weights = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_states = labels.pick(run_trunk(self.teacher.network, ids))
        if self.objective.weighted:
            weights = self._token_weights(teacher_states, labels)
        states = labels.pick(run_trunk(network, ids))
        total = torch.zeros((), device=ids.device)
        gradient = torch.zeros_like(states)
        for part in split_tokens(len(states), count_vocabulary(network), states.device):
            # A leaf of its own for each chunk, so that its logits are freed before the next one's.
            leaf = states[part].detach().requires_grad_()
            target = None
            if self.teacher is not None and teacher_states is not None:
                with torch.no_grad():
                    target = run_head(self.teacher.network, teacher_states[part])
                    # An objective need not show it; without a test, which would stop a GPU.
                    total = total.masked_fill(~are_distributions(target).all(), math.nan)
            logits = TokenLogits(run_head(network, leaf), target, labels.ids[part], self.statistic)
            losses = self.objective.compute_losses(logits)
            weighted = (losses if weights is None else losses * weights[part]).sum()
            weighted.backward()
            total += weighted.detach()
            assert leaf.grad is not None
            gradient[part] = leaf.grad
        states.backward(gradient)
        weight = total.new_tensor(float(len(states))) if weights is None else weights.sum()
        return torch.stack([total, weight])

    def update(self, rate: float, norm: float) -> None:
        """Clip the masters' gradients, of this norm, to the one allowed; move the masters; let the
        gradients go."""
        limit, masters = self.training.clip_norm, self.masters.weights.values()
        if limit and norm > limit:
            grads = [w.grad for w in masters if w.grad is not None]
            torch._foreach_mul_(grads, limit / (norm + 1e-6))
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        for master in masters:
            master.grad = None

    def find_cause(self, micro_batches: Sequence[tuple[Tensor, Tensor]], loss: float) -> str:
        """What was not finite in a step with this loss, in words: found by running it once more."""
        networks = {"": self.masters.network}
        if self.teacher is not None:
            networks["teacher's "] = self.teacher.network
        self.masters.requantize()
        cause = find_first_broken(
            networks,
            lambda: [self.run_micro_batch(*pair) for pair in micro_batches],
            gradients=math.isfinite(loss),
        )
        cause = self.masters.shards.find_first(cause)
        return cause or f"the objective {self.objective.name!r} itself, at a loss of {loss}"

    def _token_weights(self, teacher_states: Tensor | None, labels: Labels) -> Tensor:
        """(N,): the objective's token weights, from the teacher's loss on every label.

        teacher_states (N, D): those of the label positions.
        """
        assert self.teacher is not None and teacher_states is not None
        losses = measure_states(self.teacher.network, teacher_states, labels, token_nll)
        return self.objective.compute_weights(labels.spread(losses), labels.where)[labels.where]
