"""What this package hands out is a value: pickled, saved by torch or copied, it is the same, and on its own."""

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from small_models import RECURRENT, lively, small_model, written
from transformers import GenerationConfig

from dataset_builders.catalog import load_task
from hf_toolssm import ToolMambaForCausalLM
from hf_toolssm.cache.cache_tensors import cache_tensors
from hf_toolssm.errors import SnapshotError, TokenizerNeededError
from hf_toolssm.evaluation import evaluate_free_running
from hf_toolssm.generation.interface import ToolGenerateOutput
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.generation.session import Session
from hf_toolssm.models.plain_tool_mamba import PlainToolMambaForCausalLM
from hf_toolssm.protocol.locality import Locality
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.tools import available_tools, facts_of, make_tool
from hf_toolssm.tools.pointer_memory import NEW_POINTER, read, right

PROBLEMS = ["12+34=", "9+1="]


def by_pickle(value):
    return pickle.loads(pickle.dumps(value))


def by_torch(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = [by_pickle, by_torch, copy.deepcopy]


@pytest.fixture
def output(model, tokenizer):
    inputs = tokenizer(PROBLEMS, padding=True, return_tensors="pt")
    options = {"max_new_tokens": 30, "return_dict_in_generate": True, "tokenizer": tokenizer}
    return lively(model, tokenizer).generate(**inputs, **options)


def assert_same_output(found, expected):
    assert type(found) is ToolGenerateOutput
    assert found.keys() == expected.keys()
    for name in ("sequences", "writers"):
        assert torch.equal(found[name], expected[name])
    for name in ("lengths", "answer_ids", "tool_calls", "complete", "errors"):
        assert found[name] == getattr(found, name) == expected[name]
    assert found.answers == expected.answers == dataclasses.replace(found).answers


@pytest.mark.parametrize("way", [*WAYS, copy.copy])
def test_an_output_is_a_value(output, way):
    found = way(output)
    assert_same_output(found, output)
    assert_same_output(way(found), output)


@pytest.mark.parametrize("way", [by_pickle, by_torch])
def test_a_pickled_output_says_where_its_session_went(output, way):
    with pytest.raises(SnapshotError, match=r"session.save\(path\)"):
        way(output).session.run(3)


def test_a_copied_output_has_a_session_of_its_own(output):
    copied = copy.deepcopy(output)
    expected = written(output.session.clone(), 10)
    assert written(copied.session, 10) == expected
    assert written(output.session, 10) == expected


@pytest.mark.parametrize("model_class", [ToolMambaForCausalLM, PlainToolMambaForCausalLM])
def test_a_pickled_output_finds_the_tokenizer_beside_the_checkpoint(model, tokenizer, tmp_path, model_class):
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    inputs = tokenizer(PROBLEMS, padding=True, return_tensors="pt")
    result = by_pickle(loaded.generate(**inputs, max_new_tokens=5, return_dict_in_generate=True))
    with pytest.raises(TokenizerNeededError):
        _ = result.answers
    tokenizer.save_pretrained(tmp_path)
    assert by_pickle(result).answers == ["", ""]


def test_a_copied_output_of_the_published_code_shares_its_model_and_nothing_else(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    plain = PlainToolMambaForCausalLM.from_pretrained(tmp_path)
    inputs = tokenizer(PROBLEMS, padding=True, return_tensors="pt")
    result = plain.generate(**inputs, max_new_tokens=5, return_dict_in_generate=True, tokenizer=tokenizer)
    copied = copy.deepcopy(result)
    assert_same_output(copied, result)
    assert copied.session._model is plain
    assert copied.session.rows[0] is not result.session.rows[0]


def test_an_output_that_someone_made_has_no_tokenizer():
    with pytest.raises(TokenizerNeededError):
        _ = ToolGenerateOutput(answer_ids=[[3]]).answers


@pytest.fixture
def session(model, tokenizer):
    session = Session.start(lively(model, tokenizer), tokenizer(PROBLEMS)["input_ids"], tokenizer=tokenizer)
    for row in session.rows:
        row.tools[0].call(NEW_POINTER, ())
    session.run(20)
    return session


@pytest.mark.parametrize("way", [by_pickle, by_torch])
def test_a_session_is_saved_and_not_pickled(session, way):
    with pytest.raises(SnapshotError, match=r"session.save\(path\)"):
        way({"mine": session})


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, Session.clone])
def test_a_copy_of_a_session_goes_on_by_itself(session, way):
    state, rows = session.state, [list(row.tools[0].memory) for row in session.rows]
    copied = way(session)
    expected = written(copied, 20)
    assert torch.equal(session.state.logits, state.logits)
    assert [list(row.tools[0].memory) for row in session.rows] == rows
    assert written(session, 20) == expected
    assert copied.runner.model is session.runner.model


