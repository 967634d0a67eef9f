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
from inspect import signature

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from harness.core.errors import ModelError
from harness.models import Model, find_trunk, read_text_config, run_trunk
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
    device, network, length = teacher.device, teacher.network, chances.shape[1]
    ending = stops(teacher).to(device)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    rows = len(prompts)
    result = torch.zeros(rows, length, dtype=torch.int64)
    ends = torch.full((rows,), length)
    line = torch.zeros(rows, width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        line[row, width - len(prompt) :] = torch.tensor(prompt)
        result[row, : len(prompt)] = torch.tensor(prompt)
    seen = torch.arange(width) >= width - lengths[:, None]
    position = (seen.cumsum(1) - 1).clamp(min=0)
    alive, at = torch.arange(rows), lengths.clone()  # rows of the batch; each one's next column
    ended = torch.zeros(rows, dtype=torch.bool)
    tokens, seen, position = line.to(device), seen.to(device), position.to(device)
    ragged = bool((lengths != width).any())
    cache_name, cache = find_cache_name(network), _cache(network.config)
    for step in range(length):
        states = run_trunk(
            network,
            tokens,
            attention_mask=seen if ragged else None,
            position_ids=position,
            use_cache=True,
            **{cache_name: cache},
        )[:, -1]
        uniform = chances[alive, at.clamp(max=length - 1)].to(device)
        likeliest = (at - lengths[alive] < greedy[alive]).to(device)
        picked = sample(run_head(network, states), uniform, likeliest, temperature, top_p)
        live = ~ended
        result[alive[live], at[live]] = picked.cpu()[live]
        at[live] += 1
        now = live & (torch.isin(picked, ending).cpu() | (at >= length))
        ends[alive[now]] = at[now]
        ended |= now
        if bool(ended.all()):
            break
        position = position[:, -1:] + 1
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        if int(ended.sum()) * 4 >= len(ended):
            where = (~ended).nonzero().squeeze(1)
            alive, at, ended = alive[where], at[where], ended[where]
            where = where.to(device)
            picked, seen, position = picked[where], seen[where], position[where]
            cache.reorder_cache(where)
        tokens, position = picked[:, None], position.clamp(max=length - 1)
        if step % 16 == 15:
            tell(rows * step // length)
    return result, ends


def sample(
    scores: Tensor, uniform: Tensor, greedy: Tensor, temperature: float, top_p: float
) -> Tensor:
    """One token a row, by inverting the distribution function: (B, V) -> (B,) int64.

    uniform (B,) in [0, 1); greedy (B,) bool: take the likeliest. top_p keeps the fewest tokens
    whose probabilities reach it. Temperature 0 is greedy.
    """
    likeliest = scores.argmax(-1)
    if temperature == 0 or bool(greedy.all()):
        return likeliest
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
    return torch.where(greedy, likeliest, drawn.squeeze(-1))


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


def find_cache_name(network: PreTrainedModel) -> str:
    """What a network calls the cache that its trunk takes. Raises ModelError where that is one of
    its own kind, whose rows cannot be picked."""
    known = signature(find_trunk(network)[1].forward).parameters
    if name := next((name for name in ("past_key_values", "cache_params") if name in known), None):
        return name
    raise ModelError(
        f"{type(network).__name__} cannot write training data: its cache is of a kind of its own"
    )


def has_states(network: PreTrainedModel) -> bool:
    """Whether layers carry a state along, which padding before a text would change: those of
    state-space models and of linear attention."""
    layers = _cache(network.config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def split_rows(teacher: Model, lengths: Tensor, at_once: int) -> Iterator[Tensor]:
    """Batches of rows to be written together, by the lengths (B,) of their prompts: alike ones
    together, so that little is padding; none where padding would change what is written."""
    rows = lengths.argsort(stable=True)
    groups: Sequence[Tensor] = [rows]
    if has_states(teacher.network):
        groups = rows.split(lengths.unique(return_counts=True)[1].tolist())
    for group in groups:
        yield from group.split(at_once)


def rows_at_once(teacher: Model, length: int, device: str) -> int:
    """How many sequences are written together, whose keys and values have a fixed size at most."""
    return max(
        1, min(_MOST_ROWS, _CACHE.get(device, _CACHE["cpu"]) // (cache_bytes(teacher) * length))
    )


def cache_bytes(teacher: Model) -> int:
    """Of the keys and values of a token."""
    config = read_text_config(teacher.network.config)
    heads = getattr(config, "num_attention_heads", None) or 1  # none in a state-space model
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    layers: int = config.num_hidden_layers
    return 2 * layers * heads * width * teacher.network.dtype.itemsize


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
