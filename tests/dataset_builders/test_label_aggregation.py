"""Questions about many labelled texts: what is right, where texts come from, and what a trajectory looks at."""

import inspect
import json
import random
import re
from collections import Counter

import pytest
from conftest import ASKED, import_recipe, run_script
from datasets import ClassLabel, Dataset, Features, Value

from dataset_builders.algorithms.labelled_texts import VARIABLE, labelled_texts
from dataset_builders.tasks.label_aggregation import (
    QUESTIONS,
    LabelAggregation,
    given_labels,
    score,
    single_problem,
)
from hf_toolssm.errors import InvalidProblemError, LabelledTextsError
from hf_toolssm.protocol.locality import locality
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.trajectory import StepKind

TASK = LabelAggregation()


def problems(count=200, length=None):
    rng = random.Random(0)
    if length is None:
        return [TASK.sample_training(rng, 5) for _ in range(count)]
    return [TASK.sample_test(rng, length) for _ in range(count)]


def asked_by_reading(text):
    """The right answer, found from what the user wrote alone and our questions' own words."""
    *lines, asked = text.split("\n")
    label_of = {question.split("{}")[0]: label for label, question in zip(labelled_texts().labels, ASKED.values())}
    counts = Counter()
    for header, shown in zip(lines[::2], lines[1::2]):
        day, user = header.split(", user ")
        words = asked.removesuffix(".").replace("?", "").split()
        if "user" in words and words[words.index("user") + 1] != user:
            continue
        if "before" in words and not day < words[words.index("before") + 1]:
            continue
        begins = [label for begin, label in label_of.items() if shown.startswith(begin)]
        counts[shown if shown in labelled_texts().labels else begins[-1]] += 1
    start = int(asked.removesuffix(".").rpartition(" ")[2])
    if asked.startswith("Which"):
        return max(counts, key=counts.get)
    return str(start + counts[asked.partition(" are ")[2].partition("?")[0]])


def test_answers_are_those_that_one_finds_by_reading():
    kinds = Counter()
    for problem in [*problems(100), *problems(10, 60)]:
        question = TASK.question(problem)
        kinds[question.kind] += 1
        for variant in TASK.variants:
            assert (
                TASK.solve(problem, variant).answer
                == TASK.answer(problem, variant)
                == asked_by_reading(question.text())
            )
    assert kinds.keys() == set(QUESTIONS)


def test_every_example_that_is_meant_is_fetched_and_labelled_once_and_no_other():
    for problem in problems(20, 12):
        question, trajectory = TASK.question(problem), TASK.solve(problem, "retrieval")
        meant = [each for each in question.examples if question.is_meant(each)]
        assert given_labels(trajectory) == [each.label for each in meant]
        shown = [step.text for step in trajectory.steps if step.kind is StepKind.OBSERVATION]
        assert [text for text in shown if text in {f"line: {each.text}" for each in question.examples}] == [
            f"line: {each.text}" for each in meant
        ]


def test_a_trajectory_stays_local_however_many_examples_there_are():
    rows = [TASK.solve(problem, "retrieval") for problem in [*problems(60), *problems(3, 40)]]
    found = locality(rows)
    assert found.k < 250


def test_the_worked_example_is_what_its_problem_gives():
    text = inspect.getmodule(LabelAggregation).__doc__
    said = [line.strip().removeprefix("user").strip() for line in text.splitlines()]
    trajectory = TASK.solve(re.search(r"Worked example, `(.*?)`", text)[1], "retrieval")
    wanted = [step for step in trajectory.steps if "label" not in (step.content or "") or step.name != "put"]
    lines = trajectory.steps[0].text.split("\n")
    assert said[said.index(lines[0]) :][: len(lines)] == lines
    for step in wanted[1:]:
        shown = {StepKind.CALL: f"call    {step.name} {step.text}".strip(), StepKind.OUTPUT: f"answer  {step.text}"}
        assert step.kind is StepKind.THOUGHT or shown.get(step.kind, step.text.strip()) in said


