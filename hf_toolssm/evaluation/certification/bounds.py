"""What a ToolMamba's states, and its margins, may be in every context of a graph.

The states of a layer are bounded from above: as long as they decay, none leaves the box that its largest input and its
slowest decay allow, beginnings included. From these boxes, which hold every state of every run, one decode step along
all edges leads to boxes that hold every state as well, and so on: each round is sound, and after any of them one more
step stays inside. Layer after layer: the first sees the tokens themselves, later ones what the boxes below allow.

Between two layers the residual is a sum of exact embeddings and of matrices times the layers' gated outputs, whose
boxes are kept, and not its own: a product with it is bounded through all matrices at once. How large its norm is
scales all channels alike, and so no margin changes its sign by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch

from hf_toolssm.errors import CertificationError
from hf_toolssm.evaluation.certification.graph import Graph
from hf_toolssm.evaluation.certification.intervals import (
    TINY,
    UNIT,
    Box,
    decay,
    point,
    product,
    silu,
    softplus,
    sum_error,
)
from hf_toolssm.models.modeling_tool_mamba import ToolMambaForCausalLM

MOST_ROUNDS = 500
CONVERGED = 1e-7
"""Rounds end when no bound moves by more of what the layer's states span."""

SLACK = 1e-5
"""By so much of that the boxes are made wider at the end, so that one more step stays well inside."""


@dataclass(frozen=True)
class LayerWeights:
    """Of one block, float64; `in_proj` has the norm's weights in it."""

    in_proj: np.ndarray  # (2 d, e)
    taps: np.ndarray  # (k, d), the newest last
    conv_bias: np.ndarray  # (d,)
    x_proj: np.ndarray  # (r + 2 n, d)
    dt_proj: np.ndarray  # (d, r)
    dt_bias: np.ndarray  # (d,)
    rates: np.ndarray  # (n, d), minus A
    skip: np.ndarray  # (d,)
    out_proj: np.ndarray  # (e, d)


@dataclass(frozen=True)
class ModelWeights:
    """Of a `ToolMambaForCausalLM`, float64; `head` has the last norm's weights in it."""

    embeddings: np.ndarray  # (v, e)
    head: np.ndarray  # (v, e)
    epsilon: float
    layers: tuple[LayerWeights, ...]


class Context:
    """A graph with tokens for arrays: node numbers, sorted by where an edge leads.

    Args:
        graph: of contexts.
        ids: of the tokens in it.

    Attributes:
        count: the number N of nodes.
        sources: where each edge comes from.
        begins: of each node but the first, the first of the edges that lead to it (N - 1,).
        last: the last token of each node, -1 at the beginning.
        right: the right token of each node, -1 where the model is not asked.
    """

    def __init__(self, graph: Graph, ids: Mapping[str, int]) -> None:
        edges = np.array(graph.edges, np.int64).reshape(-1, 2)
        edges = edges[np.argsort(edges[:, 1], kind="stable")]
        self.sources = edges[:, 0].copy()
        targets, self.begins = np.unique(edges[:, 1], return_index=True)
        self.count = len(graph.nodes)
        if not np.array_equal(targets, np.arange(1, self.count)):
            raise CertificationError("the first context alone must have no token, and every other follows one")
        self.last = np.array([-1] + [ids[node.tokens[-1]] for node in graph.nodes[1:]])
        self.right = np.array([-1 if node.right is None else ids[node.right] for node in graph.nodes])

    def before(self, box: Box) -> Box:
        """What may have been one token earlier, at every node; zeros at the beginning."""
        zeros = np.zeros((1, *box.low.shape[1:]))
        low = np.minimum.reduceat(box.low[self.sources], self.begins)
        high = np.maximum.reduceat(box.high[self.sources], self.begins)
        return Box(np.concatenate([zeros, low]), np.concatenate([zeros, high]))


class Residual:
    """The residual stream at every node (N, e): embeddings and the outputs of the layers so far."""

    def __init__(self, weights: ModelWeights, context: Context) -> None:
        self._epsilon = weights.epsilon
        self._embedded = weights.embeddings[context.last]
        self._embedded[0] = 0
        self._outputs: list[tuple[np.ndarray, Box]] = []
        self._size, self._error = np.abs(self._embedded), np.zeros_like(self._embedded)

    def add(self, out_proj: np.ndarray, output: Box) -> None:
        """Adds a layer's gated output (N, d), times its matrix (e, d)."""
        self._outputs.append((out_proj, output))
        self._size = self._size + output.magnitude @ np.abs(out_proj).T
        self._error = self._error + sum_error(out_proj.shape[1], self._size)

    def times(self, matrix: np.ndarray, at: np.ndarray | slice = slice(None)) -> Box:
        """A matrix (o, e) times it, exactly, at some of the nodes."""
        total = point(self._embedded[at] @ matrix.T)
        for out_proj, output in self._outputs:
            total = total + product(matrix @ out_proj, output[at])
        return total.widened((self._error + 1e-12 * self._size)[at] @ np.abs(matrix).T)

    def value(self) -> Box:
        return self.times(np.eye(self._embedded.shape[1]))

    def scale(self, value: Box) -> Box:
        """One over its root mean square (N, 1)."""
        low = 1 / np.sqrt((value.magnitude**2).mean(1) + self._epsilon)
        high = 1 / np.sqrt((value.smallest**2).mean(1) + self._epsilon)
        off = float(sum_error(value.low.shape[1], np.ones(())))
        return Box(low * (1 - off), high * (1 + off))[:, None]

    def projected(self, matrix: np.ndarray) -> Box:
        """A matrix (o, e) times its norm, as float32 has it."""
        value = self.value()
        scale = self.scale(value)
        error = sum_error(matrix.shape[1] + 4, scale.high * (value.magnitude @ np.abs(matrix).T))
        return (self.times(matrix) * scale).widened(error)


