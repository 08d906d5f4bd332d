"""One token per row and step: the model as it is, or for a ToolMamba a compiled step on a CPU and a graph on a GPU.

A tiny model spends nearly all of a step in Python and in dispatch, so all layers of all rows run in one compiled call.
A large one waits for its weights to come from memory, so they are streamed once, at full bandwidth. Both compute in
float32: for a float32 model what the model computes, for a bfloat16 model the same without rounding between layers.
"""

import sys
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from hf_toolssm.cache.model_state import ModelState
from hf_toolssm.cache.recurrent_state import MambaState
from hf_toolssm.errors import UnsupportedGenerationError
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.ops.cpu_kernels import float32_array
from hf_toolssm.ops.fused_step import FusedState, FusedStep
from hf_toolssm.ops.graphed_step import GraphedStep
from hf_toolssm.ops.memory_arrays import NO_MEMORIES, MemoryArrays
from hf_toolssm.ops.streamed_step import StreamedStep

StepWeights = Literal["int8"] | None
"""How the matrices of a decode step are stored; None is as the model stores them."""


class Decoder(Protocol):
    """Rows that each take one token a step. A shallow copy shares the weights; `load` gives it rows of its own.

    Attributes:
        piece_from: tokens of one row from which a forward over all of them is faster than a step for each.
        draft_from: tokens of a row from which checking a draft is faster than a step for each.
        draft_rows: rows up to which drafts gain at least 1.3 times, measured side by side with steps.
        exact: whether a step computes what the model's forward computes. Where it rounds otherwise, a forward cannot
            verify drafts.
    """

    piece_from: int
    draft_from: int
    draft_rows: int
    exact: bool

    def load(self, state: ModelState) -> None:
        """Takes these rows in place of those it has."""

    def state(self) -> ModelState:
        """A copy of what the rows remember."""

    def step(self, ids: Sequence[int]) -> None:
        """Feeds one token per row."""

    def check(self, drafts: Sequence[Sequence[int]], observed: Sequence[Sequence[bool]]) -> list[int]:
        """Feeds each row its draft up to the first token that the model would not choose greedily.

        Args:
            drafts: per row at least one token, the first of which stands.
            observed: which of them stand whatever the model would choose.

        Returns:
            How many tokens of each row were fed.
        """

    def greedy(self) -> list[int]:
        """Each row's most likely next token."""

    def logits(self) -> Tensor:
        """(b, v), of each row's next token."""


def make_decoder(runner: ModelRunner, step_weights: StepWeights = None) -> Decoder:
    """The compiled step where it applies, the model itself everywhere else.

    Args:
        runner: of the model.
        step_weights: "int8" steps with weights rounded to eight bits; None with the model's own.

    Raises:
        UnsupportedGenerationError: there are no such weights, or no compiled step that could round them.
    """
    if step_weights not in (None, "int8"):
        raise UnsupportedGenerationError(f"step_weights is None or 'int8', and not {step_weights!r}")
    model = runner.model
    # Of the class, because a wrapper around a model (PEFT's) passes on what it is asked for.
    compiled = getattr(type(model), "compiled_step", None)
    step = None if compiled is None else compiled(model)
    if step == "streamed" or (step == "fused" and step_weights is not None):
        return StreamedDecoder(runner, step_weights)
    if step_weights is not None:
        raise UnsupportedGenerationError(
            f"step_weights={step_weights!r} needs a ToolMamba on a CPU in evaluation mode, in float32 or bfloat16, "
            "without adapters or hooks: leave it out"
        )
    if step == "fused":
        return FusedDecoder(runner)
    return GraphedDecoder(runner) if step == "graphed" else ModelDecoder(runner)


def check_by_forward(
    runner: ModelRunner, before: ModelState, drafts: Sequence[Sequence[int]], observed: Sequence[Sequence[bool]]
) -> tuple[ModelState, list[int]]:
    """`Decoder.check` by one forward over all drafts, and another for the rows whose draft was wrong somewhere."""
    after, choices = runner.feed(before, drafts, choices=True)
    agreed = [_agreed(*row) for row in zip(drafts, observed, choices)]
    wrong = [row for row, draft in enumerate(drafts) if agreed[row] < len(draft)]
    if wrong:
        again, _ = runner.feed(before.select(wrong), [drafts[row][: agreed[row]] for row in wrong])
        after = after.replace_rows(wrong, again)
    return after, agreed


def _agreed(draft: Sequence[int], observed: Sequence[bool], choices: Sequence[int]) -> int:
    """How many tokens stand, given the model's choice behind each: those before the first that it chose other."""
    for at, (token, choice) in enumerate(zip(draft[1:], choices), 1):
        if token != choice and not observed[at]:
            return at
    return len(draft)


class ModelDecoder:
    """Steps through the model's own forward."""

    piece_from = 8
    draft_from = 8
    draft_rows = sys.maxsize

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.exact = runner.model.dtype == torch.float32

    def load(self, state: ModelState) -> None:
        self._state = state.clone()  # a model may write into its cache

    def state(self) -> ModelState:
        return self._state.clone()

    def step(self, ids: Sequence[int]) -> None:
        self._runner.step(self._state, ids)

    def check(self, drafts: Sequence[Sequence[int]], observed: Sequence[Sequence[bool]]) -> list[int]:
        self._state, agreed = check_by_forward(self._runner, self._state, drafts, observed)
        return agreed

    def greedy(self) -> list[int]:
        return self._state.logits.argmax(-1).tolist()

    def logits(self) -> Tensor:
        return self._state.logits


