"""What went wrong with a training: whether its loss ran away.

Training has diverged when each of the last ten losses is more than twice the first one, which was
taken before any weight moved; not before the twentieth step. All objectives are averages of terms
that are not negative, so a loss that much higher is a student worse than the untrained one. Each of
ten, because a spike that recovers is no divergence, and a batch may be harder than the first; the
first one alone, because a rate far too high ruins the next nine. A first loss of few labels may be
far below the average, so the fewer it had, the more is allowed: `FEW` of them double the factor.
Losses that are next to nothing are counted as `SLIGHT`: a student that begins as its teacher cannot
but get worse. What this does not see: a loss that is bounded and begins above half of its bound, as
JSD's may, and with few labels a divergence that is not a gross one.

Not here: where NaN and Inf came from (`harness.models.finite`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW, SOONEST = 10, 20  # steps
SLIGHT = 0.05  # nats a token
FEW = 200  # labels


@dataclass
class LossHistory:
    """The losses of a training's steps so far, of those that had labels."""

    losses: list[float] = field(default_factory=list)
    labels: int = 0  # of the first one

    def add(self, loss: float, labels: int) -> None:
        if labels:  # else there is no loss
            self.labels = self.labels or labels
            self.losses.append(loss)

    @property
    def limit(self) -> float:
        """What a loss may be and count as no worse than the first one."""
        return 2 * (1 + FEW / self.labels) * max(self.losses[0], SLIGHT)

    def is_worse(self, last: int = 1) -> bool:
        """Whether each of the `last` losses is more than the limit."""
        return bool(self.losses) and min(self.losses[-last:]) > self.limit

    def has_diverged(self) -> bool:
        """Whether training ran away."""
        return len(self.losses) >= SOONEST and self.is_worse(WINDOW)

    def describe_divergence(self, step: int, layer: str, far: float, saved: int) -> str:
        """In words; `layer` moved furthest, and how `far`."""
        return (
            f"training diverged at step {step}: the loss is {self.losses[-1]:.4g} and was "
            f"{self.losses[0]:.4g} before it began; {layer} moved furthest, {far:.3g} times its "
            f"norm; {describe_checkpoint(saved)}; lower lr or raise warmup, or set "
            "train.stop_diverged to false"
        )


def describe_checkpoint(saved: int) -> str:
    """Where to go on from: `saved` is the step of the last checkpoint, 0 for none."""
    return f"last good checkpoint: step {saved}" if saved else "no checkpoint yet"