@dataclass(frozen=True)
class StepBoxes:
    """What a layer does to its states at every node.

    Attributes:
        inputs: the convolution's output (N, d), which the scan reads.
        times: step sizes (N, d).
        write: what B (N, n) may be.
        read: what C (N, n) may be.
        gate: of the output (N, d), its silu.
    """

    inputs: Box
    times: Box
    write: Box
    read: Box
    gate: Box


def step_boxes(layer: LayerWeights, residual: Residual, context: Context) -> StepBoxes:
    """Everything but the states."""
    d, r, n = len(layer.skip), layer.dt_proj.shape[1], len(layer.rates)
    projected = residual.projected(layer.in_proj)
    newest, gate = projected[:, :d], projected[:, d:]
    newest.low[0] = newest.high[0] = 0  # before the first token the convolution has seen zeros
    convolved, magnitude = point(np.broadcast_to(layer.conv_bias, newest.low.shape)), np.abs(layer.conv_bias)
    for tap in layer.taps[::-1]:
        convolved, magnitude = convolved + point(tap) * newest, magnitude + np.abs(tap) * newest.magnitude
        newest = context.before(newest)
    inputs = silu(convolved.widened(sum_error(len(layer.taps) + 1, magnitude)))

    sizes = inputs.magnitude @ np.abs(layer.x_proj).T
    error = sum_error(d, sizes)
    read_write = product(layer.x_proj[r:], inputs).widened(error[:, r:])
    times = product(layer.dt_proj @ layer.x_proj[:r], inputs) + point(layer.dt_bias)
    inner = sum_error(r + 1, sizes[:, :r] @ np.abs(layer.dt_proj).T + np.abs(layer.dt_bias))
    times = softplus(times.widened(error[:, :r] @ np.abs(layer.dt_proj).T + inner))
    return StepBoxes(inputs, times, read_write[:, :n], read_write[:, n:], silu(gate))


@dataclass(frozen=True)
class Recurrence:
    """h = kept * h + added, of one state of each channel, at every node (N, d)."""

    kept: Box
    added: Box


def recurrence(layer: LayerWeights, boxes: StepBoxes, s: int) -> Recurrence:
    """That of the s-th state of each channel."""
    kept = decay(boxes.times * point(-layer.rates[s]))
    return Recurrence(kept, (boxes.times * boxes.inputs * boxes.write[:, s : s + 1]).rounded(3))


def bound_states(step: Recurrence, context: Context) -> Box:
    """Boxes (N, d) that hold every state and that one more step does not leave.

    Raises:
        CertificationError: a state need not decay.
    """
    if not (step.kept.high[1:] < 1).all():
        raise CertificationError("a state may not decay at all: train with larger step sizes (time_step_min)")
    rest = 1 / (1 - step.kept.high[1:])
    low = np.minimum(0, (step.added.low[1:] * rest).min(0))
    high = np.maximum(0, (step.added.high[1:] * rest).max(0))
    span = (high - low) * 1e-3 + 1e-9
    shape = step.added.low.shape
    box = _begin(Box(np.broadcast_to(low - span, shape).copy(), np.broadcast_to(high + span, shape).copy()))
    kept, added = step.kept, step.added
    for _ in range(MOST_ROUNDS):
        moved = _sharpen(
            kept.low, kept.high, added.low, added.high, context.sources, context.begins, box.low, box.high
        )
        if (moved <= CONVERGED * (high - low)).all():
            break
    return _begin(box.widened(SLACK * (high - low) + 1e-9))


