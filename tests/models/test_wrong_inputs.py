"""What does not fit ends in a named error before compiled code, which checks nothing, and never in a signal."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_toolssm import MambaState, RmtConfig, RmtForCausalLM, RnnConfig, RnnForCausalLM, Session, ToolMambaConfig
from hf_toolssm.errors import (
    ArchitectureMismatchError,
    InputMismatchError,
    InvalidProblemError,
    MissingToolTokensError,
    StateMismatchError,
    UnknownToolError,
    UnsupportedGenerationError,
)
from hf_toolssm.generation.compiled_loop import CompiledLoop
from hf_toolssm.generation.decoder import FusedDecoder
from hf_toolssm.ops import memory_arrays
from hf_toolssm.ops.causal_convolution import causal_convolution
from hf_toolssm.ops.fused_step import FusedState, FusedStep
from hf_toolssm.ops.memory_arrays import NO_MEMORIES
from hf_toolssm.ops.selective_scan import selective_scan

ROOT = Path(__file__).parents[2]


def fuzz(seed, calls):
    words = [sys.executable, str(Path(__file__).parent / "fuzz_inputs.py"), str(seed), str(calls)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, encoding="utf-8", env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    right, refused = map(int, done.stdout.split())
    assert right > 0.1 * calls
    assert refused > 5 * calls


def test_wrong_arguments_of_every_entry_point_are_refused_by_name():
    fuzz(seed=0, calls=20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_more_wrong_arguments_are_refused_by_name(seed):
    fuzz(seed, calls=200)


def backward_of_a_convolution_that_is_0_wide():
    x = torch.rand(2, 5, 64, requires_grad=True)
    causal_convolution(x, torch.rand(64, 0), None)[0].sum().backward()


def scan_without_a_state():
    rows, none = torch.rand(2, 5, 8), torch.rand(2, 5, 0)
    selective_scan(rows, rows, torch.rand(8, 0), none, none, torch.rand(8), rows)


def test_sizes_of_nothing_are_refused():
    with pytest.raises(InputMismatchError, match="whose size k is 0"):
        backward_of_a_convolution_that_is_0_wide()
    with pytest.raises(InputMismatchError, match="whose size n is 0"):
        scan_without_a_state()
    with pytest.raises(ArchitectureMismatchError, match="conv_kernel is at least 1, and not 0"):
        ToolMambaConfig(conv_kernel=0)


@pytest.mark.parametrize("steps", [2.5, "3", -1, True])
def test_a_session_runs_a_whole_number_of_tokens(model, tokenizer, steps):
    session = Session.start(model, tokenizer(["7+5="])["input_ids"])
    with pytest.raises(UnsupportedGenerationError, match="a whole number from 0 on"):
        session.run(steps)
    assert session.run(np.int64(1)) == session.tokens == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("best", 10**9), ("best", -5), ("counts", 10**9), ("actions", -(10**9)), ("sizes", 10**9)],
)
def test_a_value_that_a_kernel_would_take_for_a_place_is_refused(model, tokenizer, name, value, monkeypatch):
    session = Session.start(model, tokenizer(["7+5="])["input_ids"])
    if name == "best":
        load = FusedDecoder.load

        def loaded(self, state):
            load(self, state)
            self._state.best[:] = value

        monkeypatch.setattr(FusedDecoder, "load", loaded)
    else:
        make = CompiledLoop._memories

        def made(self, rows, shape):
            memories = make(self, rows, shape)
            getattr(memories, name)[:] = (memory_arrays.LEFT, value) if name == "actions" else value
            if name == "sizes":
                memories.addresses[:] = 0
            return memories

        monkeypatch.setattr(CompiledLoop, "_memories", made)
    with pytest.raises(InputMismatchError):
        session.run(5)


def test_arrays_that_were_exchanged_in_a_state_are_checked_again(model):
    step, tokens = FusedStep(model), np.ones((2, 1), np.int64)
    shape = (2, 2, model.config.conv_kernel, model.config.intermediate_size)
    recurrent = np.zeros((2, 2, model.config.state_size, shape[3]), np.float32)
    logits = np.zeros((2, model.config.vocab_size), np.float32)
    state = FusedState(np.zeros(shape, np.float32), recurrent, logits, np.zeros(2, np.int64))
    given = (tokens, np.ones((2, 1), np.bool_), np.ones(2, np.int64), np.ones(2, np.int64), NO_MEMORIES)
    step(*given, state)
    with pytest.raises(InputMismatchError, match="takes conv as contiguous float32"):
        step(*given, state._replace(conv=np.zeros((1, 1, 1, 1), np.float32)))


def test_tools_that_are_none_and_temperatures_that_are_no_numbers_are_refused(model, tokenizer, specs):
    prompts = tokenizer(["7+5="])["input_ids"]
    for tools in ("pointer_memory", specs[0]):
        with pytest.raises(UnknownToolError, match="tools is a list"):
            Session.start(model, prompts, tools=tools)
        with pytest.raises(UnknownToolError, match="tools is a list"):
            model.generate(torch.tensor(prompts), tools=tools)
    with pytest.raises(UnsupportedGenerationError, match="the temperature is a number"):
        Session.start(model, prompts, temperature=None)
    model.config.tool_token_ids = {**model.config.tool_token_ids, "<|read_1|>": -1}
    with pytest.raises(MissingToolTokensError, match="is none of the model's"):
        Session.start(model, prompts)


def test_a_prompt_with_a_command_in_it_is_refused(model, tokenizer):
    """The tokenizer reads it in whatever a user types."""
    for text in ("1+<|read_1|>2=", "1+<|answer|>2="):
        prompt = tokenizer([text], return_tensors="pt")
        with pytest.raises(InvalidProblemError, match=r"which only the model writes"):
            model.generate(**prompt)
        session = Session.start(model, tokenizer(["7+5="])["input_ids"])
        with pytest.raises(InvalidProblemError, match=r"which only the model writes"):
            session.append(prompt["input_ids"])


def test_another_default_device_changes_nothing(model, tokenizer):
    ids = tokenizer(["7+5="], return_tensors="pt")["input_ids"]
    expected, tokens = model(ids).logits, model.generate(ids, max_new_tokens=5)
    torch.set_default_device("meta")  # stands for a GPU
    try:
        found, again = model(ids).logits, Session.start(model, ids).run(5)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)
    assert again == tokens.shape[1] - ids.shape[1]


def test_a_mask_of_all_tokens_behind_a_state_is_refused_with_what_to_give(model):
    with pytest.raises(InputMismatchError, match=r"\(1, 3\) and the tokens are \(1, 1\).*attention_mask\[:, -1:\]"):
        model(torch.tensor([[3]]), attention_mask=torch.tensor([[1, 1, 0]]))
    state = model(torch.tensor([[3, 4]]), use_cache=True).cache_params
    mask = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(InputMismatchError, match="behind a state"):
        model(torch.tensor([[5]]), cache_params=state, attention_mask=mask)
    whole = model(torch.tensor([[3, 4, 5]])).logits[:, -1:]
    found = model(torch.tensor([[5]]), cache_params=state, attention_mask=mask[:, -1:]).logits
    assert (found - whole).abs().max() < 1e-4  # the refused call has left the state as it was


def test_a_mask_of_another_length_is_refused_by_every_recurrent_model(model):
    lstm = RnnForCausalLM(RnnConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1))
    for each in (model, lstm):
        with pytest.raises(InputMismatchError, match=r"\(2, 3\) and the tokens are \(2, 5\)"):
            each(torch.ones(2, 5, dtype=torch.int64), attention_mask=torch.tensor([[1, 1, 1], [0, 1, 1]]))
        with pytest.raises(InputMismatchError, match="other values than 1"):
            each(torch.ones(1, 2, dtype=torch.int64), attention_mask=torch.tensor([[0.0, -1e9]]))
        with pytest.raises(InputMismatchError, match="holds the id 99"):
            each(torch.tensor([[99]]))


def test_a_state_that_does_not_fit_is_refused_before_it_is_read(model):
    ids = torch.ones(2, 3, dtype=torch.int64)
    state = model(ids, use_cache=True).cache_params
    with pytest.raises(StateMismatchError, match="2 rows and there are 1 rows"):
        model(ids[:1], cache_params=state)
    tensors = {name: t[..., :-1] for name, t in state.to_tensors().items()}
    with pytest.raises(StateMismatchError, match="another model"):
        model(ids, cache_params=MambaState.from_tensors(model.config, tensors))
    with pytest.raises(StateMismatchError, match="DynamicCache: pass a MambaState"):
        model(ids, cache_params=RnnForCausalLM(RnnConfig(vocab_size=20, hidden_size=8)).state_class.__mro__[2]())


def test_a_forward_that_fails_leaves_the_state_as_it_was(model, monkeypatch):
    state = model(torch.tensor([[3, 4]]), use_cache=True).cache_params
    before = state.clone().to_tensors()
    last = model.backbone.layers[-1].mixer.out_proj
    monkeypatch.setattr(last, "weight", torch.nn.Parameter(torch.zeros(3, 3)))
    with pytest.raises(RuntimeError):
        model(torch.tensor([[5]]), cache_params=state)
    for name, value in state.to_tensors().items():
        assert torch.equal(value, before[name])


def recurrent_models(model):
    yield model
    yield RnnForCausalLM(RnnConfig(vocab_size=20, hidden_size=32, num_hidden_layers=1))
    small = {"num_attention_heads": 2, "intermediate_size": 16, "segment_length": 3, "num_memory_tokens": 2}
    yield RmtForCausalLM(RmtConfig(vocab_size=20, hidden_size=32, num_hidden_layers=1, **small))


def test_what_is_no_tensor_or_of_another_width_is_refused(model):
    ids = torch.ones(1, 2, dtype=torch.int64)
    for each in recurrent_models(model):
        with pytest.raises(InputMismatchError, match="input_ids is a list"):
            each([[1, 2]])
        with pytest.raises(InputMismatchError, match="mask is a list"):
            each(ids, attention_mask=[[1, 1]])
        is_rmt = isinstance(each, RmtForCausalLM)
        with pytest.raises(InputMismatchError, match="give input_ids" if is_rmt else r"\(rows, tokens, 32\)"):
            each(inputs_embeds=torch.zeros(1, 2, 5))
        if is_rmt:
            with pytest.raises(InputMismatchError, match="ask for no hidden states"):
                each(ids, output_hidden_states=True)
    with pytest.raises(InputMismatchError, match="input_ids is a list"):
        model.generate([[3, 4]])


def test_no_token_and_no_row_leave_a_state_as_it_was(model):
    for each in recurrent_models(model):
        state = each(torch.ones(2, 4, dtype=torch.int64), use_cache=True).cache_params
        before = state.clone().to_tensors()
        assert each(torch.ones(2, 0, dtype=torch.int64), cache_params=state).logits.shape[:2] == (2, 0)
        assert all(torch.equal(value, before[name]) for name, value in state.to_tensors().items())
        assert each(torch.ones(0, 3, dtype=torch.int64)).logits.shape[:2] == (0, 3)


class Chooses:
    def __init__(self, token):
        self.token = token

    def choose(self, rows, logits):
        return [self.token] * len(rows)

    def stop(self, rows):
        return [False] * len(rows)


@pytest.mark.parametrize("token", [10**6, -1])
def test_a_steering_that_chooses_no_token_of_the_model_is_refused(model, tokenizer, token):
    session = Session.start(model, tokenizer(["1+2="])["input_ids"])
    with pytest.raises(InputMismatchError, match="the sampler chose"):
        session.run(2, sampler=Chooses(token))


def test_a_pointer_that_was_put_outside_its_memory_is_refused(model, tokenizer):
    session = Session.start(model, tokenizer(["1+2="])["input_ids"])
    assert isinstance(session._compiled_loop, CompiledLoop)
    session.rows[0].tools[0].pointers = [10**9]
    with pytest.raises(InputMismatchError, match="outside its memory"):
        session.run(5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_nothing(model, tokenizer, dtype):
    ids = torch.randint(3, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 9, [0, 0] + [1] * 7])
    problem = tokenizer(["12+3="], return_tensors="pt")

    def everything():
        model.zero_grad()
        output = model(ids, attention_mask=mask, labels=ids, use_cache=True)
        output.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        written = model.generate(**problem, max_new_tokens=20)
        return [output.logits, written, *output.cache_params.to_tensors().values(), *gradients]

    expected = everything()
    torch.set_default_dtype(dtype)
    try:
        found = everything()
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_arrays_that_do_not_lie_as_a_kernel_reads_them_are_refused(model):
    from hf_toolssm.ops.streamed_step import StreamedStep

    config = model.config
    shape = (1, config.num_hidden_layers, config.conv_kernel, config.intermediate_size)
    recurrent = np.zeros((1, config.num_hidden_layers, config.state_size, config.intermediate_size), np.float32)
    with pytest.raises(InputMismatchError, match="conv as contiguous float32"):
        StreamedStep(model)(np.array([3]), np.zeros(shape[::-1], np.float32).T, recurrent)
