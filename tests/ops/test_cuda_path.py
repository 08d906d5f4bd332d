"""The CUDA path: what surrounds the kernels is checked on a CPU by stand-ins that keep their contracts, the kernels
themselves on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from conftest import random_model, relative_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_toolssm import MambaState, Session
from hf_toolssm.errors import StateMismatchError
from hf_toolssm.ops.causal_convolution_cuda import causal_convolution_cuda, convolve_from_state
from hf_toolssm.ops.graphed_step import GraphedStep, step_in_place, step_memory
from hf_toolssm.ops.selective_scan_cpu import selective_scan_cpu
from hf_toolssm.ops.selective_scan_cuda import MAX_PIECE, scan_in_pieces, selective_scan_cuda

NAMES = ("x", "dt", "A", "B", "C", "D", "gate", "initial_state")


def scan_inputs(batch, length, channels, size, seed=0, dtype=torch.float32):
    """Random inputs; steps from 0.001 to 10, so that some channels forget at once and others hardly."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=dtype)

    wide, narrow = (batch, length, channels), (batch, length, size)
    return [
        normal(*wide),
        3 * normal(*wide) - 2,
        -torch.exp(normal(channels, size)),
        normal(*narrow),
        normal(*narrow),
        normal(channels),
        normal(*wide),
        normal(batch, channels, size),
    ]


def definition(x, dt, A, B, C, D, gate, h, lengths=None):
    """The scan step by step, in the precision of its inputs."""
    steps, outputs = F.softplus(dt), []
    if lengths is not None:
        steps = steps * (torch.arange(x.shape[1]) < lengths[:, None])[:, :, None]
    for x_t, dt_t, B_t, C_t in zip(*(t.unbind(1) for t in (x, steps, B, C))):
        h = torch.exp(dt_t[:, :, None] * A) * h + (dt_t * x_t)[:, :, None] * B_t[:, None]
        outputs.append((h * C_t[:, None]).sum(-1) + D * x_t)
    return torch.stack(outputs, dim=1) * F.silu(gate), h


def stand_in_scan(x, steps, A, B, C, D, gate):
    """The contract of mamba-ssm's kernel in plain torch: zero start, one type, no gradient for the last state."""
    assert x.dtype == steps.dtype == B.dtype == C.dtype == gate.dtype
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = torch.zeros(x.shape[0], *A.shape, dtype=exact)
    outputs = []
    for x_t, dt_t, B_t, C_t in zip(*(t.to(exact).unbind(2) for t in (x, steps, B, C))):
        h = torch.exp(dt_t[:, :, None] * A.to(exact)) * h + (dt_t * x_t)[:, :, None] * B_t[:, None]
        outputs.append((h * C_t[:, None]).sum(-1) + D.to(exact) * x_t)
    return (torch.stack(outputs, dim=2) * F.silu(gate.to(exact))).to(x.dtype), h.detach()


def stand_in_convolution(x, weight, bias):
    """The contract of causal-conv1d's kernel in plain torch: zeros before the first input, SiLU after the last sum."""
    width = weight.shape[1]
    return F.silu(F.conv1d(F.pad(x, (width - 1, 0)), weight[:, None], bias, groups=x.shape[1]))


def surrounded(piece):
    def scan(*arguments):
        return scan_in_pieces(stand_in_scan, piece, *arguments)

    return scan


def run_with_gradients(scan, tensors, lengths=None, device="cpu"):
    """Real outputs, final state, and the gradients of a loss over both with respect to every input."""
    tensors = [t.to(device).requires_grad_() for t in (t.clone() for t in tensors)]
    y, state = scan(*tensors, None if lengths is None else lengths.to(device))
    if lengths is not None:
        y = y * (torch.arange(y.shape[1]) < lengths[:, None])[:, :, None].to(device)
    loss = (y * torch.cos(torch.arange(y.numel(), device=device)).view_as(y)).sum()
    loss = loss + (state * torch.sin(torch.arange(state.numel(), device=device)).view_as(state)).sum()
    return [t.cpu() for t in (y, state, *torch.autograd.grad(loss, tensors))]


def assert_equal_runs(found, expected, tolerance):
    for name, a, b in zip(("y", "state", *NAMES), found, expected):
        assert ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-6)) < tolerance, name


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    channels=st.integers(1, 5),
    size=st.integers(1, 6),
    piece=st.integers(1, 40),
    seed=st.integers(0, 1_000),
)
def test_a_state_written_and_read_as_tokens_gives_every_gradient(lengths, channels, size, piece, seed):
    width = max(1, *lengths)
    tensors = scan_inputs(len(lengths), width, channels, size, seed)
    expected = run_with_gradients(definition, [t.double() for t in tensors], torch.tensor(lengths))
    found = run_with_gradients(surrounded(piece), tensors, torch.tensor(lengths))
    assert_equal_runs(found, expected, 2e-5)


