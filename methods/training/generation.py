"""How a model writes: from beginnings to whole sequences, many at a time, the same each time.

    ids, ends = write(teacher, prompts, greedy, chances, temperature=0.7, top_p=1.0, tell=...)

What is drawn depends on the seed and the place of a sequence only: each (sequence, position) has
its uniform number. But what a model finds likely depends, by rounding, on which sequences run
together: on a GPU the product of the same row differs from batch to batch. So how many that are
follows from the model, the length and the kind of device alone, never from the memory that happens
to be free: a text can be made again, and a stopped generation goes on from its parts on another GPU
too.

Not here: what is written about, and what of it is learnt (`data`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from harness.core.errors import ModelError
from harness.models import Model, carries_states, find_cache_name, run_trunk
from methods.training.forward import run_head

_MOST_ROWS = 256
# Bytes of keys and values at once. On a GPU: what a 7B model leaves of 24 GB.
_CACHE = {"cpu": 2 * 2**30, "cuda": 8 * 2**30}
_GROWTH = 64  # tokens of room that a cache makes at a time


@torch.inference_mode()
def write(
    teacher: Model,
    prompts: list[list[int]],
    greedy: Tensor,
    chances: Tensor,
    temperature: float,
    top_p: float,
    tell: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Continue prompts, one row each: ids (B, T) and where each row ends (B,), on the CPU.

    greedy (B,): how many tokens to take the likeliest of; chances (B, T): a uniform number for each
    position. `tell` hears how many rows' worth is done. Prompts stand flush right while the model
    runs, so that all rows go on from one column; rows that ended are dropped from the batch once
    they are a quarter of it.
    """
    network, length = teacher.network, chances.shape[1]
    ending = stops(teacher)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    rows = len(prompts)
    result = torch.zeros(rows, length, dtype=torch.int64)
    ends = torch.full((rows,), length)
    for row, prompt in enumerate(prompts):
        result[row, : len(prompt)] = torch.tensor(prompt)
    alive, at = torch.arange(rows), lengths.clone()  # rows of the batch; each one's next column
    ended = torch.zeros(rows, dtype=torch.bool)
    batch = _Batch(network, prompts, length)
    for step in range(length):
        states = batch.read()
        uniform = chances[alive, at.clamp(max=length - 1)].to(states.device)
        likeliest = (at - lengths[alive] < greedy[alive]).to(states.device)
        picked = sample(run_head(network, states), uniform, likeliest, temperature, top_p)
        batch.append(picked)
        written, live = picked.cpu(), ~ended
        result[alive[live], at[live]] = written[live]
        at[live] += 1
        now = live & (torch.isin(written, ending) | (at >= length))
        ends[alive[now]] = at[now]
        ended |= now
        if bool(ended.all()):
            break
        if int(ended.sum()) * 4 >= len(ended):
            where = (~ended).nonzero().squeeze(1)
            alive, at, ended = alive[where], at[where], ended[where]
            batch.keep(where)
        if step % 16 == 15:
            tell(rows * step // length)
    return result, ends


class _Batch:
    """Texts that a network reads together, each token once. They stand flush right; `length` is the
    longest that they become."""

    def __init__(
        self, network: PreTrainedModel, texts: Sequence[Sequence[int]], length: int
    ) -> None:
        name = find_cache_name(network)
        if name is None:
            raise ModelError(f"{type(network).__name__} has a cache of a kind of its own")
        self.network, self.length, self.cache_name = network, length, name
        self.cache = _cache(network.config)
        lengths = torch.tensor([len(text) for text in texts])
        width = int(lengths.max())
        tokens = torch.zeros(len(texts), width, dtype=torch.int64)
        for row, text in enumerate(texts):
            tokens[row, width - len(text) :] = torch.tensor(text)
        seen = torch.arange(width) >= width - lengths[:, None]
        position = (seen.cumsum(1) - 1).clamp(min=0)
        self.ragged = bool((lengths != width).any())
        device = network.device
        self.tokens, self.seen, self.position = (t.to(device) for t in (tokens, seen, position))

    def read(self) -> Tensor:
        """The state of each text's last token: (B, D)."""
        return run_trunk(
            self.network,
            self.tokens,
            attention_mask=self.seen if self.ragged else None,
            position_ids=self.position,
            use_cache=True,
            **{self.cache_name: self.cache},
        )[:, -1]

    def append(self, tokens: Tensor) -> None:
        """One more token for each text: (B,) int64. It is read next, and those before not again."""
        self.tokens = tokens[:, None]
        self.seen = torch.cat([self.seen, self.seen.new_ones(len(tokens), 1)], dim=1)
        self.position = (self.position[:, -1:] + 1).clamp(max=self.length - 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the texts only."""
        rows = rows.to(self.tokens.device)
        self.tokens, self.seen, self.position = (
            tensor[rows] for tensor in (self.tokens, self.seen, self.position)
        )
        self.cache.reorder_cache(rows)


def sample(
    scores: Tensor, uniform: Tensor, greedy: Tensor, temperature: float, top_p: float
) -> Tensor:
    """One token a row, by inverting the distribution function: (B, V) -> (B,) int64.

    uniform (B,) in [0, 1); greedy (B,) bool: take the likeliest. top_p keeps the fewest tokens
    whose probabilities reach it. Temperature 0 is greedy.
    """
    if temperature == 0 or bool(greedy.all()):
        return scores.argmax(-1)
    chances = (scores.float() / temperature).softmax(-1)
    places: Tensor | None = None
    if top_p < 1:
        chances, places = chances.sort(-1, descending=True)
        chances = chances.masked_fill(_sums(chances) - chances >= top_p, 0)
    reached = _sums(chances)
    drawn = torch.searchsorted(reached, (uniform.to(reached) * reached[:, -1])[:, None], right=True)
    drawn = drawn.clamp(max=scores.shape[-1] - 1)
    if places is not None:
        drawn = places.gather(-1, drawn)
    drawn = drawn.squeeze(-1)
    return torch.where(greedy, scores.argmax(-1), drawn) if bool(greedy.any()) else drawn


def _sums(chances: Tensor) -> Tensor:
    """Of each row up to each place: (B, V). One row alone CUDA adds up in no fixed order."""
    return chances.expand(max(2, len(chances)), -1).cumsum(-1)[: len(chances)]


class _Roomy(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values in a buffer with room at the end.

    The library's own copies everything at every token, which here is most of the time.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
            self.room: tuple[Tensor, Tensor] | None = None
        old, new = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < new:
            self.room = self._more(self.keys, new), self._more(self.values, new)
        keys, values = self.room
        keys[..., old:new, :] = key_states
        values[..., old:new, :] = value_states
        self.keys, self.values = keys[..., :new, :], values[..., :new, :]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.room = None

    @staticmethod
    def _more(held: Tensor, length: int) -> Tensor:
        bigger = held.new_empty(*held.shape[:-2], length + _GROWTH, held.shape[-1])
        bigger[..., : held.shape[-2], :] = held
        return bigger


def _cache(config: object) -> DynamicCache:
    """The library's cache for a model, with roomy layers where they are plain ones."""
    cache = DynamicCache(config=config)
    cache.layers = [_Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@torch.inference_mode()
def check_writing(model: Model) -> None:
    """Raise ModelError where texts that are read together, token by token, get other states than
    each as a whole: a cache may have a fault, and padding may be seen."""
    lengths, longest = torch.tensor([3, 3, 5]), 13
    count = min(model.vocabulary, 256)
    texts = torch.randint(count, (3, longest), generator=torch.Generator().manual_seed(0))
    whole = [run_trunk(model.network, text[None])[0] for text in texts]
    for rows in split_rows(model, lengths, len(texts)):
        begins = lengths[rows]
        prompts = [texts[row, :begin].tolist() for row, begin in zip(rows, begins, strict=True)]
        batch = _Batch(model.network, prompts, longest)
        for step in range(longest - int(begins.max())):
            states = batch.read()
            wanted = torch.stack(
                [whole[row][at] for row, at in zip(rows, begins + step - 1, strict=True)]
            )
            if not torch.allclose(states, wanted, rtol=0, atol=3e-4 * float(wanted.std())):
                raise ModelError(
                    f"{type(model.network).__name__} has other states with its cache than without"
                )
            batch.append(texts[rows, begins + step])


def split_rows(teacher: Model, lengths: Tensor, at_once: int) -> Iterator[Tensor]:
    """Batches of rows to be written together, by the lengths (B,) of their prompts: alike ones
    together, so that little is padding; none where padding would change what is written."""
    rows = lengths.argsort(stable=True)
    groups: Sequence[Tensor] = [rows]
    if carries_states(teacher.network):
        groups = rows.split(lengths.unique(return_counts=True)[1].tolist())
    for group in groups:
        yield from group.split(at_once)


def rows_at_once(teacher: Model, length: int, device: str) -> int:
    """How many sequences are written together, whose keys and values have a fixed size at most."""
    limit = _CACHE.get(device, _CACHE["cpu"])
    return max(1, min(_MOST_ROWS, limit // max(1, cache_bytes(teacher) * length)))


@torch.inference_mode()
def cache_bytes(teacher: Model) -> int:
    """Of the keys and values of a token."""
    network = teacher.network
    if (name := find_cache_name(network)) is None:
        return 0
    cache = DynamicCache(config=network.config)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=network.device)
    run_trunk(network, ids, use_cache=True, **{name: cache})
    held = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values")]
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def stops(teacher: Model) -> Tensor:
    """Every token that ends a text: the tokenizer's EOS and the generation configuration's."""
    configured_stops = getattr(teacher.network.generation_config, "eos_token_id", None)
    stop_ids = (
        set(configured_stops) if isinstance(configured_stops, list | tuple) else {configured_stops}
    )
    return torch.tensor(
        sorted((stop_ids | {teacher.tokenizer.eos_token_id}) - {None}), dtype=torch.int64
    )


def padding(teacher: Model) -> int:
    tokenizer = teacher.tokenizer
    known: Iterator[int | None] = iter((tokenizer.pad_token_id, tokenizer.eos_token_id))
    return next((int(i) for i in known if i is not None), 0)
