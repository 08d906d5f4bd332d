"""Calls every public entry point with arguments of wrong sizes, types and places, in a process of its own.

fuzz_inputs.py SEED CALLS makes so many calls of each, and writes how many of all were right and how many were refused
by name. A call that is refused in any other way ends it, as does a signal: compiled code checks nothing itself.
"""

import random
import sys

import numpy as np
import torch
from torch import Tensor

from hf_toolssm import (
    RmtConfig,
    RmtForCausalLM,
    RnnConfig,
    RnnForCausalLM,
    Session,
    ToolMambaConfig,
    ToolMambaForCausalLM,
)
from hf_toolssm.errors import ToolSSMError
from hf_toolssm.ops.causal_convolution import causal_convolution
from hf_toolssm.ops.fused_step import FusedState, FusedStep
from hf_toolssm.ops.mamba_inner import mamba_inner
from hf_toolssm.ops.memory_arrays import NO_MEMORIES
from hf_toolssm.ops.rms_norm import rms_norm
from hf_toolssm.ops.selective_scan import selective_scan
from hf_toolssm.ops.selective_scan_cpu import selective_scan_cpu
from hf_toolssm.ops.streamed_step import StreamedStep

B, L, D, N, K, R, E, V = 2, 5, 32, 4, 3, 2, 16, 11
SHAPE = {"vocab_size": V, "hidden_size": E, "num_hidden_layers": 2}


def models():
    torch.manual_seed(0)
    mamba = {"intermediate_size": D, "state_size": N, "conv_kernel": K, "time_step_rank": R, "expand": 2}
    yield ToolMambaForCausalLM(ToolMambaConfig(**SHAPE, **mamba)).eval()
    yield RnnForCausalLM(RnnConfig(**SHAPE, cell="lstm")).eval()
    small = {"num_attention_heads": 2, "intermediate_size": 16, "segment_length": 3, "num_memory_tokens": 2}
    yield RmtForCausalLM(RmtConfig(**SHAPE, **small)).eval()


def lengths():
    return torch.tensor([L, L - 2])


def scan():
    rows = {name: torch.randn(B, L, D) for name in ("x", "dt", "gate")}
    rows |= {name: torch.randn(B, L, N) for name in ("B", "C")}
    return rows | {
        "A": -torch.rand(D, N),
        "D": torch.rand(D),
        "initial_state": torch.rand(B, D, N),
        "lengths": lengths(),
    }


def convolution():
    weights = {"weight": torch.rand(D, K), "bias": torch.rand(D), "state": torch.rand(B, D, K)}
    return weights | {"x": torch.rand(B, L, D), "lengths": lengths()}


def inner():
    weights = {"conv_weight": torch.rand(D, K), "conv_bias": torch.rand(D), "x_weight": torch.rand(R + 2 * N, D)}
    weights |= {"dt_weight": torch.rand(D, R), "dt_bias": torch.rand(D), "A": -torch.rand(D, N), "D": torch.rand(D)}
    states = {"conv_state": torch.rand(B, D, K), "recurrent_state": torch.rand(B, D, N), "lengths": lengths()}
    return {"xz": torch.rand(B, L, 2 * D)} | weights | states


def tokens(model):
    mask = torch.tensor([[1] * L, [0, 0] + [1] * (L - 2)])
    state = model(torch.zeros(B, 1, dtype=torch.int64), use_cache=True).cache_params
    return {"input_ids": torch.randint(V, (B, L)), "attention_mask": mask, "cache_params": state}


def fused(rows=B, most=3):
    arrays = {"ids": np.ones((rows, most), np.int64), "stands": np.ones((rows, most), np.bool_)}
    arrays |= {name: np.full(rows, most, np.int64) for name in ("given", "limits")}
    arrays |= {"conv": np.zeros((rows, 2, K, D), np.float32), "recurrent": np.zeros((rows, 2, N, D), np.float32)}
    return arrays | {"logits": np.zeros((rows, V), np.float32), "best": np.zeros(rows, np.int64)}


def streamed():
    state = {"conv": np.zeros((B, 2, K, D), np.float32), "recurrent": np.zeros((B, 2, N, D), np.float32)}
    return {"ids": np.ones(B, np.int64)} | state


