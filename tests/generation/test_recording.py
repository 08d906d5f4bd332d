"""A recording has what a session took and nothing else, in memory and in a file, whatever happens in between."""

import json

import numpy as np
import pytest
import torch
from conftest import random_model
from small_models import NotCompiled

from hf_toolssm.errors import CorruptRowError, RecordingError, SessionTornError, UnsupportedGenerationError
from hf_toolssm.generation.recording import read_recording
from hf_toolssm.generation.session import Session
from hf_toolssm.generation.tool_loop import generate_with_tools
from hf_toolssm.protocol.parse import parse
from hf_toolssm.protocol.render import Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import ANSWER, Step, StepKind, Trajectory, Writer, canonical, step
from hf_toolssm.tools.pointer_memory import PointerMemory

SPECS = [{"name": "pointer_memory", "max_pointers": 2}]


def wandering(record=True, temperature=0.7, tools=None, **options):
    tokenizer = build_task_tokenizer("0123456789+=", [PointerMemory(2)])
    model = random_model(tokenizer, SPECS, seed=5)
    prompts = tokenizer(["12+7=", "5="])["input_ids"]
    options = {"tokenizer": tokenizer, "temperature": temperature, "seed": 3, "tools": tools, **options}
    return Session.start(model, prompts, record=record, **options)


def loaded(path, session, **options):
    return Session.load(path, session.runner.model, tokenizer=session.tokenizer, **options)


def test_a_recording_goes_with_the_session_that_is_forked_saved_and_gone_on_with(tmp_path):
    session = wandering()
    session.run(10)
    fork = session.select([1, 1])
    session.run(10)
    fork.run(5)
    assert [len(ids) for ids in fork.recording.ids] == [row.length for row in fork.rows]
    assert fork.recording.ids[0][:10] == session.recording.ids[1][:10]
    session.save(tmp_path / "session")
    again = loaded(tmp_path / "session", session)
    assert again.trajectories == session.trajectories
    session.run(9)
    again.run(9)
    assert again.recording.ids == session.recording.ids
    assert again.trajectories == session.trajectories


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_file_has_what_a_recording_in_memory_has_also_after_a_process_died(tmp_path, temperature):
    path = tmp_path / "recording.jsonl"
    kept, filed = wandering(temperature=temperature), wandering(path, temperature)
    for session in (kept, filed):
        session.run(15, log_probs=True)
    filed.save(tmp_path / "session")
    filed.run(40)  # is lost with the process, which dies in a line
    path.write_bytes(path.read_bytes()[:-9])
    filed = loaded(tmp_path / "session", filed, record=path)
    assert read_recording(path).ids == kept.recording.ids
    for session in (kept, filed):
        session.run(7)
        session.append([[5, 6], []])
        session.run(7)
    found = read_recording(path)
    assert found.ids == kept.recording.ids
    assert found.writers == kept.recording.writers
    assert repr(found.log_probs) == repr(kept.recording.log_probs)
    assert found.writers[0].count(Writer.USER) == 5 + 2
    with pytest.raises(RecordingError, match="the path of a new file"):
        wandering(path)
    with pytest.raises(RecordingError, match="record=True"):
        filed.trajectories  # noqa: B018


