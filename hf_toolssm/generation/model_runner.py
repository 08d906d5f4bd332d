"""Feeds tokens to any causal language model from any state, exactly: one per row, or many.

Our own models take rows side by side, padded, behind any state. Others are measured first: stock Mamba, FalconMamba
and Jamba forget their state when several tokens follow it in one forward, so they are fed one at a time; Mamba-2,
FalconH1 and attention models take pieces. A model that is wrong even one token at a time is refused.
"""

import enum
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from hf_toolssm.cache.cache_tensors import cache_tensors, check_cache, has_attention, map_tensors
from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.errors import UnsupportedArchitectureError
from hf_toolssm.ops.plain_modules import input_device

PIECE = 8_192
"""Tokens of one forward, all rows together: memory does not grow with what is fed. Only a model that is right in one
forward from nothing, and singly behind that, reads its whole prompt at once."""

LOGITS_OF_PIECE = 2**26
"""Logits of one forward where the choice behind every token is asked for: 256 MiB in float32."""

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE_TOLERANCE = 0.1
"""Largest distance, relative to the largest value, that rounding explains. A lost state differs by its own size."""


class Prefill(enum.Enum):
    """How a model may be given several tokens behind a state."""

    BATCHED = "rows side by side, padded"
    PER_ROW = "each row by itself"
    TOKEN_BY_TOKEN = "one token at a time"


