"""What a certificate says holds of the kernels, and a certificate is refused where it has to be."""

import copy

import numpy as np
import pytest
import torch
from conftest import random_model
from peft import LoraConfig, get_peft_model

from dataset_builders.catalog import load_task
from dataset_builders.task import example_rng
from hf_toolssm.errors import CertificationError
from hf_toolssm.evaluation.certification.attack import attack
from hf_toolssm.evaluation.certification.certificate import outward, prove
from hf_toolssm.evaluation.certification.graph import build_graph
from hf_toolssm.evaluation.certification.intervals import Box, decay, silu, softplus
from hf_toolssm.ops.cpu_kernels import called, exp2_of_nonpositive, sigmoid
from hf_toolssm.ops.cpu_kernels import softplus as kernel_softplus
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.rule import END
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer

SHAPE = {"hidden_size": 16, "state_size": 4, "time_step_min": 0.5, "time_step_max": 4.0}
J = 7


@pytest.fixture(scope="module")
def task():
    return load_task("palindrome")


@pytest.fixture(scope="module")
def tokenizer(task):
    return build_task_tokenizer(task.cells("tape"), task.make_tools("tape"))


@pytest.fixture(scope="module", params=[0, 1])
def model(request, task, tokenizer):
    return random_model(tokenizer, task.tools("tape"), request.param, **SHAPE)


@pytest.fixture(scope="module")
def proof(model, task, tokenizer):
    return prove(model, tokenizer, task.rule("tape"), J)


def states_and_logits(model, ids):
    """After every token of a run: the states of all layers (layers, n, d) and the logits, by feeding one at a time."""
    cache, found = None, []
    for token in ids:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([[token]]), cache_params=cache, use_cache=True)
        cache = output.cache_params
        states = [cache.read(layer)[1][0].T.numpy().copy() for layer in range(len(cache.layers))]
        found.append((states, output.logits[0, -1].numpy()))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_states_and_margins_of_real_runs_lie_within_the_bounds(model, proof, task, tokenizer, seed):
    problem = task.sample_test(example_rng("certified", seed), 9)
    ids = Renderer(tokenizer).written(task.solve(problem, "tape"))[0]
    numbers = {tuple(t[t >= 0]): at for at, t in enumerate(proof.tokens)}
    for end, (states, logits) in enumerate(states_and_logits(model, ids[:-1]), 1):
        at = numbers[tuple(ids[max(0, end - J) : end])]
        for layer, state in enumerate(states):
            assert (proof.boxes[layer].low[at] <= state).all()
            assert (state <= proof.boxes[layer].high[at]).all()
        if proof.right[at] >= 0:
            right = proof.right[at]
            assert proof.margins[at] <= logits[right] - np.delete(logits, right).max() <= proof.at_most[at]


def test_of_a_model_that_learned_nothing_some_contexts_are_known_to_be_wrong(proof):
    """That real runs are wrong there the test above says."""
    asked = proof.right >= 0
    assert np.isfinite(proof.at_most[asked]).all()
    assert np.isinf(proof.at_most[~asked]).all()
    assert (proof.at_most[asked] < 0).any()
    lowest = [low for _, low, _ in proof.failing]
    assert lowest == sorted(proof.margins[~(proof.margins > 0)])


@called
def _exponentials(values, out):
    for i in range(values.shape[0]):
        out[i] = exp2_of_nonpositive(values[i])


@called
def _silus(values, out):
    for i in range(values.shape[0]):
        out[i] = values[i] * sigmoid(values[i])


@called
def _softpluses(values, out):
    for i in range(values.shape[0]):
        out[i] = kernel_softplus(values[i])


def of_kernel(kernel, values):
    out = np.empty_like(values)
    kernel(values, out)
    return out.astype(np.float64)


@pytest.mark.parametrize("scale", [0.01, 1, 30, 300])
def test_boxes_of_functions_hold_what_the_kernels_compute(scale):
    rng = np.random.default_rng(0)
    values = rng.normal(size=200_000).astype(np.float32) * np.float32(scale)
    box = Box(values.astype(np.float64), values.astype(np.float64))
    for bound, kernel in ((silu, _silus), (softplus, _softpluses)):
        found, held = of_kernel(kernel, values), bound(box)
        assert (held.low <= found).all()
        assert (found <= held.high).all()
    powers = -np.abs(values)
    held = decay(Box(powers * np.log(2.0), powers * np.log(2.0)))
    found = of_kernel(_exponentials, powers)
    assert (held.low <= found).all()
    assert (found <= held.high).all()


def test_a_silu_between_two_equal_ends_goes_through_its_minimum():
    held = silu(Box(np.array([-3.0]), np.array([0.0])))
    assert held.low[0] <= -0.2784645
    assert held.high[0] >= 0


def test_rounding_to_float32_goes_outward():
    rng = np.random.default_rng(1)
    low = rng.normal(size=1000)
    box = outward(Box(low, low + 1e-9))
    assert (box.low <= low).all()
    assert (box.high >= low + 1e-9).all()
    assert box.low.dtype == np.float32


def test_contexts_that_do_not_determine_the_next_token_are_named(task):
    with pytest.raises(CertificationError, match="do not determine"):
        build_graph(task.rule("tape"), 4)


def test_the_end_is_the_tokenizers_own(proof, tokenizer):
    ends = [at for at, node in enumerate(proof.graph.nodes) if node.right == END]
    assert ends
    assert {proof.right[at] for at in ends} == {tokenizer.eos_token_id}


@pytest.mark.parametrize("j", [0, -1])
def test_a_context_of_no_token_is_named(task, j):
    with pytest.raises(CertificationError, match="at least one token"):
        build_graph(task.rule("tape"), j)


def test_a_model_with_an_adapter_is_refused(model, task, tokenizer):
    adapted = copy.deepcopy(model)
    get_peft_model(adapted, LoraConfig(target_modules=["in_proj"]))
    with pytest.raises(CertificationError, match="adapters"):
        prove(adapted, tokenizer, task.rule("tape"), J)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_and_not_called_slow(model, task, tokenizer, value):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.backbone.layers[1].mixer.D[0] = value
    named = r"layers\.1\.mixer\.D holds NaN or infinity"
    with pytest.raises(CertificationError, match=named):
        prove(broken, tokenizer, task.rule("tape"), J)
    with pytest.raises(CertificationError, match=named):
        attack(broken, tokenizer, task.rule("tape"), 100)


def test_a_tokenizer_of_another_task_is_named(model, task):
    other = load_task("addition")
    foreign = build_task_tokenizer(other.cells("local"), other.make_tools("local"))
    with pytest.raises(CertificationError, match="does not know"):
        prove(model, foreign, task.rule("tape"), J)
    with pytest.raises(CertificationError, match="does not know"):
        attack(model, foreign, task.rule("tape"), 100)


def test_another_model_is_refused(task, tokenizer, model):
    with pytest.raises(CertificationError, match="float32"):
        prove(model.to(torch.bfloat16), tokenizer, task.rule("tape"), J)
    with pytest.raises(CertificationError, match="float32"):
        attack(model, tokenizer, task.rule("tape"), 100)
    model.to(torch.float32)
