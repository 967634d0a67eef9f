"""What the matrices of a block see on calibration text: the statistics that searches need of it.

    for seen in observe(block, layers, IntAsym(bits=2), count=512):
        roots = seen.roots()                        # of what seen.layers, or one expert of it, see

The output error of a group of weights is |X d|^2 = d' H d, where d is the change of its weights,
X (n, g) what it sees and H = X'X. So a group needs g x g numbers, however many the tokens, and no
tensor of tokens x channels x groups is ever made. Instead of H searches use a root of it, R with
R'R = H: |R d|^2 takes one pass fewer and cannot turn negative. Where the tokens are fewer than the
group is wide, X is such a root itself and H is not formed: per channel, 512 tokens of 11008
channels are 22 MB and their H would be 485.

Not here: how layers are watched (`readings`), the blocks (`walking`), the searches (`clip`, `awq`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.core.errors import ModelError
from harness.models import Matrix, read_text_config
from methods.quantization.by_layer import group_by_format
from methods.quantization.clip import one_thread_each
from methods.quantization.formats import Format, Grouped
from methods.quantization.readings import Reading
from methods.quantization.spans import Span
from methods.quantization.walking import Block

# What configurations call the experts that a token is sent to.
_SENT_TO = ("num_experts_per_tok", "moe_top_k", "moe_k", "top_k_experts", "num_experts_per_token")


@dataclass
class Observed:
    """What a layer sees on calibration tokens, cut as its weights are.

    For each span of groups either `grams` (G, g, g) float64, the sum of X'X, or, where the tokens
    are fewer than a group is wide, `rows`: parts of X (n, G, g) float32. `sizes` (I,) float64: the
    sum of |x| over all tokens, sampled or not, of which there were `seen`. All on the host.
    """

    reading: Reading  # the layers that share this input
    spans: list[Span]
    count: int  # tokens that will be sampled; of an expert about so many
    grams: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, list[Tensor]] = field(default_factory=dict)
    seen: int = 0
    sizes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = torch.zeros(self.spans[-1].stop, dtype=torch.float64)

    @property
    def layers(self) -> list[str]:
        return self.reading.layers

    @property
    def expert(self) -> int | None:
        return self.reading.expert

    @property
    def nbytes(self) -> int:
        parts = [*self.grams.values(), *(part for rows in self.rows.values() for part in rows)]
        return sum(part.nbytes for part in parts)

    def see(self, rows: Tensor, chosen: Tensor) -> None:
        """Take in what is read (n, I), and of it the sample at the positions `chosen` (m,)."""
        self.seen += len(rows)
        self.sizes += rows.abs().sum(0, dtype=torch.float32).cpu()
        sample = rows[chosen.to(rows.device)].float().cpu()
        if not bool(sample.isfinite().all()):
            expert = self.reading.expert
            name = self.layers[0] + ("" if expert is None else f", expert {expert}")
            raise ModelError(f"layer {name}: its input has NaN or Inf on the calibration text")
        if len(sample):
            self.add(sample)

    def add(self, sample: Tensor) -> None:
        """Take in some of the sampled tokens: (n, I) float32."""
        for index, span in enumerate(self.spans):
            groups = span.cut(sample)
            if self.count < span.width:
                self.rows.setdefault(index, []).append(groups.clone())
                continue
            by_group = groups.transpose(0, 1).double()
            gram = by_group.mT @ by_group
            self.grams[index] = self.grams[index] + gram if index in self.grams else gram

    def roots(self) -> list[Tensor]:
        """For each span R with R'R = H: (G, k, g) float32."""
        with one_thread_each():
            return [self._root(index, span) for index, span in enumerate(self.spans)]

    def _root(self, index: int, span: Span) -> Tensor:
        if index in self.rows:
            return torch.cat(self.rows[index]).transpose(0, 1).contiguous()
        if index not in self.grams:  # a layer that was never called: every range is as good
            return torch.zeros(span.groups, 1, span.width)
        values, vectors = torch.linalg.eigh(self.grams[index])
        root: Tensor = values.clamp(min=0).sqrt()[..., None] * vectors.mT
        return root.float()