def test_a_single_pass_calls_nothing():
    trajectory = TASK.solve(problems(1, 5)[0], "single_pass")
    assert not [step for step in trajectory.steps if step.kind is StepKind.CALL]


def test_texts_of_tests_are_never_trained_on():
    def said(drawn):
        return {each.text for problem in drawn for each in TASK.question(problem).examples} - {
            *labelled_texts().labels
        }

    trained, tested = said(problems(150)), said(problems(10, 20))
    assert trained
    assert tested
    assert not trained & tested


def test_gold_shows_labels_and_the_most_frequent_one_is_never_tied():
    rng = random.Random(1)
    for index in range(60):
        question = TASK.question(TASK.sample_adversarial("gold", rng, 9, index))
        assert all(each.text == each.label for each in question.examples)
        if question.label is None:
            best = [count for _, count in question.counts().most_common(2)]
            assert len(best) == 1 or best[0] > best[1]


def test_what_a_model_counts_is_read_as_the_store_reads_it():
    pen = Recorder("x", *TASK.make_tools("retrieval"))
    for argument in ('{"amount": 1, "key": "label say \\"x\\" \\u00e9"}', '{"key":"other","amount":1}', "{", "[]"):
        pen.call("add", argument)
    pen.begin_answer()
    pen.output("1")
    assert given_labels(pen.trajectory()) == ['say "x" é', "", "", ""]


def test_every_tested_text_can_be_asked_for_alone():
    for index, (text, label) in enumerate(labelled_texts().tested):
        problem = single_problem(index)
        assert TASK.question(problem).examples[0][2:] == (text, label)
        assert TASK.answer(problem, "retrieval") == label
    with pytest.raises(InvalidProblemError, match="tested texts"):
        TASK.question(single_problem(len(labelled_texts().tested)))


@pytest.mark.parametrize(
    ("right", "answer", "expected"),
    [
        ("7", "7", 1),
        ("7", "9", 0.5625),
        ("7", "", 0),
        ("7", None, 0),
        ("7", "x", 0),
        ("human", "human", 1),
        ("human", "7", 0),
    ],
)
def test_scores_are_oolongs(right, answer, expected):
    assert score(right, answer, is_count=right == "7") == expected


def test_a_label_that_is_a_number_is_a_label():
    assert score("2", "1", is_count=False) == 0
    assert score("2", "2", is_count=False) == 1


@pytest.mark.parametrize("problem", ["", "5 examples", "0 examples; seed 1", "5 examples, silver; seed 1"])
def test_what_is_no_problem_is_refused(problem):
    with pytest.raises(InvalidProblemError, match="5 examples; seed 7"):
        TASK.length(problem)


def test_texts_that_are_not_named_or_cannot_be_read_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(LabelledTextsError, match=f"set {VARIABLE}"):
        TASK.solve("5 examples; seed 7", "retrieval")
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("HUM:ind Who ?\nLOC Where ?\n", encoding="latin-1")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(LabelledTextsError, match="line 2: write"):
        labelled_texts()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(LabelledTextsError, match="no dataset opens"):
        labelled_texts()


