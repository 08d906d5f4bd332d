"""The compiled scan equals its definition: outputs, final state and every gradient, from any state, in any pieces."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_toolssm.ops.lanes import LANES
from hf_toolssm.ops.selective_scan import selective_scan, selective_scan_reference
from hf_toolssm.ops.selective_scan_cpu import CHUNK, PARALLEL_UPDATES, selective_scan_cpu

NAMES = ("x", "dt", "A", "B", "C", "D", "gate", "initial_state")


def inputs(batch, length, channels, size, seed=0):
    """Random inputs; step sizes span three orders, so that some channels forget at once and others hardly."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    dt = 2 * normal(batch, length, channels) - 2
    decay = -torch.exp(normal(channels, size))
    rows = (batch, length, size)
    return [
        normal(batch, length, channels),
        dt,
        decay,
        normal(*rows),
        normal(*rows),
        normal(channels),
        2 * normal(batch, length, channels),
        normal(batch, channels, size),
    ]


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def run_with_gradients(scan, tensors, lengths):
    tensors = [t.clone().requires_grad_() for t in tensors]
    y, state = scan(*tensors, lengths)
    if lengths is not None:
        y = y * (torch.arange(y.shape[1]) < lengths[:, None])[:, :, None]
    loss = (y * torch.cos(torch.arange(y.numel())).view_as(y)).sum()
    loss = loss + (state * torch.sin(torch.arange(state.numel())).view_as(state)).sum()
    return y, state, torch.autograd.grad(loss, tensors)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("batch", "length", "channels", "size", "lengths"),
    [
        (1, 1, 1, 1, None),
        (2, CHUNK, 8, 4, None),
        (3, 2 * CHUNK + 1, LANES + 5, 16, [2 * CHUNK + 1, CHUNK, 1]),
        (2, 5, 2 * LANES, 3, [0, 5]),
        (8, 200, 128, 16, None),  # large enough for all threads
    ],
)
def test_outputs_state_and_gradients_equal_the_definition(batch, length, channels, size, lengths):
    assert PARALLEL_UPDATES < (8 * 200 * 128 * 16)
    lengths = None if lengths is None else torch.tensor(lengths)
    tensors = inputs(batch, length, channels, size)
    expected = run_with_gradients(selective_scan_reference, tensors, lengths)
    found = run_with_gradients(selective_scan_cpu, tensors, lengths)
    assert relative_error(found[0], expected[0]) < 1e-5
    assert relative_error(found[1], expected[1]) < 1e-5
    for name, gradient, right in zip(NAMES, found[2], expected[2]):
        assert relative_error(gradient, right) < 1e-5, name


def test_the_definition_is_the_recurrence():
    """Four steps by hand, in double precision, against the reference."""
    x, dt, A, B, C, D, gate, h = (t.double() for t in inputs(1, 4, 2, 3))
    y, last = selective_scan_reference(*(t.float() for t in (x, dt, A, B, C, D, gate, h)))
    for t in range(4):
        for d in range(2):
            step = torch.log(1 + torch.exp(dt[0, t, d]))
            for n in range(3):
                h[0, d, n] = torch.exp(step * A[d, n]) * h[0, d, n] + step * B[0, t, n] * x[0, t, d]
            opened = gate[0, t, d] / (1 + torch.exp(-gate[0, t, d]))
            expected = (C[0, t] @ h[0, d] + D[d] * x[0, t, d]) * opened
            assert y[0, t, d].item() == pytest.approx(expected.item(), abs=1e-5)
    assert relative_error(last.double(), h) < 1e-5


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 2 * CHUNK + 3), min_size=1, max_size=3),
    channels=st.sampled_from([1, 7, LANES, LANES + 1, 2 * LANES + 9]),
    size=st.integers(1, 17),
    seed=st.integers(0, 1_000),
)
def test_any_shape_and_lengths_equal_the_definition(lengths, channels, size, seed):
    tensors = inputs(len(lengths), max(1, *lengths), channels, size, seed)
    expected = run_with_gradients(selective_scan_reference, tensors, torch.tensor(lengths))
    found = run_with_gradients(selective_scan_cpu, tensors, torch.tensor(lengths))
    for name, a, b in zip(("y", "state", *NAMES), (*found[:2], *found[2]), (*expected[:2], *expected[2])):
        assert relative_error(a, b) < 2e-5, name