class _ArrayDecoder:
    """What the compiled decoders share: the states of the rows in arrays of their own."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._config = runner.model.config

    def load(self, state: ModelState) -> None:
        pairs = [state.cache.tensors(layer) for layer in range(self._config.num_hidden_layers)]
        # (b, layers, k, d) and (b, layers, n, d); contiguous, which a stack of transposed arrays need not be, and
        # without which the compiled steps do not vectorize.
        conv, recurrent = (
            np.ascontiguousarray(np.stack([float32_array(tensor.transpose(1, 2)) for tensor in tensors], axis=1))
            for tensors in zip(*pairs)
        )
        logits = state.logits.numpy().copy()
        self._state = FusedState(conv, recurrent, logits, logits.argmax(1))
        self._lengths = np.array(state.lengths, np.int64)

    def state(self) -> ModelState:
        cache = MambaState(self._config)
        for layer in range(self._config.num_hidden_layers):
            conv, recurrent = (
                torch.from_numpy(np.ascontiguousarray(values[:, layer].transpose(0, 2, 1)))
                for values in (self._state.conv, self._state.recurrent)
            )
            cache.write(layer, conv, recurrent)
        return ModelState(cache, self._lengths.tolist(), torch.from_numpy(self._state.logits.copy()))

    def greedy(self) -> list[int]:
        return self._state.best.tolist()

    def logits(self) -> Tensor:
        return torch.from_numpy(self._state.logits.copy())  # a step may write into them


class FusedDecoder(_ArrayDecoder):
    """Steps a small ToolMamba, all of it in one compiled call, which can also go on by itself."""

    piece_from = 64
    draft_from = 3
    draft_rows = 1
    exact = True

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(runner)
        self._step = FusedStep(runner.model)
        self.vocabulary = runner.model.config.vocab_size

    def load(self, state: ModelState) -> None:
        super().load(state)
        self._one_each = np.ones((len(state.lengths), 1), np.bool_), np.ones(len(state.lengths), np.int64)

    def step(self, ids: Sequence[int]) -> None:
        self._feed(np.array(ids, np.int64)[:, None], *self._one_each)

    def check(self, drafts: Sequence[Sequence[int]], observed: Sequence[Sequence[bool]]) -> list[int]:
        lengths = np.array([len(draft) for draft in drafts], np.int64)
        shape = (len(drafts), int(lengths.max()))
        ids, stands = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        for row, (draft, by_tool) in enumerate(zip(drafts, observed)):
            ids[row, : len(draft)], stands[row, : len(draft)] = draft, by_tool
        stands[:, 0] = True
        return self._feed(ids, stands, lengths).tolist()

    def write(
        self, ids: np.ndarray, observed: np.ndarray, given: np.ndarray, limits: np.ndarray, memories: MemoryArrays
    ) -> np.ndarray:
        """Lets the rows write greedily, with a memory each; see `FusedStep`."""
        fed = self._step(ids, observed, given, limits, memories, self._state)
        self._lengths += fed
        return fed

    def _feed(self, ids: np.ndarray, stands: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return self.write(ids, stands, lengths, lengths, NO_MEMORIES)


class StreamedDecoder(_ArrayDecoder):
    """Steps a ToolMamba of any size, layer by layer."""

    piece_from = 4
    draft_from = 4
    draft_rows = sys.maxsize

    def __init__(self, runner: ModelRunner, step_weights: StepWeights) -> None:
        super().__init__(runner)
        self._step = StreamedStep(runner.model, step_weights)
        self.exact = runner.model.dtype == torch.float32 and step_weights is None

    def step(self, ids: Sequence[int]) -> None:
        state = self._state
        logits, best = self._step(np.array(ids, np.int64), state.conv, state.recurrent)
        self._state = state._replace(logits=logits, best=best)
        self._lengths += 1

    def check(self, drafts: Sequence[Sequence[int]], observed: Sequence[Sequence[bool]]) -> list[int]:
        after, agreed = check_by_forward(self._runner, self.state(), drafts, observed)
        self.load(after)
        return agreed


class GraphedDecoder:
    """Steps a ToolMamba on a GPU by a CUDA graph, one for each number of rows that it has had."""

    piece_from = 8
    draft_from = 8
    draft_rows = sys.maxsize

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.exact = runner.model.dtype == torch.float32
        self._graphs: dict[int, GraphedStep] = {}

    def __copy__(self) -> "GraphedDecoder":
        return GraphedDecoder(self._runner)  # a graph's memory belongs to one decoder

    def load(self, state: ModelState) -> None:
        rows = len(state.lengths)
        if rows not in self._graphs:
            self._graphs[rows] = GraphedStep(self._runner.model, rows)
        self._graph = self._graphs[rows]
        self._graph.load(state.cache)
        self._lengths, self._logits = list(state.lengths), state.logits.clone()

    def state(self) -> ModelState:
        return ModelState(self._graph.state(), list(self._lengths), self._logits.clone())

    def step(self, ids: Sequence[int]) -> None:
        self._logits = self._graph(torch.tensor(ids, device=self._logits.device)).float()
        self._lengths = [length + 1 for length in self._lengths]

    def check(self, drafts: Sequence[Sequence[int]], observed: Sequence[Sequence[bool]]) -> list[int]:
        after, agreed = check_by_forward(self._runner, self.state(), drafts, observed)
        self.load(after)
        return agreed

    def greedy(self) -> list[int]:
        return self._logits.argmax(-1).tolist()

    def logits(self) -> Tensor:
        return self._logits