def test_the_gradients_are_those_of_finite_differences():
    tensors = [t.requires_grad_() for t in scan_inputs(2, 5, 2, 2, dtype=torch.float64)]
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(lambda *inputs: surrounded(2)(*inputs, lengths), tensors, atol=1e-5)


def test_no_initial_state_is_zeros():
    *tensors, state = scan_inputs(2, 10, 3, 4)
    expected = surrounded(4)(*tensors, torch.zeros_like(state), None)
    for a, b in zip(surrounded(4)(*tensors, None, None), expected):
        assert relative_distance(a, b) < 1e-6


def test_a_row_without_a_real_token_keeps_its_state_to_the_last_bit():
    tensors = scan_inputs(3, 8, 4, 4)
    _, last = surrounded(3)(*tensors, torch.tensor([0, 8, 0]))
    assert torch.equal(last[[0, 2]], tensors[-1][[0, 2]])


def test_bfloat16_inputs_never_round_the_state_that_pieces_hand_on():
    """1,000 hand-overs, one per token: a state rounded to eight bits each time would lose what slow channels gain."""
    *tensors, state = scan_inputs(1, 1_000, 4, 3)
    tensors[1] -= 4  # slow channels
    rounded = [t.bfloat16() for t in tensors]
    # The step sizes as the kernel gets them, so that only what the hand-over adds is measured.
    exact = [t.double() for t in rounded]
    exact[1] = torch.log(torch.expm1(F.softplus(rounded[1]).double()))
    with torch.no_grad():
        y, last = surrounded(1)(*rounded, state, None)
        expected_y, expected = definition(*exact, state.double())
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert relative_distance(last, expected) < 1e-5
    assert relative_distance(y.double(), expected_y) < 0.01


def test_bfloat16_gradients_reach_the_initial_state():
    tensors = scan_inputs(2, 20, 4, 3)
    xz = [t.bfloat16() for t in tensors[:-1]] + [tensors[-1]]
    assert_equal_runs(
        run_with_gradients(surrounded(8), xz), run_with_gradients(definition, [t.double() for t in xz]), 0.05
    )


def test_extreme_steps_stay_finite():
    tensors = scan_inputs(1, 20, 3, 3)
    for extreme in (-200.0, 1e4):
        tensors[1] = torch.full_like(tensors[1], extreme)
        assert all(torch.isfinite(t).all() for t in run_with_gradients(surrounded(7), tensors))


def convolution_inputs(batch, length, channels, width, seed=0, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, channels), (channels, width), (channels,), (batch, channels, width)]
    return [torch.randn(*shape, generator=random, dtype=dtype) for shape in shapes]


def from_state(x, weight, bias, state, lengths):
    """What `causal_convolution_cuda` does, with a stand-in for the kernel."""
    width = weight.shape[1]
    return convolve_from_state(lambda window: stand_in_convolution(window, weight, bias), width, x, state, lengths)


def convolution_definition(x, weight, bias, state, lengths):
    """Each output from the k inputs up to it, each row by itself."""
    width = weight.shape[1]
    window = torch.cat([state, x.transpose(1, 2)], dim=2)
    y = torch.stack([(window[:, :, t + 1 : t + 1 + width] * weight).sum(2) for t in range(x.shape[1])], dim=1)
    last = torch.stack([row[:, n : n + width] for row, n in zip(window, lengths)])
    return F.silu(y + bias), last


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    channels=st.integers(1, 9),
    width=st.integers(2, 4),
    seed=st.integers(0, 1_000),
)
def test_the_convolution_goes_on_from_any_state_gradients_included(lengths, channels, width, seed):
    tensors = convolution_inputs(len(lengths), max(1, *lengths), channels, width, seed, torch.float64)
    counts = torch.tensor(lengths)

    expected = run_with_gradients(convolution_definition, tensors, counts)
    for a, b in zip(run_with_gradients(from_state, tensors, counts), expected):
        assert relative_distance(a, b) < 1e-10


def test_a_convolution_of_whole_rows_from_nothing_starts_from_zeros():
    x, weight, bias, state = convolution_inputs(2, 6, 5, 4)
    found = from_state(x, weight, bias, None, None)
    expected = convolution_definition(x, weight, bias, torch.zeros_like(state), [6, 6])
    for a, b in zip(found, expected):
        assert relative_distance(a, b) < 1e-5
    assert found[1].untyped_storage().nbytes() == 4 * found[1].numel()  # no window hangs on to the state


def prompt(model, batch, length, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (batch, length), generator=random)


@torch.no_grad()
def test_a_step_in_place_leaves_logits_and_state_of_a_plain_step_in_the_same_memory(model):
    ids = prompt(model, 2, 5)
    memory = step_memory(model, ids[:, :1])
    plain = memory.clone()
    places = [t.data_ptr() for layer in range(2) for t in memory.tensors(layer)]
    for t in range(5):
        found = step_in_place(model, ids[:, t : t + 1], memory)
        expected = model(ids[:, t : t + 1], cache_params=plain, use_cache=True).logits[:, -1]
        assert torch.equal(found, expected)
    assert [t.data_ptr() for layer in range(2) for t in memory.tensors(layer)] == places
    for layer in range(2):
        for a, b in zip(memory.tensors(layer), plain.tensors(layer)):
            assert torch.equal(a, b)


