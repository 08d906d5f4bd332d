"""Decode steps of a whole small Mamba, compiled: all layers of all rows in one call, float32 on a CPU.

A tiny model's weights stay in the CPU's cache, so what counts is how often a step passes over its vectors and loads
a weight: matrices lie transposed, a product adds several of their rows at a time to a result that is as wide as a
layer, and four rows of the batch go side by side. Tokens that the model writes may follow each other within a call,
with a pointer memory or a tape at work between them.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
import torch

from hf_toolssm.errors import InputMismatchError
from hf_toolssm.ops.checks import check_arrays
from hf_toolssm.ops.cpu_kernels import (
    LOG2E,
    CpuKernel,
    called,
    clear,
    count_blocks,
    exp2_of_nonpositive,
    float32_array,
    inlined,
    normalize,
    sigmoid,
    softplus,
)
from hf_toolssm.ops.memory_arrays import NO_MEMORIES, MemoryArrays, carry_out

PARALLEL_WORK = 1_000_000
"""Parameters times tokens from which waking the other threads pays."""

_LANES = 16
"""The float32 values of the widest register: a result whose width divides by it needs no scalar remainder."""

_GROUP = 4  # rows that go side by side
_STOPS = -(2**62)  # in place of a row's next token, where it stops


class FusedState(NamedTuple):
    """What b rows remember.

    Attributes:
        conv: (b, layers, k, d), float32, the last k inputs of each convolution, oldest first.
        recurrent: (b, layers, n, d), float32, the state of each scan.
        logits: (b, v), float32, of each row's next token.
        best: (b,), int64, the first largest of them.
    """

    conv: np.ndarray
    recurrent: np.ndarray
    logits: np.ndarray
    best: np.ndarray


class _Tokens(NamedTuple):
    """See `FusedStep.__call__`; `fed` has one place more, for whether a token was none of the model's."""

    ids: np.ndarray
    stands: np.ndarray
    given: np.ndarray
    limits: np.ndarray
    fed: np.ndarray


class _Weights(NamedTuple):
    """A model's, float32. Matrices are transposed, those of width p = r + 2 n and v padded to whole vectors. From
    `norm` on they are of all layers, one behind the other."""

    epsilon: float
    embeddings: np.ndarray  # (v, e)
    head_norm: np.ndarray  # (e,)
    head: np.ndarray  # (e, v)
    norm: np.ndarray  # (e,)
    in_bias: np.ndarray  # (2 d,)
    in_proj: np.ndarray  # (e, 2 d)
    conv_bias: np.ndarray  # (d,)
    taps: np.ndarray  # (k, d)
    x_proj: np.ndarray  # (d, p)
    dt_bias: np.ndarray  # (d,)
    dt_proj: np.ndarray  # (r, d)
    skip: np.ndarray  # (d,)
    decay: np.ndarray  # (n, d), for powers of two
    out_bias: np.ndarray  # (e,)
    out_proj: np.ndarray  # (d, e)


