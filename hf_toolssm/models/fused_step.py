"""One decode step of a whole Mamba, compiled: all layers of all rows in one call, float32 on a CPU."""

import numba
import numpy as np

from hf_toolssm.models.cpu_kernels import CpuKernel, exp_of_nonpositive, inlined

PARALLEL_WORK = 1_000_000
"""Parameters times rows from which waking the other threads pays."""


class LayerLayout:
    """Where each weight of a layer lies in one flat array, so that a call passes few arguments.

    Args:
        config: the model's configuration.

    Attributes:
        shape: (e, d, n, r, k): model width, inner channels, state size, step rank, convolution width.
        epsilon: of the layer norms.
    """

    def __init__(self, config) -> None:
        self.shape = (
            config.hidden_size,
            config.intermediate_size,
            config.state_size,
            int(config.time_step_rank),
            config.conv_kernel,
        )
        self.epsilon = np.float32(config.layer_norm_epsilon)

    def pack(self, block) -> np.ndarray:
        """The weights of one `ToolMambaBlock`, in the order in which `_step` takes them off."""
        mixer = block.mixer
        e, d, *_ = self.shape
        zeros = np.zeros
        parts = [
            block.norm.weight,
            mixer.in_proj.weight,
            mixer.in_proj.bias if mixer.use_bias else zeros(2 * d),
            mixer.conv1d.weight.squeeze(1).t(),  # (k, d)
            mixer.conv1d.bias if mixer.use_conv_bias else zeros(d),
            mixer.x_proj.weight,
            mixer.dt_proj.weight,
            mixer.dt_proj.bias,
            -mixer.A_log.float().exp().t(),  # (n, d)
            mixer.D,
            mixer.out_proj.weight,
            mixer.out_proj.bias if mixer.use_bias else zeros(e),
        ]
        arrays = [p if isinstance(p, np.ndarray) else p.detach().float().numpy() for p in parts]
        return np.concatenate([a.astype(np.float32).ravel() for a in arrays])


@inlined
def _sigmoid(value):
    small = exp_of_nonpositive(-abs(value))  # never overflows
    return (np.float32(1.0) if value >= 0 else small) / (np.float32(1.0) + small)


@inlined
def _multiply(matrix, vector, out, rows, columns):
    """out = matrix (rows x columns, flat) times vector; out already holds the bias."""
    for i in range(rows):
        total = np.float32(0.0)
        row = matrix[i * columns : (i + 1) * columns]
        for j in range(columns):
            total += row[j] * vector[j]
        out[i] += total


@inlined
def _normalize(values, weight, epsilon, out):
    total = np.float32(0.0)
    for i in range(values.shape[0]):
        total += values[i] * values[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(values.shape[0]) + epsilon)
    for i in range(values.shape[0]):
        out[i] = values[i] * scale * weight[i]


def _step(ids, embeddings, layers, shape, epsilon, norm, head, conv, recurrent, logits):
    """Feeds ids (b,); conv (b, layers, k, d) and recurrent (b, layers, n, d) move on, logits (b, v) is set.

    embeddings is (v, e), layers is (layers, weights) as `LayerLayout.pack` gives them, head is (v * e,).
    """
    e, d, n, r, k = shape
    for b in numba.prange(ids.shape[0]):
        hidden = embeddings[ids[b]].copy()
        normed = np.empty(e, np.float32)
        xz = np.empty(2 * d, np.float32)
        x, y, dt = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
        projected = np.empty(r + 2 * n, np.float32)
        for layer in range(layers.shape[0]):
            w = layers[layer]
            at = 0
            _normalize(hidden, w[at : at + e], epsilon, normed)
            at += e
            xz[:] = w[at + 2 * d * e : at + 2 * d * e + 2 * d]
            _multiply(w[at : at + 2 * d * e], normed, xz, 2 * d, e)
            at += 2 * d * e + 2 * d

            window = conv[b, layer]  # the last k inputs, oldest first
            for tap in range(k - 1):
                window[tap] = window[tap + 1]
            window[k - 1] = xz[:d]
            x[:] = w[at + k * d : at + k * d + d]
            for tap in range(k):
                taps, inputs = w[at + tap * d : at + tap * d + d], window[tap]
                for i in range(d):
                    x[i] += taps[i] * inputs[i]
            for i in range(d):
                x[i] *= _sigmoid(x[i])
            at += k * d + d

            projected[:] = np.float32(0.0)
            _multiply(w[at : at + (r + 2 * n) * d], x, projected, r + 2 * n, d)
            at += (r + 2 * n) * d
            dt[:] = w[at + d * r : at + d * r + d]
            _multiply(w[at : at + d * r], projected[:r], dt, d, r)
            for i in range(d):
                # softplus, exact for large values too
                dt[i] = max(dt[i], np.float32(0.0)) + np.log1p(np.exp(-abs(dt[i])))
            at += d * r + d

            skip = w[at + n * d : at + n * d + d]
            for i in range(d):
                y[i] = skip[i] * x[i]
                x[i] *= dt[i]  # x is the scan's input from here on
            for s in range(n):
                decay, h = w[at + s * d : at + s * d + d], recurrent[b, layer, s]
                b_s, c_s = projected[r + s], projected[r + n + s]
                for i in range(d):
                    value = exp_of_nonpositive(dt[i] * decay[i]) * h[i] + x[i] * b_s
                    h[i] = value
                    y[i] += value * c_s
            for i in range(d):
                gate = xz[d + i]
                y[i] *= gate * _sigmoid(gate)
            at += n * d + d

            bias = w[at + e * d : at + e * d + e]
            for i in range(e):
                hidden[i] += bias[i]
            _multiply(w[at : at + e * d], y, hidden, e, d)
        _normalize(hidden, norm, epsilon, normed)
        logits[b] = np.float32(0.0)
        _multiply(head, normed, logits[b], logits.shape[1], e)


STEP = CpuKernel(_step, PARALLEL_WORK)