def observe(
    block: Block, layers: Mapping[str, Matrix], format: Grouped, count: int
) -> list[Observed]:
    """What `layers` of a block see on `count` evenly spread tokens (all, where there are fewer).

    Layers that read one tensor (gate and up) are observed once. Of experts each is observed on
    about `count` of the tokens that are sent to it. Raises ModelError, naming the layer, where it
    sees NaN or Inf.
    """
    total = sum(ids.numel() for ids in block.ids)
    count = min(count, total)
    spread, sent_to = torch.arange(count) * total // count, _count_sent(block)
    observed: dict[Reading, Observed] = {}

    def get(reading: Reading) -> Observed:
        if reading not in observed:
            spans = format.spans(layers[reading.layers[0]].in_features)
            observed[reading] = Observed(reading, spans, count)
        return observed[reading]

    def see(reading: Reading, rows: Tensor) -> None:
        seen = get(reading)
        if reading.expert is None:
            chosen = spread[(spread >= seen.seen) & (spread < seen.seen + len(rows))] - seen.seen
        else:
            # How many tokens an expert will see is not known before: every so many of those
            # that are expected.
            expected = total * sent_to // layers[reading.layers[0]].experts
            stride = max(1, expected // count)
            chosen = torch.arange(-seen.seen % stride, len(rows), stride)
        seen.see(rows, chosen)

    return [get(reading) for reading in block.observe(see, layers)]


def observe_by_format(
    block: Block, layers: Mapping[str, Matrix], format: Format, count: int
) -> Iterator[tuple[Grouped, Observed]]:
    """`observe` of the layers that have levels, with the format of each: one run of the block a
    format, since what is kept of an input depends on its groups."""
    for kind, names in group_by_format(format, layers).items():
        for seen in observe(block, {name: layers[name] for name in names}, kind, count):
            yield kind, seen


def _count_sent(block: Block) -> int:
    """To how many experts a token is sent; 1 where the configuration does not say."""
    config = read_text_config(block.network.config)
    counts = (getattr(config, name, None) for name in _SENT_TO)
    return next((count for count in counts if isinstance(count, int)), 1)


def sum_grams(block: Block, layers: Iterable[str]) -> dict[Reading, Tensor]:
    """X'X of what each reading of a block's `layers` sees: (I, I) float32, on the device.

    Zero where nothing is seen: an expert to which no token is sent.
    """
    sums: dict[Reading, Tensor] = {}

    def see(reading: Reading, rows: Tensor) -> None:
        wide = rows.float()
        if reading in sums:
            sums[reading].addmm_(wide.T, wide)
        else:
            sums[reading] = wide.T @ wide

    for reading in block.observe(see, {name: block.layers[name] for name in layers}):
        sums.setdefault(reading, _make_zeros(block, reading))
    return sums


def sum_deviations(block: Block, layers: Iterable[str]) -> dict[Reading, Tensor]:
    """X'X as `sum_grams` has it, and beside it (Y - X)'X, with Y what the original model reads:
    (2, I, I) float32, on the device. The second is zero of experts, which see other tokens there.
    """
    sums: dict[Reading, Tensor] = {}

    def see(reading: Reading, rows: Tensor, original: Tensor | None) -> None:
        wide = rows.float()
        if reading not in sums:
            sums[reading] = _make_zeros(block, reading, 2)
        gram, deviation = sums[reading]
        gram.addmm_(wide.T, wide)
        if original is not None:
            deviation.addmm_((original.float() - wide).T, wide)

    for reading in block.observe_both(see, {name: block.layers[name] for name in layers}):
        sums.setdefault(reading, _make_zeros(block, reading, 2))
    return sums


def _make_zeros(block: Block, reading: Reading, *before: int) -> Tensor:
    weight = block.layers[reading.layers[0]].weight
    return weight.new_zeros(*before, *[weight.shape[-1]] * 2, dtype=torch.float32)