class FusedStep:
    """Steps a `ToolMambaForCausalLM`, float32 on a CPU, from a copy of all weights but the embeddings."""

    def __init__(self, model) -> None:
        backbone = model.backbone
        layers: Any = zip(*map(_layer_weights, backbone.layers))
        self._weights = _Weights(
            float(model.config.layer_norm_epsilon),
            float32_array(backbone.embeddings.weight),
            float32_array(backbone.norm_f.weight).copy(),
            _padded_columns(model.lm_head.weight),
            *(np.ascontiguousarray(np.stack(arrays)) for arrays in layers),
        )
        self._parameters = model.num_parameters()
        self._checked: FusedState | None = None

    def __call__(
        self,
        ids: np.ndarray,
        stands: np.ndarray,
        given: np.ndarray,
        limits: np.ndarray,
        memories: MemoryArrays,
        state: FusedState,
    ) -> np.ndarray:
        """Feeds each row the tokens that are given, up to the first that the model itself would not choose, and then
        what the model writes and its memory answers, up to the first token that the memory cannot carry out.

        Args:
            ids: (b, m), int64, begins with the tokens that are given; those that are fed behind them are filled in.
            stands: (b, m), bool: which tokens stand whatever the model would choose; filled in as `ids` is.
            given: (b,), int64, how many tokens are given.
            limits: (b,), int64, how many tokens are fed at most, up to m.
            memories: moved on in place; nobody asks for them where no limit exceeds what is given.
            state: moved on in place.

        Returns:
            How many tokens were fed (b,), int64.

        Raises:
            InputMismatchError: an array has another size or type, or a token that is given is none of the model's.
        """
        types = (ids.dtype, stands.dtype, given.dtype, limits.dtype)
        fits = ids.ndim == 2 and stands.shape == ids.shape and given.shape == limits.shape == ids.shape[:1]
        if not fits or types != _TYPES or not (ids.flags.c_contiguous and stands.flags.c_contiguous):
            raise InputMismatchError(
                "FusedStep takes contiguous ids (int64) and stands (bool) of one shape, given and limits (int64) of "
                f"as many rows, and not {ids.shape}, {stands.shape}, {given.shape} and {limits.shape} of {types}"
            )
        rows, most = ids.shape
        weights, vocabulary = self._weights, len(self._weights.embeddings)
        # Once for the same arrays: at every step it cost a small model a fifth of its speed.
        if state is not self._checked or len(state.best) != rows:
            check_arrays(
                "FusedStep",
                conv=(state.conv, (rows, *weights.taps.shape), np.float32),
                recurrent=(state.recurrent, (rows, *weights.decay.shape), np.float32),
                logits=(state.logits, (rows, vocabulary), np.float32),
                best=(state.best, (rows,), np.int64),
            )
            self._checked = state
        if memories is not NO_MEMORIES:
            memories.check(rows, most, vocabulary)
        fed = np.zeros(rows + 1, np.int64)
        work = self._parameters * int(limits.sum()) if rows > 1 else 0  # the rows are what can be shared out
        group = min(_GROUP, -(-rows // torch.get_num_threads()))
        # Plain tuples: of one that is named, numba takes longer to see what it is than a tiny layer to compute.
        tokens = (ids, stands, given, limits, fed)
        _RUN(work, group, tokens, tuple(memories), tuple(weights), tuple(state))
        if fed[rows]:
            raise InputMismatchError(f"FusedStep was given a token that is none of {vocabulary}")
        return fed[:rows]


_TYPES = tuple(map(np.dtype, (np.int64, np.bool_, np.int64, np.int64)))


def _layer_weights(block) -> tuple[np.ndarray, ...]:
    """Those of one `ToolMambaBlock`, as `_Weights` names them."""
    mixer = block.mixer
    d, e = mixer.intermediate_size, mixer.hidden_size
    zeros = np.zeros(2 * d, np.float32)
    return (
        float32_array(block.norm.weight),
        float32_array(mixer.in_proj.bias) if mixer.use_bias else zeros,
        float32_array(mixer.in_proj.weight).T,
        float32_array(mixer.conv1d.bias) if mixer.use_conv_bias else zeros[:d],
        float32_array(mixer.conv1d.weight)[:, 0].T,
        _padded_columns(mixer.x_proj.weight),
        float32_array(mixer.dt_proj.bias),
        float32_array(mixer.dt_proj.weight).T,
        float32_array(mixer.D),
        -LOG2E * np.exp(float32_array(mixer.A_log)).T,
        float32_array(mixer.out_proj.bias) if mixer.use_bias else zeros[:e],
        float32_array(mixer.out_proj.weight).T,
    )


def _padded_columns(weight) -> np.ndarray:
    """A weight (o, i) as (i, o), the width padded with zeros."""
    matrix = float32_array(weight).T
    return np.ascontiguousarray(np.pad(matrix, [(0, 0), (0, -matrix.shape[1] % _LANES)]))


@inlined
def _copy(values, out):
    for i in range(out.shape[0]):  # numba's own slice assignment first looks for an overlap
        out[i] = values[i]


@inlined
def _add_product(matrix, vector, out):
    """Adds the vector (r,) times the matrix (r, columns) to out (columns,)."""
    rows, columns = matrix.shape
    whole = rows // 8 * 8
    for j in range(0, whole, 8):
        v0, v1, v2, v3 = vector[j], vector[j + 1], vector[j + 2], vector[j + 3]
        v4, v5, v6, v7 = vector[j + 4], vector[j + 5], vector[j + 6], vector[j + 7]
        for i in range(columns):
            first = matrix[j, i] * v0 + matrix[j + 1, i] * v1 + matrix[j + 2, i] * v2 + matrix[j + 3, i] * v3
            second = matrix[j + 4, i] * v4 + matrix[j + 5, i] * v5 + matrix[j + 6, i] * v6 + matrix[j + 7, i] * v7
            out[i] += first + second
    for j in range(whole, rows):
        v0 = vector[j]
        for i in range(columns):
            out[i] += matrix[j, i] * v0


@inlined
def _add_four_products(matrix, vectors, out):
    """Adds four vectors (4, r) times the matrix (r, columns) to out (4, columns): a weight is loaded once."""
    rows, columns = matrix.shape
    a, b, c, d = vectors[0], vectors[1], vectors[2], vectors[3]
    out_a, out_b, out_c, out_d = out[0], out[1], out[2], out[3]
    whole = rows // 4 * 4
    for j in range(0, whole, 4):
        a0, a1, a2, a3 = a[j], a[j + 1], a[j + 2], a[j + 3]
        b0, b1, b2, b3 = b[j], b[j + 1], b[j + 2], b[j + 3]
        c0, c1, c2, c3 = c[j], c[j + 1], c[j + 2], c[j + 3]
        d0, d1, d2, d3 = d[j], d[j + 1], d[j + 2], d[j + 3]
        for i in range(columns):
            m0, m1, m2, m3 = matrix[j, i], matrix[j + 1, i], matrix[j + 2, i], matrix[j + 3, i]
            out_a[i] += m0 * a0 + m1 * a1 + m2 * a2 + m3 * a3
            out_b[i] += m0 * b0 + m1 * b1 + m2 * b2 + m3 * b3
            out_c[i] += m0 * c0 + m1 * c1 + m2 * c2 + m3 * c3
            out_d[i] += m0 * d0 + m1 * d1 + m2 * d2 + m3 * d3
    for j in range(whole, rows):
        a0, b0, c0, d0 = a[j], b[j], c[j], d[j]
        for i in range(columns):
            m0 = matrix[j, i]
            out_a[i] += m0 * a0
            out_b[i] += m0 * b0
            out_c[i] += m0 * c0
            out_d[i] += m0 * d0


@inlined
def _add_products(matrix, vectors, lanes, out):
    """Adds the first `lanes` of the vectors (4, r), or all, times the matrix to those of out (4, columns)."""
    if lanes == 1:
        _add_product(matrix, vectors[0], out[0])
    else:
        _add_four_products(matrix, vectors, out)


@called
def _gated_convolution(xz, bias, taps, window, x):
    """x (d,) becomes the convolution's output for its newest inputs xz (>= d,), which enter the window (k, d)."""
    newest = window.shape[0] - 1
    for tap in range(newest):
        _copy(window[tap + 1], window[tap])
    _copy(xz[: x.shape[0]], window[newest])
    _copy(bias, x)
    for tap in range(newest + 1):
        weights, inputs = taps[tap], window[tap]
        for i in range(x.shape[0]):
            x[i] += weights[i] * inputs[i]
    for i in range(x.shape[0]):
        x[i] *= sigmoid(x[i])


@called
def _scan(x, gate, dt, skip, decay, B, C, state, y):
    """y (d,) becomes the gated output of one step of the state (n, d); dt comes without its softplus."""
    for i in range(x.shape[0]):
        dt[i] = softplus(dt[i])
        y[i] = skip[i] * x[i]
        x[i] *= dt[i]  # x is the scan's input from here on
    for s in range(state.shape[0]):
        h, decay_s, b_s, c_s = state[s], decay[s], B[s], C[s]
        for i in range(x.shape[0]):
            value = exp2_of_nonpositive(dt[i] * decay_s[i]) * h[i] + x[i] * b_s
            h[i] = value
            y[i] += value * c_s
    for i in range(x.shape[0]):
        y[i] *= gate[i] * sigmoid(gate[i])


@called
def _first_largest(scores):
    largest = 0
    for i in range(1, scores.shape[0]):
        if scores[i] > scores[largest]:
            largest = i
    return largest


@inlined
def _space(weights):
    """What `_feed` writes into, for each of four rows: hidden, normed (e,), xz (2 d,), x, y, dt (d,), projected (p,)
    and scores (v,)."""
    e, d = weights.out_bias.shape[1], weights.skip.shape[1]
    of_e, of_d = np.zeros((2, _GROUP, e), np.float32), np.zeros((3, _GROUP, d), np.float32)
    xz, projected = np.zeros((_GROUP, 2 * d), np.float32), np.zeros((_GROUP, weights.x_proj.shape[2]), np.float32)
    scores = np.zeros((_GROUP, weights.head.shape[1]), np.float32)
    return of_e[0], of_e[1], xz, of_d[0], of_d[1], of_d[2], projected, scores


@inlined
def _feed(rows, tokens, lanes, space, weights, state):
    """Feeds one token to each of the first `lanes` of at most four rows."""
    e, d = weights.out_bias.shape[1], weights.skip.shape[1]
    r, n = weights.dt_proj.shape[1], weights.decay.shape[1]
    hidden, normed, xz, x, y, dt, projected, scores = space
    for q in range(lanes):
        clear(scores[q], 0, scores.shape[1])
        _copy(weights.embeddings[tokens[q]], hidden[q])
    for layer in range(weights.norm.shape[0]):
        for q in range(lanes):
            normalize(hidden[q], weights.norm[layer], weights.epsilon, normed[q])
            _copy(weights.in_bias[layer], xz[q])
        _add_products(weights.in_proj[layer], normed, lanes, xz)
        bias, taps = weights.conv_bias[layer], weights.taps[layer]
        for q in range(lanes):
            _gated_convolution(xz[q], bias, taps, state.conv[rows[q], layer], x[q])
        for q in range(lanes):
            clear(projected[q], 0, projected.shape[1])
            _copy(weights.dt_bias[layer], dt[q])
        _add_products(weights.x_proj[layer], x, lanes, projected)
        _add_products(weights.dt_proj[layer], projected[:, :r], lanes, dt)
        skip, decay = weights.skip[layer], weights.decay[layer]
        for q in range(lanes):
            B, C = projected[q, r : r + n], projected[q, r + n : r + 2 * n]
            _scan(x[q], xz[q, d:], dt[q], skip, decay, B, C, state.recurrent[rows[q], layer], y[q])
        bias = weights.out_bias[layer]
        for q in range(lanes):
            for i in range(e):
                hidden[q, i] += bias[i]
        _add_products(weights.out_proj[layer], y, lanes, hidden)
    for q in range(lanes):
        normalize(hidden[q], weights.head_norm, weights.epsilon, normed[q])
    _add_products(weights.head, normed, lanes, scores)
    for q in range(lanes):
        logits = state.logits[rows[q]]
        _copy(scores[q], logits)
        state.best[rows[q]] = _first_largest(logits)


@inlined
def _next_token(b, tokens, memories, best):
    """The token that row b is fed next, or _STOPS."""
    ids, stands, at = tokens.ids, tokens.stands, tokens.fed[b]
    if at >= tokens.limits[b] or at >= ids.shape[1]:
        return _STOPS
    if at < tokens.given[b]:
        return ids[b, at] if stands[b, at] or ids[b, at] == best[b] else _STOPS
    if memories.waiting[b] >= 0:
        ids[b, at], stands[b, at] = memories.waiting[b], True
        memories.waiting[b] = -1
    elif best[b] < 0 or best[b] >= memories.actions.shape[0]:
        return -1
    elif carry_out(best[b], b, memories):
        ids[b, at] = best[b]
    else:
        return _STOPS
    return ids[b, at]


@called
def _run_rows(first, last, tokens, memories, weights, state):
    """At most four rows, those from first to last, side by side."""
    rows, next_tokens = np.empty(_GROUP, np.int64), np.empty(_GROUP, np.int64)
    space = _space(weights)
    lanes = 1
    while lanes > 0:
        lanes = 0
        for b in range(first, last):
            # A row that stops would stop again: nothing about it has changed.
            token = _next_token(b, tokens, memories, state.best)
            if 0 <= token < weights.embeddings.shape[0]:
                rows[lanes], next_tokens[lanes] = b, token
                lanes += 1
                tokens.fed[b] += 1
            elif token != _STOPS:
                tokens.fed[-1] = 1
        if lanes > 0:
            _feed(rows, next_tokens, lanes, space, weights, state)


def _run(group, tokens, memories, weights, state):
    """See `FusedStep`; `group` rows go side by side."""
    tokens, memories = _Tokens(*tokens), MemoryArrays(*memories)
    weights, state = _Weights(*weights), FusedState(*state)
    batch = tokens.ids.shape[0]
    for block in numba.prange(count_blocks(batch, group)):
        _run_rows(block * group, min(batch, block * group + group), tokens, memories, weights, state)


_RUN = CpuKernel(_run, PARALLEL_WORK)
