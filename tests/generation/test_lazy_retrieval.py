"""A controller decides before an answer whether the state is trusted, or the store asked."""

import pytest
import torch
from conftest import random_model
from small_models import ARCHITECTURES, small_model
from torch import nn

from dataset_builders.catalog import load_task
from hf_toolssm import Session
from hf_toolssm.errors import InputMismatchError, StateMismatchError, UnforkableToolError, UnsupportedGenerationError
from hf_toolssm.generation.lazy_retrieval import LazyRetrieval
from hf_toolssm.generation.model_runner import ModelRunner
from hf_toolssm.generation.recording import Recording
from hf_toolssm.protocol.calls import begin_token
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import ANSWER, Writer
from hf_toolssm.tools import make_tool
from hf_toolssm.tools.pointer_store import PointerStore

TASK = load_task("short_recall")
SPECS = TASK.tools("either")
SAID = ["abcX", "xyzQ", "kkkB"]
ASKED = ["abc?", "xyz?", "kk?"]


@pytest.fixture(scope="module")
def recall_tokenizer():
    return build_task_tokenizer(TASK.cells("either"), [make_tool(spec) for spec in SPECS])


@pytest.fixture(scope="module")
def ways(recall_tokenizer):
    return recall_tokenizer.convert_tokens_to_ids([ANSWER, begin_token("seek_key")])