def entry_points():
    mamba, lstm, rmt = models()
    step, stream = FusedStep(mamba), StreamedStep(mamba)

    def feed(ids, stands, given, limits, **state):
        return step(ids, stands, given, limits, NO_MEMORIES, FusedState(**state))

    yield selective_scan, scan
    yield selective_scan_cpu, scan
    yield causal_convolution, convolution
    yield mamba_inner, inner
    yield rms_norm, lambda: {"x": torch.rand(B, L, E), "weight": torch.rand(E), "epsilon": 1e-5}
    for model in (mamba, lstm, rmt):
        yield model, lambda model=model: tokens(model)
        yield model.backbone, lambda model=model: tokens(model)
    yield feed, fused
    yield stream, streamed
    yield lambda prompts: Session.start(mamba, prompts, tools=[]).run(3), lambda: {"prompts": torch.randint(V, (B, L))}
    yield lambda **inputs: mamba.generate(**inputs, tools=[], max_new_tokens=2), lambda: tokens(mamba)


def changed(value, rng):
    """The same argument with another size, type, place or content."""
    if isinstance(value, np.ndarray):
        way = rng.choice(["size", "dims", "dtype", "values", "strides"])
        if way == "size":
            axis = rng.randrange(value.ndim)
            return np.concatenate([value, value], axis) if rng.random() < 0.5 else np.take(value, [], axis)
        if way == "dims":
            return value[None] if rng.random() < 0.5 else value.reshape(-1)
        if way == "dtype":
            return value.astype(rng.choice([np.int32, np.float64, np.int8]))
        if way == "strides":
            return np.repeat(value, 2, axis=-1)[..., ::2]
        return np.full_like(value, rng.choice([-1, -(2**62), 2**40]) if value.dtype == np.int64 else 1)
    if isinstance(value, Tensor):
        way = rng.choice(["size", "dims", "dtype", "values", "strides", "meta", "transposed"])
        if way == "size":
            axis = rng.randrange(value.dim())
            return (
                torch.cat([value, value], axis) if rng.random() < 0.5 else value.narrow(axis, 0, value.shape[axis] - 1)
            )
        if way == "dims":
            return value[None] if rng.random() < 0.5 else value.reshape(-1)
        if way == "dtype":
            return value.to(rng.choice([torch.int32, torch.float64, torch.bfloat16, torch.complex64, torch.bool]))
        if way == "strides":
            return value.repeat_interleave(2, dim=-1)[..., ::2]
        if way == "meta":
            return value.to("meta")
        if way == "transposed":
            return value.transpose(0, -1)
        return torch.full_like(value, rng.choice([-1, 2**40, 7]) if value.dtype == torch.int64 else float("nan"))
    if hasattr(value, "select"):  # a state
        return rng.choice([value.select([0]), value.select([0, 1, 1]), None, torch.zeros(2)])
    return value


def unchanged(value, original):
    """Whether an argument is another tensor of the same values, which gives the same result."""
    return (
        isinstance(value, Tensor)
        and value.shape == original.shape
        and not value.is_meta
        and not value.is_complex()
        and torch.equal(value.double(), original.double())
    )


def tensors(result):
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple):
        return list(result)
    return [next(iter(result.values()))] if hasattr(result, "values") else []


def main(seed, calls):
    rng = random.Random(seed)
    right = refused = 0
    for call, make in entry_points():
        for _ in range(calls):
            arguments = make()
            expected = {name: value.clone() if hasattr(value, "clone") else value for name, value in arguments.items()}
            wrong = rng.choice(list(arguments))
            arguments[wrong] = changed(arguments[wrong], rng)
            with_gradient = rng.random() < 0.5
            if with_gradient:
                for value in arguments.values():
                    if isinstance(value, Tensor) and value.is_floating_point():
                        value.requires_grad_()
            try:
                with torch.set_grad_enabled(with_gradient):
                    found = call(**arguments)
                outputs = [t for t in tensors(found) if isinstance(t, Tensor) and t.requires_grad]
                if outputs:
                    sum(output.float().sum() for output in outputs).backward()
                right += 1
            except ToolSSMError:
                refused += 1
                continue
            except (RuntimeError, NotImplementedError, TypeError) as error:
                # Of torch, about a tensor that holds nothing.
                if any(isinstance(value, Tensor) and value.is_meta for value in arguments.values()):
                    continue
                raise AssertionError(f"{call} with another {wrong} ends in {type(error).__name__}") from error
            if unchanged(arguments[wrong], expected[wrong]):
                for a, b in zip(tensors(found), tensors(call(**expected)), strict=True):
                    assert torch.allclose(a.float(), b.float(), atol=1e-5, equal_nan=True), (call, wrong)
    sys.stdout.write(f"{right} {refused}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
