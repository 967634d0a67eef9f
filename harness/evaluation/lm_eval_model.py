"""A model in memory as lm-eval's tasks use one: what they need of a tokenizer, and finite logits.

Importing this imports lm-eval, which takes seconds. Not here: a run of a task (`lm_eval_run`), what
is asked before one (`task_files.check_model`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor

from harness.core.errors import ModelError
from harness.evaluation.likelihoods import Answer, Reading, choose_reading, score
from harness.evaluation.task_files import NO_FIRST_TOKEN, count_room
from harness.models import Model, carries_states, run_finite


class CheckedLM(HFLM):  # type: ignore[misc]
    """lm-eval's own model, of which every answer rests on finite logits.

    A tokenizer without EOS ends no text: then the task's stop strings do, and its longest answer.
    """

    def __init__(self, model: Model, batch_size: int, bos: bool) -> None:
        self.checked = model
        # A context is asked for once a choice, one after another.
        self._encode = lru_cache(maxsize=8)(super().tok_encode)
        super().__init__(
            pretrained=model.network,
            tokenizer=_with_padding(model),
            batch_size=batch_size,
            max_length=count_room(model.context),
            add_bos_token=bos,
            backend="causal",  # by name a decoder of BART alone would be taken for all of it
        )

    def _model_call(self, *arguments: Any, **options: Any) -> Tensor:
        return run_finite(self.checked, partial(super()._model_call, *arguments, **options))

    def _model_generate(self, *arguments: Any, **options: Any) -> Tensor:
        return run_finite(self.checked, partial(super()._model_generate, *arguments, **options))

    def generate_until(self, *arguments: Any, **options: Any) -> list[str]:
        if carries_states(self.checked.network):  # padding before a prompt would change them
            self.batch_size_per_gpu = 1
        answers: list[str] = super().generate_until(*arguments, **options)
        return answers

    @cached_property
    def reading(self) -> Reading:
        return choose_reading(self.checked)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], *arguments: Any, **options: Any
    ) -> list[Answer]:
        # Of texts that are scored from their first token on, which have no name, nothing is read
        # in vain.
        if requests and requests[0][0] is not None and self.reading != "whole":
            texts = [(context, continuation) for _, context, continuation in requests]
            answers = score(
                self.checked, texts, self.max_length, self.batch_size_per_gpu, self.reading
            )
        else:
            answers = super()._loglikelihood_tokens(requests, *arguments, **options)
        for likelihood, _ in answers:
            if not math.isfinite(likelihood):
                dtype = str(self.checked.network.dtype).removeprefix("torch.")
                raise ModelError(f"the log-likelihood of a text is {likelihood} in {dtype}")
        return answers

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that is scored from its first token on."""
        token: int | None = super().prefix_token_id
        if token is None:
            raise ModelError(NO_FIRST_TOKEN)
        return token

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        if add_special_tokens is None and not self.add_bos_token:
            add_special_tokens = False  # else lm-eval looks for a BOS at the text's beginning
        return list(self._encode(string, add_special_tokens, **options))

    def tok_decode(self, tokens: int | Sequence[int] | None, **options: Any) -> str | None:
        """The text of tokens; of the EOS that a tokenizer lacks, None: no string to stop at."""
        return None if tokens is None else super().tok_decode(tokens, **options)


def _with_padding(model: Model) -> Any:
    """A copy of the tokenizer, which lm-eval changes, with a token to fill batches with.

    lm-eval would add one that the network has no embedding for. Any will do: it is masked.
    """
    tokenizer = copy.deepcopy(model.tokenizer)
    if not (tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer
