"""Accuracy counts what is exact, names the first wrong token, and cannot be fooled by a wrong model."""

import json
from dataclasses import replace

import pytest
from conftest import written
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.catalog import load_task
from dataset_builders.problem_sets import ReferenceTrajectories, evaluation_sets
from hf_toolssm.errors import UnsupportedArchitectureError
from hf_toolssm.evaluation import evaluate_checked, evaluate_free_running, evaluate_teacher_forced, free_running
from hf_toolssm.evaluation.exactness import (
    FirstError,
    LengthResult,
    RowOutcome,
    exactness,
    first_difference,
    summarize,
)
from hf_toolssm.evaluation.metric import Exactness
from hf_toolssm.evaluation.report import table, write_report
from hf_toolssm.models.architectures import make_model
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools.pointer_memory import PointerMemory


@given(one=st.lists(st.integers(0, 3)), other=st.lists(st.integers(0, 3)))
def test_the_first_difference_is_the_first(one, other):
    at = first_difference(one, other)
    assert (at is None) == (one == other)
    if at is not None:
        assert one[:at] == other[:at]
        assert one[at : at + 1] != other[at : at + 1]


def test_a_model_that_would_forget_at_every_piece_is_not_teacher_forced(tokenizer):
    attention = make_model("gpt_neox", len(tokenizer), width=16, depth=1, state_size=4, mamba={})
    (problems,) = evaluation_sets(load_task("addition"), "local", [2], [], 1)
    with pytest.raises(UnsupportedArchitectureError, match="free-running"):
        evaluate_teacher_forced(attention, tokenizer, "x", 2, ReferenceTrajectories(problems))


def test_a_missing_end_is_a_difference():
    assert first_difference([1, 2], [1]) == first_difference([1], [1, 2]) == 1


def test_exactness_counts_and_gives_its_denominator():
    assert exactness(["12", "5", "7"], ["12", "6", "7"]) == {"exactness": pytest.approx(2 / 3), "num_problems": 3}
    with pytest.raises(ValueError, match="as many predictions"):
        exactness(["1"], [])


def test_the_metric_is_the_function():
    predictions, references = ["12", "5", "7"], ["12", "6", "7"]
    found = Exactness().compute(predictions=predictions, references=references)
    assert found == exactness(predictions, references)


def test_a_summary_shows_the_earliest_error():
    def error(problem, position):
        return FirstError(problem, position, "1", "2", ())

    rows = [
        RowOutcome("1", [True], True, True, None, 5),
        RowOutcome("2", [True], True, False, error(1, 9), 5),
        RowOutcome("2", [True, False], False, False, error(2, 4), 5),
    ]
    result = summarize("length_5", 5, "free-running", rows, 1.0)
    assert result.first_error.problem == 2
    assert (result.answer_accuracy, result.trajectory_accuracy) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (result.num_problems, result.distinct_problems, result.tokens) == (3, 2, 15)
    assert (result.num_answers, result.right_answers) == (4, 3)


@pytest.mark.parametrize("evaluate", [evaluate_free_running, evaluate_teacher_forced])
def test_a_model_that_knows_the_problems_scores_one(memorised, tokenizer, evaluate):
    model, references = memorised
    result = evaluate(model, tokenizer, "length_1", 1, references)
    assert (result.answer_accuracy, result.trajectory_accuracy, result.first_error) == (1.0, 1.0, None)
    assert result.tokens == sum(len(written(reference)) + 1 for reference in references)
    assert result.mode == {evaluate_free_running: "free-running", evaluate_teacher_forced: "teacher-forced"}[evaluate]


@pytest.mark.parametrize("evaluate", [evaluate_free_running, evaluate_teacher_forced])
def test_a_wrong_reference_is_found_out_at_its_token(memorised, tokenizer, addition, evaluate):
    """The model is right and the reference is of another problem: the first wrong token is where they part."""
    model, references = memorised
    problem = "".join(references[1].problem)
    last = str((int(problem[-2]) + 1) % 10)
    other = addition.solve(problem[:-2] + last + "=", "local")
    swapped = Trajectory((references[1].steps[0], *other.steps[1:]))
    result = evaluate(model, tokenizer, "length_1", 1, [references[0], swapped])
    assert result.trajectory_accuracy == 0.5
    if evaluate is evaluate_free_running:  # with teacher forcing the outputs are copied from the reference's thoughts
        assert result.answer_accuracy == 0.5
    assert result.first_error.problem == 1
    assert result.first_error.expected != result.first_error.found


def test_an_answer_that_was_cut_before_its_end_does_not_count(memorised, tokenizer, monkeypatch):
    """All outputs are there and right, but the model was stopped one token before it said that it was done."""
    model, references = memorised
    tokens = len(written(references[0])) + 1
    monkeypatch.setattr(free_running, "most_tokens", lambda expected: tokens - 1)
    result = evaluate_free_running(model, tokenizer, "length_1", 1, references[:1])
    assert result.tokens == tokens - 1
    assert (result.answer_accuracy, result.trajectory_accuracy) == (0.0, 0.0)
    assert (result.first_error.expected, result.first_error.found) == ("<|end|>", None)


def test_results_do_not_depend_on_batch_or_piece(memorised, tokenizer):
    model, references = memorised
    references = [
        *references,
        *ReferenceTrajectories(evaluation_sets(load_task("addition"), "local", [2], [], 3)[0]),
    ]
    free = [evaluate_free_running(model, tokenizer, "x", 2, references, batch_size=size) for size in (1, 2, 5)]
    forced = [evaluate_teacher_forced(model, tokenizer, "x", 2, references, piece=piece) for piece in (1, 7, 1_000)]
    for results in (free, forced):
        assert len({(r.answer_accuracy, r.trajectory_accuracy, r.first_error, r.tokens) for r in results}) == 1


def test_an_untrained_model_scores_zero_and_ends(model, tokenizer):
    references = ReferenceTrajectories(evaluation_sets(load_task("addition"), "local", [3], [], 4)[0])
    result = evaluate_free_running(model, tokenizer, "length_3", 3, references)
    assert (result.answer_accuracy, result.trajectory_accuracy, result.num_problems) == (0.0, 0.0, 4)
    assert result.first_error is not None


@pytest.mark.parametrize("evaluate", [evaluate_free_running, evaluate_teacher_forced])
def test_nothing_to_measure_is_an_error(model, tokenizer, evaluate):
    with pytest.raises(ValueError, match="no problem"):
        evaluate(model, tokenizer, "length_3", 3, [])


def result(length, accuracy, name="length"):
    error = None if accuracy == 1 else FirstError(0, 17, "1", "2", ("7", "8"))
    return LengthResult(
        f"{name}_{length}", length, "free-running", 8, 8, 8, round(8 * accuracy), accuracy, accuracy, error, 1_000, 0.5
    )


def test_the_report_has_the_figures_the_picture_and_the_machine(tmp_path):
    about = {"task": "addition", "unit": "digits", "train_max_length": 5}
    plain, adversarial = [result(5, 1.0), result(100, 0.5)], [result(100, 0.25, "all_carries")]
    write_report(tmp_path, plain, adversarial, about)
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [(r["length"], r["num_problems"], r["answer_accuracy"]) for r in content["by_length"]] == [
        (5, 8, 1.0),
        (100, 8, 0.5),
    ]
    assert content["by_length"][1]["first_error"]["position"] == 17
    assert content["adversarial"][0]["trajectory_accuracy"] == 0.25
    assert content["hardware"]["cores"] >= 1
    assert content["task"] == "addition"
    assert (tmp_path / "length_generalization.png").read_bytes().startswith(b"\x89PNG")
    text = table([*plain, *adversarial])
    assert "token 17: 2 for 1 after 7 8" in text
    assert "free-running" in text


def test_calls_that_took_too_long_are_counted_and_said_because_figures_may_be_too_low(model, tokenizer):
    class Slow(PointerMemory):
        late_calls = 0

        def start(self, problem, marker):
            self.late_calls += 1
            return super().start(problem, marker)

    tool = Slow()
    problems = ["1+1=", "2+2=", "3+3="]
    for _ in range(2):  # those of an earlier set are not this one's
        found = evaluate_checked(model, tokenizer, "length_1", 1, problems, lambda *_: True, [tool], 3, 2)
        assert found.late_calls == 3
    assert "3 calls took too long" in table([found])
    assert "took too long" not in table([replace(found, late_calls=0)])
    assert LengthResult.from_dict(found.to_dict()) == found