def save(folder, columns, train, test, labels=("the sea", "air")):
    types = {"label": ClassLabel(names=list(labels)), "topic": ClassLabel(names=list(labels)), "id": Value("int32")}
    features = Features({name: types.get(name, Value("large_string")) for name in columns})
    for split, rows in (("train", train), ("test", test)):
        content = dict(zip(columns, map(list, zip(*rows))))
        Dataset.from_dict(content, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_a_dataset_with_class_labels_is_as_good(tmp_path, monkeypatch):
    train = [
        (1, "fish\nswim", 0),
        (2, "birds", 1),
        (3, "both", 0),
        (4, "unlabelled", -1),
        (5, "so", None),
        (6, None, 1),
    ]
    save(tmp_path, ("id", "title", "topic"), train, [(7, "whales", 0), (8, "both", 1)])
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    texts = labelled_texts()
    assert texts.labels == ["air", "the sea"]
    assert texts.train == {"the sea": ["fish swim"], "air": ["birds"]}  # "both" is tested
    assert [*texts.tested] == [("whales", "the sea"), ("both", "air")]
    assert TASK.solve("5 examples; seed 7", "retrieval").answer == TASK.answer("5 examples; seed 7", "retrieval")


@pytest.mark.parametrize(
    ("columns", "row", "labels", "said"),
    [
        (("title", "body", "label"), ("a", "b", 0), ("x", "y"), "'title', 'body'"),
        (("body", "id"), ("a", 1), ("x", "y"), "for the labels"),
        (("text", "label"), ("a", -1), ("x", "y"), "has 0 labelled texts in the tests"),
        (("text", "label"), ("a", 0), ("", "y"), "a name of its own"),
        (("text", "label"), ("a", 0), ("a b", "a  b"), "a name of its own"),
    ],
)
def test_a_dataset_that_leaves_a_question_open_is_refused(columns, row, labels, said, tmp_path, monkeypatch):
    save(tmp_path, columns, [row], [row], labels)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(LabelledTextsError, match=said):
        labelled_texts()


def test_of_several_columns_those_with_the_usual_names_are_taken(tmp_path, monkeypatch):
    rows = [("1", "one", 0, 1), ("2", "two", 1, 0)]
    save(tmp_path, ("name", "text", "topic", "label"), rows, [("3", "three", 0, 1)])
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert labelled_texts().train == {"air": ["one"], "the sea": ["two"]}


@pytest.mark.slow
def test_a_model_is_scored_by_length_and_on_every_text_alone_and_a_finished_set_is_not_run_again(tmp_path):
    model = tmp_path / "model"
    options = {
        "task": "label_aggregation",
        "train_max_length": 2,
        "num_examples": 8,
        "max_steps": 1,
        "use_cpu": "true",
    }
    options |= {"hidden_size": 16, "eval_lengths": 1, "eval_num_problems": 1, "output_dir": model}
    run_script("recipes/sft.py", *(word for name, value in options.items() for word in (f"--{name}", value)))
    command = ["recipes/aggregation.py", "--model", model, "--lengths", 2, "--num_problems", 3]
    printed = run_script(*command)
    saved = model / "aggregation.json"
    found = json.loads(saved.read_text(encoding="utf-8"))["runs"][0]["sets"]
    assert [*found] == ["length_2 x 3", "gold_2 x 3", "each alone"]
    assert found["each alone"]["exact"][1] == found["each alone"]["labels"][1] == len(labelled_texts().tested)
    assert all(0 <= each["score"] <= 1 for each in found.values())
    before = saved.stat().st_mtime_ns
    assert run_script(*command) == printed
    assert saved.stat().st_mtime_ns == before


def test_right_answers_and_labels_get_every_point_and_wrong_ones_what_they_deserve():
    recipe, drawn = import_recipe("aggregation"), problems(40, 6)

    def summary(change):
        return recipe.summary(
            TASK, "retrieval", [change(problem, TASK.solve(problem, "retrieval")) for problem in drawn]
        )

    asked = sum(len(given_labels(TASK.solve(problem, "retrieval"))) for problem in drawn)
    perfect = summary(lambda problem, row: (problem, row.answer, given_labels(row)))
    assert (perfect["score"], perfect["exact"], perfect["labels"]) == (1, [40, 40], [asked, asked])
    lost = summary(lambda problem, row: (problem, None, []))
    assert (lost["score"], lost["exact"], lost["labels"]) == (0, [0, 40], [0, asked])
    off = summary(lambda problem, row: (problem, str(int(row.answer) + 1) if row.answer.isdecimal() else "", ["x"]))
    counts = sum(number for kind, (_, number) in off["score_by_kind"].items() if kind.startswith("count"))
    assert off["score"] == pytest.approx(0.75 * counts / 40)
    assert off["labels"] == [0, asked]