@numba.njit(nogil=True)
def _sharpen(kept_low, kept_high, added_low, added_high, sources, begins, low, high):
    """One round, in place: the boxes before each node, through its step, met with its own (N, d).

    A box that was sharpened before in the same round is used already, which is as sound: at any time each holds every
    state that its node can have, and one more step stays inside.

    Returns:
        By how much the bounds of each channel moved at most (d,).
    """
    d = low.shape[1]
    moved = np.zeros(d)
    before_low, before_high = np.empty(d), np.empty(d)
    for node in range(1, len(low)):
        begin = begins[node - 1]
        end = begins[node] if node < len(begins) else len(sources)
        before_low[:], before_high[:] = low[sources[begin]], high[sources[begin]]
        for edge in range(begin + 1, end):
            source = sources[edge]
            for c in range(d):
                before_low[c] = min(before_low[c], low[source, c])
                before_high[c] = max(before_high[c], high[source, c])
        for c in range(d):
            first, second = kept_low[node, c] * before_low[c], kept_high[node, c] * before_low[c]
            third, fourth = kept_low[node, c] * before_high[c], kept_high[node, c] * before_high[c]
            least, most = min(first, second, third, fourth), max(first, second, third, fourth)
            size = max(abs(least), abs(most)) + max(abs(added_low[node, c]), abs(added_high[node, c]))
            error = 4 * UNIT * size + TINY
            new_low = max(low[node, c], least + added_low[node, c] - error)
            new_high = min(high[node, c], most + added_high[node, c] + error)
            moved[c] = max(moved[c], new_low - low[node, c], high[node, c] - new_high)
            low[node, c], high[node, c] = new_low, new_high
    return moved


def _begin(box: Box) -> Box:
    box.low[0] = box.high[0] = 0
    return box


States = Callable[[int, int, Recurrence], Box]
"""Of a layer, and of which of its states, the boxes (N, d)."""


def margins(weights: ModelWeights, context: Context, states: States) -> Box:
    """How far the right token's logit is above every other (N,), at least and at most; infinite where the model is not
    asked. Where it is negative at most, the model errs in whatever run comes there."""
    residual = Residual(weights, context)
    for number, layer in enumerate(weights.layers):
        boxes = step_boxes(layer, residual, context)
        output = point(layer.skip) * boxes.inputs
        magnitude = output.magnitude
        for s in range(len(layer.rates)):
            part = boxes.read[:, s : s + 1] * states(number, s, recurrence(layer, boxes, s))
            output, magnitude = output + part, magnitude + part.magnitude
        output = (output.widened(sum_error(len(layer.rates) + 1, magnitude)) * boxes.gate).rounded(2)
        output.low[0] = output.high[0] = 0
        residual.add(layer.out_proj, output)
    return _logit_margins(weights, context, residual)


def _logit_margins(weights: ModelWeights, context: Context, residual: Residual) -> Box:
    value = residual.value()
    scale = residual.scale(value)
    sizes = value.magnitude @ np.abs(weights.head).T  # (N, v)
    found = Box(np.full(context.count, np.inf), np.full(context.count, np.inf))
    for right in np.unique(context.right[context.right >= 0]):
        at = np.flatnonzero(context.right == right)
        others = np.arange(len(weights.head)) != right
        difference = weights.head[right] - weights.head[others]
        error = sum_error(value.low.shape[1] + 4, (sizes[at][:, others] + sizes[at, right][:, None]) * scale.high[at])
        above = (residual.times(difference, at) * scale[at]).widened(error)
        found.low[at], found.high[at] = above.low.min(1), above.high.min(1)
    return found


def check_model(model: Any) -> None:
    """Whether the bounds are those of what a model computes.

    Raises:
        CertificationError: they are not.
    """
    fused = isinstance(model, ToolMambaForCausalLM) and model.compiled_step() == "fused"
    if not fused or model.config.use_bias or any(p.dtype != torch.float32 for p in model.parameters()):
        raise CertificationError(
            "only a plain ToolMambaForCausalLM in float32 on a CPU can be certified, in evaluation mode, without "
            f"adapters or use_bias, and small enough for ops/fused_step.py, and not this {type(model).__name__}"
        )
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise CertificationError(f"{name} holds NaN or infinity: train the model again")


def model_weights(model: ToolMambaForCausalLM) -> ModelWeights:
    """Those of a model that `check_model` lets pass."""
    check_model(model)

    def array(tensor) -> np.ndarray:
        return tensor.detach().double().numpy()

    def layer(block) -> LayerWeights:
        mixer = block.mixer
        d = mixer.intermediate_size
        return LayerWeights(
            in_proj=array(mixer.in_proj.weight) * array(block.norm.weight),
            taps=array(mixer.conv1d.weight)[:, 0].T,
            conv_bias=array(mixer.conv1d.bias) if mixer.use_conv_bias else np.zeros(d),
            x_proj=array(mixer.x_proj.weight),
            dt_proj=array(mixer.dt_proj.weight),
            dt_bias=array(mixer.dt_proj.bias),
            rates=np.exp(array(mixer.A_log)).T,
            skip=array(mixer.D),
            out_proj=array(mixer.out_proj.weight),
        )

    backbone = model.backbone
    return ModelWeights(
        embeddings=array(backbone.embeddings.weight),
        head=array(model.lm_head.weight) * array(backbone.norm_f.weight),
        epsilon=model.config.layer_norm_epsilon,
        layers=tuple(map(layer, backbone.layers)),
    )