@pytest.mark.parametrize("way", [by_pickle, by_torch, copy.deepcopy])
@pytest.mark.parametrize("name", ["tool_mamba", *RECURRENT, "jamba", "mistral"])
def test_states_are_values(tokenizer, specs, name, way):
    runner = ModelRunner(small_model(name, tokenizer, specs))
    state, _ = runner.feed(None, tokenizer(PROBLEMS)["input_ids"])
    found, before = way(state), state.clone()
    assert type(found.cache) is type(state.cache)
    assert found.lengths == state.lengths
    runner.step(found, [3, 4])
    assert cache_tensors(state.cache).keys() == cache_tensors(before.cache).keys()
    assert all(torch.equal(cache_tensors(before.cache)[at], it) for at, it in cache_tensors(state.cache).items())
    runner.step(state, [3, 4])
    assert torch.equal(found.logits, state.logits)
    assert all(torch.equal(cache_tensors(found.cache)[at], it) for at, it in cache_tensors(state.cache).items())


@pytest.mark.parametrize("way", [by_pickle, by_torch, copy.deepcopy])
def test_a_state_with_a_history_is_copied_as_well(model, way):
    state = model(torch.tensor([[3, 4, 5]]), use_cache=True).cache_params
    assert all(torch.equal(a, b) for a, b in zip(way(state).read(1), state.read(1)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", [name for name in available_tools() if facts_of(make_tool({"name": name})).unit == "cells"]
)
def test_a_tool_at_work_goes_on_as_before(name, way):
    facts = facts_of(make_tool({"name": name}))
    texts = [*facts.markers, "a", "b"]
    at_work = facts.start([texts.index(text) for text in ("a", "b", "a")], texts.index)
    for call in [name for name in (NEW_POINTER, read(1), right(1)) if name in facts.calls]:
        at_work.call(call, ())
    facts.copy(at_work, texts.index)  # which may share what it remembers
    copied = way(at_work)
    for one in (copied, at_work):
        if facts.unit == "cells":
            one.write(texts.index("b"))
    assert str(facts.state(copied)) == str(facts.state(at_work))
    assert str(facts.state(facts.copy(way(copied), texts.index))) == str(facts.state(at_work))
    assert facts_of(way(facts.tool)).calls == facts.calls


@pytest.mark.parametrize("way", WAYS)
def test_what_can_be_compared_is_equal(addition, model, tokenizer, specs, way):
    trajectory = addition.solve("12+34=", "local")
    measured = evaluate_free_running(model, tokenizer, "length_2", 2, [trajectory])
    baselines = [small_model(name, tokenizer, specs).config for name in ("lstm", "rmt")]
    for value in (
        *(trajectory, trajectory.steps[0], trajectory.steps[0].kind, measured, measured.first_error, model.config),
        *(*baselines, GenerationConfig(), SnapshotError("why").args, Locality(2, ("a", "b"), ("c", "d"))),
    ):
        assert way(value) == value


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_compared_does_the_same(addition, tokenizer, way):
    trajectory = addition.solve("12+34=", "local")
    assert way(Renderer(tokenizer)).render(trajectory) == Renderer(tokenizer).render(trajectory)
    assert way(load_task("addition")).solve("12+34=", "local") == trajectory


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["tool_mamba", *RECURRENT])
def test_a_model_that_has_generated_is_a_value(tokenizer, specs, name, way):
    model = small_model(name, tokenizer, specs)
    expected = written(Session.start(model, tokenizer(PROBLEMS)["input_ids"], tokenizer=tokenizer, tools=specs), 20)
    found = way(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # of which nothing is shared
    again = Session.start(found, tokenizer(PROBLEMS)["input_ids"], tokenizer=tokenizer, tools=specs)
    assert written(again, 20) == expected