class ModelRunner:
    """A model, and the way of feeding it that is exact.

    Args:
        model: any causal language model of transformers that keeps its memory in a dynamic cache.

    Raises:
        UnsupportedArchitectureError: the memory cannot be carried, or tokens that follow it are not exact.
    """

    def __init__(self, model: Any) -> None:
        if hasattr(model, "get_base_model"):
            raise UnsupportedArchitectureError(
                f"{type(model).__name__} is PEFT's wrapper: pass its get_base_model(), which has the adapters in it"
            )
        itself = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        self._cache_name = cache_argument(type(itself))
        self.model = model
        self._takes_positions = "position_ids" in inspect.signature(type(itself).forward).parameters
        self.prefill = Prefill.BATCHED if getattr(model, "rows_run_side_by_side", False) else self._measure()

    @property
    def device(self) -> torch.device:
        """Where ids and states are."""
        return input_device(self.model)

    @torch.no_grad()
    def step(self, state: ModelState, ids: Sequence[int]) -> None:
        """Feeds one token per row; the state moves on in place."""
        tokens = torch.tensor(ids, device=self.device)[:, None]
        longest = max(state.lengths)
        mask = None
        if min(state.lengths) < longest and has_attention(state.cache):
            # The slots before a short row's tokens are padding (see `fit_slots`).
            lengths = torch.tensor(state.lengths, device=self.device)
            mask = (torch.arange(longest + 1, device=lengths.device) >= longest - lengths[:, None]).long()
        state.cache, logits = self._forward(tokens, state.cache, state.lengths, keep=1, mask=mask)
        state.logits = logits[:, -1].float()
        state.lengths = [length + 1 for length in state.lengths]

    @torch.no_grad()
    def feed(
        self, state: ModelState | None, runs: Sequence[Sequence[int]], choices: bool = False
    ) -> tuple[ModelState, list[list[int]]]:
        """Feeds each row its tokens.

        Args:
            state: to start from, unchanged afterwards; None for rows that have seen nothing.
            runs: per row, at least one token.
            choices: whether the greedy choice behind every token is wanted.

        Returns:
            The state after the tokens and, if wanted, per row the choice behind each of its tokens.
        """
        if self.prefill is Prefill.BATCHED:
            return self._feed_together(state, runs, choices)
        fed = [
            self._feed_alone(None if state is None else state.select([row]), run, choices)
            for row, run in enumerate(runs)
        ]
        return ModelState.concatenate([after for after, _ in fed]), [chosen for _, chosen in fed]

    def hidden(self, state: ModelState | None, runs: Sequence[Sequence[int]]) -> Tensor:
        """The final hidden states (b, e), float32, after each row's tokens: what an auxiliary head reads.

        Args:
            state, runs: see `feed`; nothing is changed.
        """
        groups = [(state, runs)]
        if self.prefill is not Prefill.BATCHED:  # the last forward is then of the last row alone
            groups = [(None if state is None else state.select([row]), [run]) for row, run in enumerate(runs)]
        found = []
        for before, tokens in groups:
            last: dict[str, Tensor] = {}  # of what is fed in pieces the last one's alone is kept
            handle = self.model.base_model.register_forward_hook(
                lambda backbone, args, output, last=last: last.update(hidden=output[0][:, -1].float())
            )
            try:
                self.feed(before, tokens)
            finally:
                handle.remove()
            found.append(last["hidden"])
        return torch.cat(found)

    def _feed_together(
        self, state: ModelState | None, runs: Sequence[Sequence[int]], choices: bool
    ) -> tuple[ModelState, list[list[int]]]:
        longest = max(map(len, runs))
        # On the left, so that every row's last token is the last of all: its logits are those that are kept.
        ids = torch.tensor([[0] * (longest - len(run)) + list(run) for run in runs], device=self.device)
        mask = None
        if any(len(run) < longest for run in runs):
            starts = torch.tensor([longest - len(run) for run in runs], device=ids.device)
            mask = (torch.arange(longest, device=ids.device) >= starts[:, None]).long()
        # The model replaces the tensors of a state and never writes into them: sharing is safe.
        cache = None if state is None else map_tensors(state.cache, lambda tensor: tensor)
        before = [0] * len(runs) if state is None else state.lengths
        chosen = []
        width = max(1, self._piece(choices) // len(runs))
        for at in range(0, longest, width):
            part = None if mask is None else mask[:, at : at + width]
            cache, logits = self._forward(ids[:, at : at + width], cache, before, keep=0 if choices else 1, mask=part)
            if choices:
                chosen.append(logits.argmax(-1))
        after = ModelState(cache, [old + len(run) for old, run in zip(before, runs)], logits[:, -1].float())
        if not choices:
            return after, []
        return after, [row[longest - len(run) :] for row, run in zip(torch.cat(chosen, dim=1).tolist(), runs)]

    def _feed_alone(self, state: ModelState | None, run: Sequence[int], choices: bool) -> tuple[ModelState, list[int]]:
        ids = torch.tensor([run], device=self.device)
        cache = None if state is None else map_tensors(state.cache, Tensor.clone)
        if self.prefill is Prefill.TOKEN_BY_TOKEN:
            # From nothing such a model is right in one forward.
            pieces = [ids] if cache is None else list(ids.split(1, dim=1))
        else:
            pieces = list(ids.split(self._piece(choices), dim=1))
        chosen = []
        length = 0 if state is None else state.lengths[0]
        for piece in pieces:
            cache, logits = self._forward(piece, cache, [length], keep=0 if choices else 1)
            length += piece.shape[1]
            if choices:
                chosen += logits[0].argmax(-1).tolist()
        return ModelState(cache, [length], logits[:, -1].float()), chosen

    def _piece(self, choices: bool) -> int:
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        return max(1, min(PIECE, LOGITS_OF_PIECE // vocabulary)) if choices else PIECE

    def _forward(
        self, ids: Tensor, cache: Cache | None, lengths: Sequence[int], keep: int, mask: Tensor | None = None
    ) -> tuple[Cache, Tensor]:
        """Feeds ids (b, l) to rows that have seen so many tokens; returns the cache and the last `keep` logits."""
        options: dict[str, Any] = {} if mask is None else {"attention_mask": mask}
        if cache is not None:
            options[self._cache_name] = cache
        if self._takes_positions:  # because some models count from 0 in every forward, whatever is in the cache
            first = torch.tensor(lengths, device=ids.device)[:, None]
            options["position_ids"] = first + torch.arange(ids.shape[1], device=ids.device)
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=keep, return_dict=True, **options)
        return check_cache(getattr(output, self._cache_name, None)), output.logits

    @torch.no_grad()
    def _measure(self) -> Prefill:
        """Feeds a few tokens whole, in two pieces, and one by one, and compares memory and logits."""
        was_training = self.model.training
        self.model.eval()
        vocabulary = len(self.model.get_input_embeddings().weight)
        generator = torch.Generator("cpu").manual_seed(0)
        ids = torch.randint(vocabulary, (1, 12), generator=generator, device="cpu").to(self.device)

        def memory(*lengths: int) -> dict[str, Tensor]:
            cache, seen, every = None, 0, []
            for piece in ids.split(list(lengths), dim=1):
                cache, logits = self._forward(piece, cache, [seen], keep=0)
                seen += piece.shape[1]
                every.append(logits)
            return {**cache_tensors(cache), "logits": torch.cat(every, dim=1)}

        whole = memory(12)
        singly = _distance(memory(*[1] * 12), whole)
        # What a piece forgets shows at once behind it, and decays: the last piece is short.
        in_pieces = max(_distance(memory(*lengths), whole) for lengths in ((5, 7), (10, 2)))
        self.model.train(was_training)
        tolerance = _TOLERANCE.get(self.model.dtype, _COARSE_TOLERANCE)
        if in_pieces < min(tolerance, 2 * singly + _TOLERANCE[torch.float32]):
            return Prefill.PER_ROW
        if singly < tolerance:
            return Prefill.TOKEN_BY_TOKEN
        raise UnsupportedArchitectureError(
            f"{type(self.model).__name__} gives other results when its tokens come one at a time (relative distance "
            f"{singly:.2g}), so it cannot work through tools exactly: use a model whose cache is exact"
        )


def cache_argument(model_class: Any) -> str:
    """The name of the forward's argument that carries a model's memory.

    Raises:
        UnsupportedArchitectureError: there is none.
    """
    parameters = inspect.signature(model_class.forward).parameters
    for name in ("cache_params", "past_key_values"):
        if name in parameters:
            return name
    raise UnsupportedArchitectureError(
        f"{model_class.__name__} takes neither cache_params nor past_key_values, so its memory cannot be carried "
        "through tool calls: use a causal language model with a cache"
    )


def _distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its largest value."""
    if {name: value.shape for name, value in found.items()} != {name: v.shape for name, v in expected.items()}:
        return float("inf")
    return max(
        ((found[name].float() - value.float()).abs().max() / value.float().abs().max().clamp(min=1e-6)).item()
        for name, value in expected.items()
    )