@pytest.fixture
def kernels():
    """Skips where the kernels cannot run."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("mamba_ssm")
    pytest.importorskip("causal_conv1d")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("batch", "length", "channels", "size", "lengths"),
    [
        (1, 1, 8, 4, None),
        (2, 100, 64, 16, None),
        (3, 2_049, 24, 16, [2_049, 7, 0]),
    ],
)
def test_the_scan_kernel_equals_the_definition(kernels, batch, length, channels, size, lengths):
    tensors = scan_inputs(batch, length, channels, size)
    lengths = None if lengths is None else torch.tensor(lengths)
    expected = run_with_gradients(definition, [t.double() for t in tensors], lengths)
    assert_equal_runs(run_with_gradients(selective_scan_cuda, tensors, lengths, "cuda"), expected, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_scan_kernel_takes_half_precision(kernels, dtype):
    tensors = scan_inputs(2, 300, 32, 16)
    xz = [t.to(dtype) for t in tensors[:-1]] + [tensors[-1]]
    expected = run_with_gradients(definition, [t.double() for t in xz])
    assert_equal_runs(run_with_gradients(selective_scan_cuda, xz, None, "cuda"), expected, 0.05)


@pytest.mark.gpu
def test_100_000_tokens_in_one_call_equal_the_scan_of_a_cpu(kernels):
    """Which is compared with the definition elsewhere; that one takes minutes for as many."""
    tensors = scan_inputs(1, 100_000, 4, 4)
    assert tensors[0].shape[1] > 3 * MAX_PIECE
    expected = run_with_gradients(selective_scan_cpu, tensors)
    assert_equal_runs(run_with_gradients(selective_scan_cuda, tensors, None, "cuda"), expected, 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("channels", [13, 64])
def test_the_convolution_kernel_equals_the_definition(kernels, channels, width):
    tensors = convolution_inputs(3, 50, channels, width)
    lengths = torch.tensor([50, 20, 0])
    expected = run_with_gradients(convolution_definition, [t.double() for t in tensors], lengths)
    found = run_with_gradients(causal_convolution_cuda, tensors, lengths, "cuda")
    for a, b in zip(found, expected):
        assert relative_distance(a.double(), b) < 1e-4


@pytest.mark.gpu
@torch.no_grad()
def test_a_graph_decodes_the_tokens_of_the_model_from_any_state(kernels, model):
    model = model.cuda()
    start = MambaState(model.config)
    tokens = plain_tokens = model(prompt(model, 3, 20).cuda(), cache_params=start).logits[:, -1].argmax(1)
    state, step = start.clone(), GraphedStep(model, batch=3)
    for begin in (start, state):  # twice: the second start must owe nothing to the first run
        step.load(begin)
        plain, tokens = begin.clone(), plain_tokens
        for _ in range(100):
            expected = model(tokens[:, None], cache_params=plain, use_cache=True).logits[:, -1]
            assert relative_distance(step(tokens), expected) < 1e-4
            tokens = expected.argmax(1)
        for layer in range(len(plain.layers)):
            for a, b in zip(step.state().tensors(layer), plain.tensors(layer)):
                assert relative_distance(a, b) < 1e-4


@pytest.mark.gpu
def test_a_graph_refuses_a_state_of_another_batch(kernels, model):
    model = model.cuda()
    step, state = GraphedStep(model, batch=2), MambaState(model.config)
    model(prompt(model, 3, 4).cuda(), cache_params=state)
    with pytest.raises(StateMismatchError, match="3 rows.*captured for 2"):
        step.load(state)


@pytest.mark.gpu
def test_training_on_a_gpu_gives_the_losses_of_a_cpu(kernels, tokenizer, specs):
    def losses(device):
        model = random_model(tokenizer, specs).to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        ids = prompt(model, 4, 40).to(device)
        mask = torch.ones_like(ids)
        mask[0, 30:] = 0
        found = []
        for _ in range(5):
            loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    assert losses("cuda") == pytest.approx(losses("cpu"), rel=1e-3)


@pytest.mark.gpu
def test_a_session_on_a_gpu_writes_the_tokens_of_a_cpu(kernels, tokenizer, specs):
    def tokens(device):
        model = random_model(tokenizer, specs).to(device)
        prompts = tokenizer(["7+5=", "98765+4321="])["input_ids"]
        session = Session.start(model, prompts, tokenizer=tokenizer)
        session.run(40)
        fork = session.select([1, 0])
        fork.run(40)
        return [(row.answer, row.tool_calls, row.error) for row in fork.rows], fork.state.logits.cpu()

    (rows, logits), (expected_rows, expected_logits) = tokens("cuda"), tokens("cpu")
    assert rows == expected_rows
    assert relative_distance(logits, expected_logits) < 1e-3
