"""Log-likelihoods of continuations, as lm-eval scores choices, without what it reads in vain.

    answers = score(model, requests, longest=2048, batch_size=16, reading="branches")

Three ways to read, and `choose_reading` says which a model allows:

- "branches": what texts share, a few-shot prefix or a context, is read once (`rows`). Numbers move
  by rounding: in float32 by 1e-6 of a log-likelihood, as lm-eval's own between batch sizes. In 16
  bits, and where an attachment rounds, that would change answers, so there texts are
- "picked": read in the batches of lm-eval, whose states they have bit for bit, and the head is
  run where a token is scored only: its product may round otherwise, which nothing amplifies;
- "whole": by lm-eval's code, where a network is not of the usual build.

Not here: requests and their tokens (`lm_eval_model`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from harness.evaluation.rows import Request, Row, batch_by_tokens, branch, lay_plainly
from harness.evaluation.scores import EVALUATION_TOKENS
from harness.models import Model, carries_states, find_trunk, read_text_config, run_finite

Reading: TypeAlias = Literal["branches", "picked", "whole"]
Answer: TypeAlias = tuple[float, bool]  # log-likelihood, and whether greedy decoding writes it

_EXACT = (torch.float32, torch.float64)
_ROOM = EVALUATION_TOKENS // 4  # tokens of a row with branches: its mask has their square
_AT_ONCE = 64  # rows of logits whose softmax is computed at once: they stay in a CPU's cache
# What configurations call how far a layer sees back.
_WINDOWS = ("sliding_window", "window_size", "local_attention", "attention_window_size")
_STRETCHED = {"dynamic", "longrope"}  # position embeddings that depend on the longest of a batch


def score(
    model: Model, requests: Sequence[Request], longest: int, batch_size: int, reading: Reading
) -> list[Answer]:
    """The answer of each request, in order. Texts of more than `longest` tokens are cut from the
    left; batches have `batch_size` texts, or EVALUATION_TOKENS tokens where they have branches.

    Raises ModelError where logits are no distributions.
    """
    if reading == "branches":
        rows = branch(requests, longest, count_reach(model))
        batches: Iterable[list[Row]] = batch_by_tokens(rows, EVALUATION_TOKENS)
    else:
        rows = lay_plainly(requests, longest)
        batches = (rows[at : at + batch_size] for at in range(0, len(rows), batch_size))
    answers: dict[int, Answer] = {}
    for batch in batches:
        logits = run_finite(model, partial(_read, model.network, batch))
        answers |= _answer(logits, batch, requests)
    return [answers[number] for number in range(len(requests))]


@torch.no_grad()
def choose_reading(model: Model) -> Reading:
    """How the texts of a model may be read: see above. Each way is tried on a few tokens, since a
    network may have code of its own."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(min(model.vocabulary, 256), (4, 16), generator=generator).tolist()
    lengths = zip(drawn, (5, 3, 7, 1), strict=True)
    requests = [(drawn[0][:9], others[:length]) for others, length in lengths]
    requests.append((drawn[1], drawn[2][:4]))
    rows = lay_plainly(requests, 24)
    whole = model.network(_pad(rows, model.network.device), use_cache=False).logits
    wanted = _answer(whole[_find_scored(rows, whole.device)], rows, requests)

    def agrees(reading: Reading) -> bool:
        try:
            answers = score(model, requests, 24, len(requests), reading)
        except Exception:  # whatever a network's own code has against it
            return False
        near = 1e-3 if model.network.dtype in _EXACT else 0.5  # of about 30
        return all(abs(answers[n][0] - wanted[n][0]) <= near for n in wanted)

    if not agrees("picked"):
        return "whole"
    exact = model.network.dtype in _EXACT and not model.attachments
    return "branches" if exact and count_reach(model) and agrees("branches") else "picked"