def test_what_was_kept_in_memory_begins_a_new_file_and_a_file_that_lacks_something_is_refused(tmp_path):
    session = wandering()
    session.run(8, log_probs=True)
    session.save(tmp_path / "session")
    filed = loaded(tmp_path / "session", session, record=tmp_path / "new.jsonl")
    filed.run(5)
    session.run(5)
    assert read_recording(tmp_path / "new.jsonl").ids == session.recording.ids
    filed.recording = None
    filed.run(5)  # which nobody hears
    filed.save(tmp_path / "later")
    with pytest.raises(RecordingError, match="give the file of its own"):
        loaded(tmp_path / "later", session, record=tmp_path / "new.jsonl")
    with pytest.raises(RecordingError, match="is no recording"):
        loaded(tmp_path / "later", session, record=tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("record", ["", 1, b"x", np.True_, 3.5, [], None])
def test_only_a_path_or_a_word_is_what_to_record_to(record):
    with pytest.raises(RecordingError, match="True, False or the path"):
        wandering(record)


def test_a_folder_that_is_gone_is_named_and_another_working_directory_is_none_of_its_business(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    session = wandering("recording.jsonl")
    monkeypatch.chdir(tmp_path)
    session.run(4)
    found = read_recording(tmp_path / "here" / "recording.jsonl")
    assert [len(ids) for ids in found.ids] == [row.length for row in session.rows]
    (tmp_path / "here" / "recording.jsonl").unlink()
    (tmp_path / "here").rmdir()
    with pytest.raises(RecordingError, match="ends here"):
        session.run(4)
    with pytest.raises(RecordingError, match="in a folder that exists"):
        wandering(tmp_path / "here" / "recording.jsonl")


def test_a_disk_that_was_full_for_a_while_loses_nothing(tmp_path):
    """In the middle of a line: what follows would otherwise be glued to it, and no line of the file be read again."""
    resource = pytest.importorskip("resource")  # of Unix
    path = tmp_path / "recording.jsonl"
    session, kept = wandering(path), wandering()
    for each in (session, kept):
        each.run(4)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
        try:
            with pytest.raises(RecordingError, match="make room"):
                session.run(3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    session.run(5)
    kept.run(session.rows[1].length - kept.rows[1].length)
    assert read_recording(path).ids[1] == kept.recording.ids[1]
    assert [len(ids) for ids in read_recording(path).ids] == [row.length for row in session.rows]


GOOD = {"row": 0, "position": 0, "tokens": [3], "writers": [1]}


@pytest.mark.parametrize(
    "line",
    [
        *({**GOOD, **bad} for bad in ({"row": -1}, {"position": -1}, {"position": 5}, {"tokens": [2**70]})),
        *({**GOOD, **bad} for bad in ({"tokens": [-1]}, {"tokens": [3, 3]}, {"writers": [9]}, {"writers": [300]})),
        *({**GOOD, **bad} for bad in ({"log_probs": [0.0, 0.0]}, {"log_probs": 3}, {"tokens": "a"}, {"row": None})),
        *({name: value for name, value in GOOD.items() if name != missing} for missing in GOOD),
    ],
)
def test_what_no_session_writes_is_refused_by_name(tmp_path, line):
    (tmp_path / "file").write_text(json.dumps(GOOD) + "\n" + json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(RecordingError, match="is no recording of a session"):
        read_recording(tmp_path / "file")


def test_what_is_no_recording_at_all_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("nothing\n", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "nowhere", tmp_path):
        with pytest.raises(RecordingError, match="is no recording of a session"):
            read_recording(path)


@pytest.mark.parametrize("tools", [None, [NotCompiled(max_pointers=2)]])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_session_that_was_interrupted_in_a_step_says_that_it_is_none_any_more(tools, temperature, monkeypatch):
    session = wandering(tools=tools, temperature=temperature)
    before = session.clone()

    def interrupt(*_):
        raise KeyboardInterrupt

    decoder = session._batch.decoder
    for name in ("step", "check", "write"):
        monkeypatch.setattr(decoder, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.run(30)
    for act in (session.run, session.clone, lambda: session.state, lambda: session.append([[3], [4]])):
        with pytest.raises(SessionTornError, match="go on from a clone"):
            act()
    monkeypatch.undo()
    before.run(30)


def test_a_sampler_that_raises_leaves_every_row_in_order():
    session, expected = wandering(), wandering()

    class Fails:
        def choose(self, rows, logits):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        session.run(5, sampler=Fails())
    session.run(20)
    expected.run(20)
    assert session.recording.ids == expected.recording.ids


def test_a_turn_that_was_cut_is_rendered_without_an_end():
    """Or a model would be trained on an end that it never wrote."""
    session = wandering()
    renderer = Renderer(session.tokenizer)
    for _ in range(3):
        session.run(6)
        session.append([[5, 6], [7]])
    session.run(2)
    for row, trajectory in enumerate(session.trajectories):
        assert trajectory.cut
        ids, writers = renderer.written(trajectory)
        assert (ids, writers) == (session.recording.ids[row].tolist(), session.recording.writers[row])
        labels = renderer.render(trajectory)["labels"]
        assert [label != -100 for label in labels] == [by == Writer.MODEL for by in writers]
    whole = Trajectory((step(StepKind.INPUT, ("1",)), step(StepKind.THOUGHT, (ANSWER,))), cut=(0,))
    assert Trajectory.from_row(whole.to_row()) == whole
    assert renderer.render(whole)["input_ids"][-1] != session.tokenizer.eos_token_id


def test_tensors_are_read_as_lists_are_and_what_does_not_fit_is_refused():
    session = wandering()
    session.run(20)
    ids, writers = session.recording.ids[0], session.recording.writers[0]
    tools = [PointerMemory(2)]
    expected = session.trajectories[0]
    for kind in (np.array, torch.tensor):
        assert parse(kind(list(ids)), kind(list(writers)), session.tokenizer, tools) == expected
    for bad in ((ids[:-1], writers), (ids, [9] * len(ids)), ([-1], [0])):
        with pytest.raises(CorruptRowError, match="cannot be read"):
            parse(*bad, session.tokenizer, tools)


@pytest.mark.parametrize(
    ("text", "content", "name"),
    [("<|read_1|>", ("1",), ""), ("12", ("1",), ""), ("1", "2", ""), ("<|read_1|><|end|>22", None, "read_1")],
)
def test_tokens_that_are_not_their_text_are_refused(text, content, name):
    session = wandering()
    tokens = tuple(session.tokenizer(text)["input_ids"])
    kind = StepKind.CALL if name else StepKind.THOUGHT
    for ids in (tokens, (-1,)):
        with pytest.raises(CorruptRowError, match="are not its text"):
            Renderer(session.tokenizer).step(Step(kind, content, name, ids))


def test_spans_that_share_the_bytes_of_a_character_are_joined_as_text(byte_tokenizer):
    first, second = (Step(StepKind.THOUGHT, text, ids=(3,)) for text in ("a", "b"))
    (joined,) = canonical([first, second])
    assert (joined.content, joined.ids) == ("ab", None)
    assert Renderer(byte_tokenizer).step(joined) == Renderer(byte_tokenizer).step(step(StepKind.THOUGHT, "ab"))


def test_log_probabilities_that_nobody_would_see_are_refused():
    session = wandering()
    with pytest.raises(UnsupportedGenerationError, match="return_dict_in_generate=True"):
        generate_with_tools(session.runner.model, torch.tensor([[5, 6]]), log_probs=True, max_new_tokens=3)


def test_a_prompt_of_numpys_numbers_is_one_of_pythons(tmp_path):
    session = wandering(tmp_path / "recording.jsonl")
    session.append([list(np.array([5, 6])), []])
    session.run(6)
    assert [len(ids) for ids in read_recording(tmp_path / "recording.jsonl").ids] == [
        row.length for row in session.rows
    ]