class Remembers(nn.Module):
    """Logits that are a number of its own for each row."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, hidden):
        self.hidden = hidden
        return self.logits.view(-1, 1, 1)


def asked_session(model, tokenizer):
    """Three rows that were told something, and are asked something that they have not read yet."""
    renderer = Renderer(tokenizer)
    session = Session.start(model, [renderer.problem(text) for text in SAID], tools=SPECS, tokenizer=tokenizer)
    session.run(6)
    session.append([renderer.problem(text) for text in ASKED])
    return session


def begun(session, rows):
    """The tokens that rows write first behind what they read."""
    heard = Recording(rows)
    session.run(12, sink=heard)
    by_row = (zip(ids, writers) for ids, writers in zip(heard.ids, heard.writers))
    return [next(token for token, writer in row if writer == Writer.MODEL) for row in by_row]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_hidden_states_are_those_that_the_models_head_reads(name, recall_tokenizer):
    model = small_model(name, recall_tokenizer, SPECS)
    runner, renderer = ModelRunner(model), Renderer(recall_tokenizer)
    said = [renderer.problem(text) for text in SAID]
    asked = [renderer.problem(text) for text in ASKED]
    before, _ = runner.feed(None, said)
    hidden = runner.hidden(before, asked)
    after, _ = runner.feed(before, asked)
    logits = model.get_output_embeddings()(hidden.to(model.dtype)).float()
    scale = getattr(model.config, "lm_head_multiplier", 1)
    torch.testing.assert_close(logits * scale, after.logits, rtol=1e-4, atol=1e-4)
    assert before.lengths == [len(ids) for ids in said]


def test_each_row_begins_as_its_probability_says(recall_tokenizer, ways):
    session = asked_session(random_model(recall_tokenizer, SPECS), recall_tokenizer)
    controller = Remembers(3.0, -3.0, 0.0)
    probabilities = LazyRetrieval(controller, 0.5, *ways).decide(session)
    assert probabilities == pytest.approx({0: 0.9526, 1: 0.0474, 2: 0.5}, abs=1e-4)
    assert controller.hidden.shape == (3, 1, 32)
    assert begun(session, 3) == [ways[0], ways[1], ways[0]]


@pytest.mark.parametrize(("threshold", "way"), [(0, 0), (1.5, 1), (float("inf"), 1)])
def test_a_threshold_may_never_ask_or_always(recall_tokenizer, ways, threshold, way):
    session = asked_session(random_model(recall_tokenizer, SPECS), recall_tokenizer)
    LazyRetrieval(Remembers(-50.0, 0.0, 50.0), threshold, *ways).decide(session)
    assert set(session.held_choices.values()) == {ways[way]}


def test_only_the_rows_that_are_named_are_decided_and_a_fork_keeps_it(recall_tokenizer, ways):
    session = asked_session(random_model(recall_tokenizer, SPECS), recall_tokenizer)
    assert list(LazyRetrieval(Remembers(9.0), 0.5, *ways).decide(session, [1])) == [1]
    assert session.held_choices == {1: ways[0]}
    assert session.select([1, 0, 1]).held_choices == {0: ways[0], 2: ways[0]}


def test_a_session_whose_tools_are_not_to_be_copied_is_decided_as_any_other(recall_tokenizer, ways):
    class Kept(PointerStore):
        fork = "never"

    renderer = Renderer(recall_tokenizer)
    model = random_model(recall_tokenizer, SPECS)
    session = Session.start(model, [renderer.problem(SAID[0])], tools=[Kept()], tokenizer=recall_tokenizer)
    session.run(6)
    session.append([renderer.problem(ASKED[0])])
    assert LazyRetrieval(Remembers(9.0), 0.5, *ways).decide(session)[0] > 0.5
    with pytest.raises(UnforkableToolError):
        session.clone()


def test_deciding_moves_nothing_of_the_session(recall_tokenizer, ways):
    model = random_model(recall_tokenizer, SPECS)
    session, other = (asked_session(model, recall_tokenizer) for _ in range(2))
    for _ in range(2):
        LazyRetrieval(Remembers(1.0, 1.0, 1.0), 0.5, *ways).decide(session)
    other.held_choices.update(dict.fromkeys(range(3), ways[0]))
    one, two = Recording(3), Recording(3)
    session.run(20, sink=one)
    other.run(20, sink=two)
    assert one.ids == two.ids
    assert session.tokens == other.tokens


def test_a_retrieval_that_was_decided_still_stops_before_its_call(recall_tokenizer, ways):
    session = asked_session(random_model(recall_tokenizer, SPECS), recall_tokenizer)
    LazyRetrieval(Remembers(1.0, 1.0, 1.0), 2, *ways).decide(session)
    calls = [row.tool_calls for row in session.rows]
    session.run(stop_before_call=True)
    assert [row.tool_calls for row in session.rows] == calls
    assert session.held_choices == dict.fromkeys(range(3), ways[1])
    assert session.held_choices.stopped == {0, 1, 2}
    session.run(1, stop_before_call=True)
    assert [row.tool_calls for row in session.rows] == [count + 1 for count in calls]


def test_a_decision_is_saved(recall_tokenizer, ways, tmp_path):
    model = random_model(recall_tokenizer, SPECS)
    session = asked_session(model, recall_tokenizer)
    LazyRetrieval(Remembers(3.0, -3.0, 0.0), 0.5, *ways).decide(session)
    session.save(tmp_path / "session")
    loaded = Session.load(tmp_path / "session", model, tokenizer=recall_tokenizer)
    assert (loaded.held_choices, loaded.held_choices.stopped) == (session.held_choices, set())
    heard = Recording(3), Recording(3)
    for each, sink in zip((session, loaded), heard):
        each.run(12, sink=sink)
    assert heard[0].ids == heard[1].ids


def test_what_cannot_be_decided_is_refused(recall_tokenizer, ways):
    session = asked_session(random_model(recall_tokenizer, SPECS), recall_tokenizer)
    for answers, asks in ((ways[0], ways[0]), (None, ways[1]), (ways[0], "ask")):
        with pytest.raises(UnsupportedGenerationError, match="two different tokens"):
            LazyRetrieval(Remembers(1.0), 0.5, answers, asks)
    for rows in ([7], [-1], []):
        with pytest.raises(StateMismatchError, match="select takes some of the rows"):
            LazyRetrieval(Remembers(1.0), 0.5, *ways).decide(session, rows)
    with pytest.raises(InputMismatchError, match=r"does not run on hidden states \(3, 1, 32\)"):
        LazyRetrieval(nn.Linear(5, 1), 0.5, *ways).decide(session)
    for threshold in (-0.1, float("nan"), "high", None):
        with pytest.raises(UnsupportedGenerationError, match="a threshold is a number of at least 0"):
            LazyRetrieval(Remembers(1.0), threshold, *ways)
    with pytest.raises(InputMismatchError, match="one finite number each"):
        LazyRetrieval(Remembers(1.0, 2.0), 0.5, *ways).decide(session)
    with pytest.raises(InputMismatchError, match="one finite number each"):
        LazyRetrieval(Remembers(1.0, float("nan"), 2.0), 0.5, *ways).decide(session)
    with pytest.raises(InputMismatchError, match="tokens"):
        LazyRetrieval(Remembers(1.0, 2.0, 3.0), 0.5, ways[0], len(recall_tokenizer)).decide(session)
    session.run(12)
    while not any(row.pending for row in session.rows):  # an observation is not what somebody asked
        session.run(1)
    with pytest.raises(StateMismatchError, match="append a question"):
        LazyRetrieval(Remembers(1.0, 2.0, 3.0), 0.5, *ways).decide(session)
    assert not session.held_choices
