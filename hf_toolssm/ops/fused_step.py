"""Decode steps of a whole small Mamba, compiled: all layers of all rows in one call, float32 on a CPU.

A tiny model's weights stay in the CPU's cache, so what counts is how often a step passes over its vectors and loads
a weight: matrices lie transposed, a product adds several of their rows at a time to a result that is as wide as a
layer, and four rows of the batch go side by side. Tokens that the model writes may follow each other within a call,
with a pointer memory or a tape at work between them.
"""

from dataclasses import dataclass
from operator import is_not

import numba
import numpy as np
import torch

from hf_toolssm.errors import InputMismatchError
from hf_toolssm.ops.checks import check_arrays
from hf_toolssm.ops.cpu_kernels import (
    LOG2E,
    CpuKernel,
    called,
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


_GROUP = 4
"""Rows that go side by side."""

_STOPS = -(2**62)
"""In place of a row's next token, where it stops."""


class FusedStep:
    """Steps a `ToolMambaForCausalLM`, float32 on a CPU, from a copy of all weights but the embeddings."""

    def __init__(self, model) -> None:
        backbone = model.backbone
        self._embeddings = float32_array(backbone.embeddings.weight)
        self._layers = np.stack([_pack_layer(block) for block in backbone.layers])
        self._head = _join([backbone.norm_f.weight, _pad(float32_array(model.lm_head.weight).T)])
        self._rank = int(model.config.time_step_rank)
        self._epsilon = float(model.config.layer_norm_epsilon)
        self._parameters = model.num_parameters()
        self._checked: tuple[np.ndarray, ...] = ()
        channels, depth = model.config.intermediate_size, len(self._layers)
        self._conv = (depth, model.config.conv_kernel, channels)
        self._recurrent = (depth, model.config.state_size, channels)

    def __call__(
        self,
        ids: np.ndarray,
        stands: np.ndarray,
        given: np.ndarray,
        limits: np.ndarray,
        memories: MemoryArrays,
        state: "FusedState",
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
        rows, most = ids.shape if ids.ndim == 2 else (len(given), len(ids))
        of_rows, each = (rows, most), (rows,)
        fits = stands.shape == of_rows and given.shape == limits.shape == each and ids.flags.c_contiguous
        types = (ids.dtype, stands.dtype, given.dtype, limits.dtype)
        if not fits or types != _TYPES or not stands.flags.c_contiguous or ids.ndim != 2:
            raise InputMismatchError(
                "FusedStep takes contiguous ids (int64) and stands (bool) of one shape, given and limits (int64) of "
                f"as many rows, and not {ids.shape}, {stands.shape}, {given.shape} and {limits.shape} of {types}"
            )
        arrays = (state.conv, state.recurrent, state.logits, state.best)
        if len(state.best) != rows or len(self._checked) != len(arrays) or any(map(is_not, arrays, self._checked)):
            self._check(state, rows)
            self._checked = arrays
        if memories is not NO_MEMORIES:
            memories.check(rows, most, len(self._embeddings))
        fed = np.zeros(rows + 1, np.int64)  # and whether a token was none of the model's
        work = self._parameters * int(limits.sum()) if rows > 1 else 0  # the rows are what can be shared out
        group = min(_GROUP, -(-rows // torch.get_num_threads()))
        _RUN(
            *(work, group, ids, stands, given, limits, *memories.arrays(), fed),
            *(self._embeddings, self._layers, self._head, self._rank, self._epsilon),
            *arrays,
        )
        if fed[rows]:
            raise InputMismatchError(f"FusedStep was given a token that is none of {len(self._embeddings)}")
        return fed[:rows]

    def _check(self, state: "FusedState", rows: int) -> None:
        """Once for the same arrays: at every step it cost a small model a fifth of its speed."""
        check_arrays(
            "FusedStep",
            conv=(state.conv, (rows, *self._conv), np.float32),
            recurrent=(state.recurrent, (rows, *self._recurrent), np.float32),
            logits=(state.logits, (rows, len(self._embeddings)), np.float32),
            best=(state.best, (rows,), np.int64),
        )


_TYPES = tuple(map(np.dtype, (np.int64, np.bool_, np.int64, np.int64)))


@dataclass
class FusedState:
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


def _pack_layer(block) -> np.ndarray:
    """The weights of one `ToolMambaBlock`, in the order in which `_step` takes them off."""
    mixer = block.mixer
    d, e = mixer.intermediate_size, mixer.hidden_size
    return _join(
        [
            block.norm.weight,
            mixer.in_proj.bias if mixer.use_bias else np.zeros(2 * d),
            float32_array(mixer.in_proj.weight).T,  # (e, 2 d)
            mixer.conv1d.bias if mixer.use_conv_bias else np.zeros(d),
            float32_array(mixer.conv1d.weight)[:, 0].T,  # (k, d)
            _pad(float32_array(mixer.x_proj.weight).T),  # (d, r + 2 n)
            mixer.dt_proj.bias,
            float32_array(mixer.dt_proj.weight).T,  # (r, d)
            mixer.D,
            -LOG2E * np.exp(float32_array(mixer.A_log)).T,  # (n, d), for powers of two
            mixer.out_proj.bias if mixer.use_bias else np.zeros(e),
            float32_array(mixer.out_proj.weight).T,  # (d, e)
        ]
    )


def _pad(matrix: np.ndarray) -> np.ndarray:
    return np.pad(matrix, [(0, 0), (0, -matrix.shape[1] % _LANES)])


def _join(parts) -> np.ndarray:
    arrays = [part if isinstance(part, np.ndarray) else float32_array(part) for part in parts]
    return np.concatenate([a.astype(np.float32).ravel() for a in arrays])


@inlined
def _padded(width):
    return (width + _LANES - 1) // _LANES * _LANES


@inlined
def _copy(values, out):
    for i in range(out.shape[0]):  # numba's own slice assignment first looks for an overlap
        out[i] = values[i]


@inlined
def _clear(out):
    for i in range(out.shape[0]):
        out[i] = np.float32(0.0)


@inlined
def _add_product(matrix, vector, out):
    """Adds the vector (r,) times the matrix (r x columns, flat) to out (columns,)."""
    rows, columns = vector.shape[0], out.shape[0]
    matrix = matrix[: rows * columns].reshape(rows, columns)
    whole = rows // 8 * 8
    for j in range(0, whole, 8):
        v0, v1, v2, v3 = vector[j], vector[j + 1], vector[j + 2], vector[j + 3]
        v4, v5, v6, v7 = vector[j + 4], vector[j + 5], vector[j + 6], vector[j + 7]
        for i in range(columns):
            out[i] += (
                matrix[j, i] * v0
                + matrix[j + 1, i] * v1
                + matrix[j + 2, i] * v2
                + matrix[j + 3, i] * v3
                + matrix[j + 4, i] * v4
                + matrix[j + 5, i] * v5
                + matrix[j + 6, i] * v6
                + matrix[j + 7, i] * v7
            )
    for j in range(whole, rows):
        v0 = vector[j]
        for i in range(columns):
            out[i] += matrix[j, i] * v0


@inlined
def _add_four_products(matrix, vectors, out):
    """Adds four vectors (4, r) times the matrix (r x columns, flat) to out (4, columns): a weight is loaded once."""
    rows, columns = vectors.shape[1], out.shape[1]
    matrix = matrix[: rows * columns].reshape(rows, columns)
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
def _space(e, d, p, v):
    """What `_feed` writes into, for each of four rows: hidden, normed (e,), xz (2 d,), x, y, dt (d,), projected (p,)
    and scores (v,)."""
    return (
        np.zeros((_GROUP, e), np.float32),
        np.zeros((_GROUP, e), np.float32),
        np.zeros((_GROUP, 2 * d), np.float32),
        np.zeros((_GROUP, d), np.float32),
        np.zeros((_GROUP, d), np.float32),
        np.zeros((_GROUP, d), np.float32),
        np.zeros((_GROUP, _padded(p)), np.float32),
        np.zeros((_GROUP, _padded(v)), np.float32),
    )


@called
def _feed(rows, tokens, lanes, space, embeddings, layers, head, r, epsilon, conv, recurrent, logits, best):
    """Feeds one token to each of the first `lanes` of at most four rows; layers are of `_pack_layer`, head is
    (e + e * padded v,)."""
    e, v = embeddings.shape[1], logits.shape[1]
    k, d = conv.shape[2:]
    n = recurrent.shape[2]
    hidden, normed, xz, x, y, dt, projected, scores = space
    for q in range(lanes):
        _clear(scores[q])
    for q in range(lanes):
        _copy(embeddings[tokens[q]], hidden[q])
    for layer in range(layers.shape[0]):
        w = layers[layer]
        for q in range(lanes):
            normalize(hidden[q], w, epsilon, normed[q])
            _copy(w[e : e + 2 * d], xz[q])
        at = e + 2 * d
        _add_products(w[at : at + 2 * d * e], normed, lanes, xz)
        at += 2 * d * e

        bias, taps = w[at : at + d], w[at + d : at + d + k * d].reshape(k, d)
        at += d + k * d
        for q in range(lanes):
            _gated_convolution(xz[q], bias, taps, conv[rows[q], layer], x[q])

        size = d * projected.shape[1]
        for q in range(lanes):
            _clear(projected[q])
        _add_products(w[at : at + size], x, lanes, projected)
        at += size
        for q in range(lanes):
            _copy(w[at : at + d], dt[q])
        at += d
        _add_products(w[at : at + r * d], projected[:, :r], lanes, dt)
        at += r * d

        skip, decay = w[at : at + d], w[at + d : at + d + n * d].reshape(n, d)
        at += d + n * d
        for q in range(lanes):
            B, C = projected[q, r : r + n], projected[q, r + n : r + 2 * n]
            _scan(x[q], xz[q, d:], dt[q], skip, decay, B, C, recurrent[rows[q], layer], y[q])

        for q in range(lanes):
            for i in range(e):
                hidden[q, i] += w[at + i]
        at += e
        _add_products(w[at : at + d * e], y, lanes, hidden)

    for q in range(lanes):
        normalize(hidden[q], head, epsilon, normed[q])
    _add_products(head[e:], normed, lanes, scores)
    for q in range(lanes):
        _copy(scores[q, :v], logits[rows[q]])
        best[rows[q]] = _first_largest(logits[rows[q]])


@inlined
def _next_token(
    b, at, ids, stands, given, limits,
    actions, markers, addresses, sizes, pointers, created, waiting, written, counts, calls, best,
):  # fmt: skip
    """The token that row b is fed behind `at` others, or _STOPS."""
    if at >= limits[b] or at >= ids.shape[1]:
        return _STOPS
    if at < given[b]:
        return ids[b, at] if stands[b, at] or ids[b, at] == best[b] else _STOPS
    if waiting[b] >= 0:
        ids[b, at], stands[b, at] = waiting[b], True
        waiting[b] = -1
    elif best[b] < 0 or best[b] >= actions.shape[0]:
        return -1
    elif carry_out(best[b], b, actions, markers, addresses, sizes, pointers, created, waiting, written, counts, calls):
        ids[b, at] = best[b]
    else:
        return _STOPS
    return ids[b, at]


def _run(
    group, ids, stands, given, limits,
    actions, markers, addresses, sizes, pointers, created, waiting, written, counts, calls, fed,
    embeddings, layers, head, r, epsilon, conv, recurrent, logits, best,
):  # fmt: skip
    """See `FusedStep`; `group` rows go side by side."""
    batch = ids.shape[0]
    for block in numba.prange(count_blocks(batch, group)):
        first, last = block * group, min(batch, block * group + group)
        rows, tokens = np.empty(_GROUP, np.int64), np.empty(_GROUP, np.int64)
        space = _space(embeddings.shape[1], conv.shape[3], r + 2 * recurrent.shape[2], logits.shape[1])
        lanes = 1
        while lanes > 0:
            lanes = 0
            for b in range(first, last):
                # A row that stops would stop again: nothing about it has changed.
                token = _next_token(
                    b, fed[b], ids, stands, given, limits,
                    actions, markers, addresses, sizes, pointers, created, waiting, written, counts, calls, best,
                )  # fmt: skip
                if token == _STOPS:
                    continue
                if token < 0 or token >= embeddings.shape[0]:
                    fed[batch] = 1
                else:
                    rows[lanes], tokens[lanes] = b, token
                    lanes += 1
                    fed[b] += 1
            if lanes > 0:
                _feed(rows, tokens, lanes, space, embeddings, layers, head, r, epsilon, conv, recurrent, logits, best)


_RUN = CpuKernel(_run, PARALLEL_WORK)
