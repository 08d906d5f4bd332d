"""Decode steps of a whole small Mamba, compiled: all layers of all rows in one call, float32 on a CPU.

A tiny model's weights stay in the CPU's cache, so what counts is how often a step passes over its vectors: matrices
lie transposed, and a product adds eight of their rows at a time to a result that is as wide as a layer.
"""

import numba
import numpy as np

from hf_toolssm.models.cpu_kernels import (
    CpuKernel,
    exp_of_nonpositive,
    float32_array,
    inlined,
    normalize,
    sigmoid,
    softplus,
)

PARALLEL_WORK = 1_000_000
"""Parameters times tokens from which waking the other threads pays."""

_LANES = 16
"""The float32 values of the widest register: a result whose width divides by it needs no scalar remainder."""


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

    def __call__(
        self, ids: np.ndarray, observed: np.ndarray, conv: np.ndarray, recurrent: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Feeds each row its tokens one after the other, up to the first that the model itself would not choose.

        Args:
            ids: (b, m), int64; a row with fewer tokens ends with -1. The first token of each row always stands.
            observed: (b, m), bool: tokens that stand whatever the model would choose.
            conv: (b, layers, k, d), float32, the last k inputs of each convolution, oldest first; moved on in place.
            recurrent: (b, layers, n, d), float32, the state of each scan; moved on in place.

        Returns:
            Behind the last token that was fed, the logits (b, v), float32, and the first largest of them (b,), int64;
            and how many tokens were fed (b,), int64.
        """
        rows = len(ids)
        logits, best = np.empty((rows, len(self._embeddings)), np.float32), np.empty(rows, np.int64)
        fed = np.empty(rows, np.int64)
        work = self._parameters * ids.size if rows > 1 else 0  # the rows are what can be shared out
        _STEP(
            *(work, ids, observed, self._embeddings, self._layers, self._head, self._rank, self._epsilon),
            *(conv, recurrent, logits, best, fed),
        )
        return logits, best, fed


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
            -np.exp(float32_array(mixer.A_log)).T,  # (n, d)
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


def _step(ids, observed, embeddings, layers, head, r, epsilon, conv, recurrent, logits, best, fed):
    """See `FusedStep`; layers (layers, weights) are of `_pack_layer`, head (e + e * padded v,)."""
    rows, tokens = ids.shape
    e, v = embeddings.shape[1], logits.shape[1]
    k, d = conv.shape[2:]
    n = recurrent.shape[2]
    for b in numba.prange(rows):
        hidden, normed = np.empty(e, np.float32), np.empty(e, np.float32)
        xz = np.empty(2 * d, np.float32)
        x, y, dt = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
        projected = np.empty(_padded(r + 2 * n), np.float32)
        scores = np.empty(_padded(v), np.float32)
        at_token, largest, going = 0, 0, True
        while going:
            _copy(embeddings[ids[b, at_token]], hidden)
            for layer in range(layers.shape[0]):
                w = layers[layer]
                normalize(hidden, w, epsilon, normed)
                at = e
                _copy(w[at : at + 2 * d], xz)
                at += 2 * d
                _add_product(w[at : at + 2 * d * e], normed, xz)
                at += 2 * d * e

                window = conv[b, layer]
                for tap in range(k - 1):
                    _copy(window[tap + 1], window[tap])
                _copy(xz[:d], window[k - 1])
                _copy(w[at : at + d], x)
                at += d
                for tap in range(k):
                    taps, inputs = w[at + tap * d : at + tap * d + d], window[tap]
                    for i in range(d):
                        x[i] += taps[i] * inputs[i]
                at += k * d
                for i in range(d):
                    x[i] *= sigmoid(x[i])

                _clear(projected)
                size = d * projected.shape[0]
                _add_product(w[at : at + size], x, projected)
                at += size
                _copy(w[at : at + d], dt)
                at += d
                _add_product(w[at : at + r * d], projected[:r], dt)
                at += r * d
                for i in range(d):
                    dt[i] = softplus(dt[i])

                for i in range(d):
                    y[i] = w[at + i] * x[i]
                    x[i] *= dt[i]  # x is the scan's input from here on
                at += d
                for s in range(n):
                    decay, h = w[at + s * d : at + s * d + d], recurrent[b, layer, s]
                    b_s, c_s = projected[r + s], projected[r + n + s]
                    for i in range(d):
                        value = exp_of_nonpositive(dt[i] * decay[i]) * h[i] + x[i] * b_s
                        h[i] = value
                        y[i] += value * c_s
                at += n * d
                for i in range(d):
                    gate = xz[d + i]
                    y[i] *= gate * sigmoid(gate)

                for i in range(e):
                    hidden[i] += w[at + i]
                at += e
                _add_product(w[at : at + d * e], y, hidden)

            at_token += 1
            ended = at_token == tokens or ids[b, at_token] < 0
            if not ended and observed[b, at_token]:
                continue  # nobody asks what the model would choose
            normalize(hidden, head, epsilon, normed)
            _clear(scores)
            _add_product(head[e:], normed, scores)
            largest = 0
            for i in range(1, v):
                if scores[i] > scores[largest]:
                    largest = i
            going = not ended and ids[b, at_token] == largest
        for i in range(v):
            logits[b, i] = scores[i]
        best[b] = largest
        fed[b] = at_token


_STEP = CpuKernel(_step, PARALLEL_WORK)