def count_reach(model: Model) -> int:
    """How many tokens a row with branches may have, so that each layer sees all of a text; 0 where
    a token's place in a row would count beside its position."""
    network, text = model.network, read_text_config(model.network.config)
    rope = getattr(text, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    known = signature(find_trunk(network)[1].forward).parameters
    if (
        carries_states(network)
        or not {"attention_mask", "position_ids"} <= set(known)
        or any(part.get("rope_type") in _STRETCHED for part in parts)
    ):
        return 0
    layers = DynamicCache(config=network.config).layers
    windows = [getattr(text, name, None) for name in _WINDOWS]
    windows += [getattr(layer, "sliding_window", None) for layer in layers]
    return min(
        [_ROOM, model.context or _ROOM, *(w for w in windows if isinstance(w, int) and w > 0)]
    )


@torch.no_grad()
def _read(network: PreTrainedModel, batch: Sequence[Row]) -> Tensor:
    """Logits at the scored places of rows, each place once and in order: (K, V)."""
    ids, options = _pad(batch, network.device), dict[str, Any]()
    if not all(row.is_plain for row in batch):
        length = ids.shape[1]
        seen = torch.stack([row.see(length) for row in batch])[:, None].to(ids.device)
        mask = torch.zeros_like(seen, dtype=network.dtype)
        options["attention_mask"] = mask.masked_fill_(~seen, torch.finfo(network.dtype).min)
        positions = [row.positions + [0] * (length - len(row.positions)) for row in batch]
        options["position_ids"] = torch.tensor(positions, device=ids.device)
    with _picked(network, _find_scored(batch, ids.device)):
        logits: Tensor = network(input_ids=ids, use_cache=False, **options).logits[0]
    return logits


@contextlib.contextmanager
def _picked(network: PreTrainedModel, where: tuple[Tensor, ...]) -> Iterator[None]:
    """Inside, the head sees the trunk's states at these (row, place) alone, as one row."""

    def pick(_: object, __: object, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[where][None]
        return output

    handle = find_trunk(network)[1].register_forward_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def _answer(logits: Tensor, batch: Sequence[Row], requests: Sequence[Request]) -> dict[int, Answer]:
    """The answers of a batch's requests by their numbers. logits: as `_read` gives them.

    In the type of the logits, sums too, as lm-eval has them.
    """
    index = {place: at for at, place in enumerate(_list_scored(batch))}
    scored = [(row, *each) for row, each_row in enumerate(batch) for each in each_row.scored]
    states = [index[row, place] for row, _, places in scored for place in places]
    tokens = [token for _, number, _ in scored for token in requests[number][1]]
    where = torch.tensor([states, tokens], device=logits.device)
    likelihoods, likeliest = _look_up(logits, *where)
    answers, begin = dict[int, Answer](), 0
    for _, number, places in scored:
        end = begin + len(places)
        answers[number] = float(likelihoods[begin:end].sum()), bool(likeliest[begin:end].all())
        begin = end
    return answers


def _look_up(logits: Tensor, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of tokens (N,) after states (N,), and whether each is the likeliest there, by
    logits (K, V): (N,) each, on the CPU."""
    likelihoods = logits.new_empty(len(states))
    likeliest = torch.empty(len(states), dtype=torch.bool, device=logits.device)
    size = _AT_ONCE if logits.device.type == "cpu" else len(logits)
    for begin in range(0, len(logits), size):
        rows = logits[begin : begin + size]
        inside = ((states >= begin) & (states < begin + size)).nonzero().squeeze(1)
        at, wanted = states[inside] - begin, tokens[inside]
        likelihoods[inside] = F.log_softmax(rows, dim=-1)[at, wanted]
        likeliest[inside] = rows.argmax(-1)[at] == wanted
    return likelihoods.cpu(), likeliest.cpu()


def _list_scored(batch: Sequence[Row]) -> list[tuple[int, int]]:
    """(row, place) of all states that are scored, each once, in order."""
    return sorted(
        {(n, place) for n, row in enumerate(batch) for _, places in row.scored for place in places}
    )


def _find_scored(batch: Sequence[Row], device: torch.device) -> tuple[Tensor, ...]:
    """The same as an index into states: (K,) and (K,)."""
    return tuple(torch.tensor(_list_scored(batch), device=device).T)


def _pad(batch: Sequence[Row], device: torch.device) -> Tensor:
    """Token ids of rows, padded on the right: (B, T) int64."""
    length = max(len(row.tokens) for row in batch)
    return torch.tensor(
        [row.tokens + [0] * (length - len(row.tokens)) for row in batch], device=device
    )