def test_views_of_a_projection_give_what_their_copies_give():
    """The mixer's inputs: gate is half of one projection's output, B and C lie side by side in another's."""
    x, dt, A, B, C, D, gate, state = inputs(3, 20, 70, 5)
    both, projected = torch.cat([x, gate], -1), torch.cat([dt[..., :3], B, C], -1)

    def scan(both, projected):
        x, gate = both.chunk(2, dim=-1)
        _, B, C = projected.split([3, 5, 5], dim=-1)
        return selective_scan_cpu(x, dt, A, B, C, D, gate, state)

    views = [t.clone().requires_grad_() for t in (both, projected)]
    y, _ = scan(*views)
    expected = selective_scan_reference(x, dt, A, B, C, D, gate, state)[0]
    assert relative_error(y, expected) < 1e-5
    y.square().sum().backward()
    x, B, C, gate = (t.clone().requires_grad_() for t in (x, B, C, gate))
    selective_scan_reference(x, dt, A, B, C, D, gate, state)[0].square().sum().backward()
    assert relative_error(views[0].grad, torch.cat([x.grad, gate.grad], -1)) < 1e-5
    assert relative_error(views[1].grad[..., 3:], torch.cat([B.grad, C.grad], -1)) < 1e-5


@given(pieces=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 1_000))
def test_pieces_with_a_carried_state_equal_the_whole_gradients_included(pieces, seed):
    def in_pieces(x, dt, A, B, C, D, gate, state, lengths):
        outputs = []
        for part in zip(*(t.split(pieces, dim=1) for t in (x, dt, B, C, gate))):
            y, state = selective_scan_cpu(part[0], part[1], A, part[2], part[3], D, part[4], state)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    tensors = inputs(2, sum(pieces), 6, 4, seed)
    expected = run_with_gradients(selective_scan_cpu, tensors, None)
    found = run_with_gradients(in_pieces, tensors, None)
    for a, b in zip((found[0], found[1], *found[2]), (expected[0], expected[1], *expected[2])):
        assert relative_error(a, b) < 2e-5


def test_the_two_compilations_of_a_kernel_never_load_each_others_code(tmp_path):
    """numba caches by name: were the names equal, a decode step would wake threads, or training use only one."""
    code = """
import torch
from hf_toolssm.ops.selective_scan_cpu import _FORWARD, selective_scan_cpu
for length in (2, 400):  # below and above the size from which threads pay
    rows = torch.rand(4, length, 64)
    selective_scan_cpu(rows, rows, -torch.rand(64, 16), rows[..., :16], rows[..., :16], torch.rand(64), rows)
print(sum(_FORWARD._serial.stats.cache_hits.values()), sum(_FORWARD._parallel.stats.cache_hits.values()))
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}

    def run():
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", check=True
        ).stdout.split()

    assert run() == ["0", "0"]
    assert len({path.name.split("-")[0] for path in tmp_path.rglob("*_forward*.nbi")}) == 2
    assert run() == ["1", "1"]


def test_bfloat16_comes_in_and_goes_out():
    tensors = inputs(2, 20, 8, 4)
    y, state = selective_scan(*(t.bfloat16() for t in tensors))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert relative_error(y.float(), selective_scan_reference(*tensors)[0]) < 0.05


@pytest.mark.parametrize("extreme", [1e4, -1e4, 88.0, -88.0, 0.0])
def test_extreme_steps_and_gates_stay_finite_and_right(extreme):
    tensors = inputs(1, 50, 4, 3)
    for index in (1, 6):  # dt, gate
        changed = list(tensors)
        changed[index] = torch.full_like(changed[index], extreme)
        expected = run_with_gradients(selective_scan_reference, changed, None)
        found = run_with_gradients(selective_scan_cpu, changed, None)
        for name, a, b in zip(("y", "state", *NAMES), (*found[:2], *found[2]), (*expected[:2], *expected[2])):
            assert torch.isfinite(a).all(), name
            assert relative_error(a, b) < 1e-4, name


def test_a_step_of_almost_nothing_leaves_the_state_as_it_is():
    x, dt, A, B, C, D, gate, state = inputs(1, 50, 4, 3)
    _, last = selective_scan_cpu(x, torch.full_like(dt, -1e4), A, B, C, D, gate, state)
    assert torch.equal(last, state)
