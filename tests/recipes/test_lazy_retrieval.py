"""Questions asked both ways, the dual objective's targets, and the command that measures lazy retrieval."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import import_recipe, random_model, run_script
from transformers import AutoTokenizer

from dataset_builders.catalog import load_task
from hf_toolssm import Session
from hf_toolssm.protocol.render import IGNORED, Renderer
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.protocol.trajectory import StepKind
from hf_toolssm.tools import make_tool

FOLDER = "recipes/lazy_retrieval"
TASK = load_task("short_recall")


@pytest.fixture(scope="module")
def dual():
    return import_recipe("dual_objective", FOLDER)


@pytest.fixture(scope="module")
def questions():
    return import_recipe("questions", FOLDER)


@pytest.fixture(scope="module")
def rules():
    return import_recipe("rules", FOLDER)


@pytest.fixture(scope="module")
def recall():
    """A random model of the task, and its tokenizer."""
    specs = TASK.tools("either")
    tokenizer = build_task_tokenizer(TASK.cells("either"), [make_tool(spec) for spec in specs])
    return random_model(tokenizer, specs), tokenizer


def solved_rows(tokenizer, count=10):
    rng, renderer = random.Random(3), Renderer(tokenizer)
    for _ in range(count):
        solved = TASK.solve(TASK.problem(rng, 4, 6), "either")
        yield renderer, solved, renderer.render(solved)["input_ids"]


def test_targets_say_of_every_question_its_key_and_of_those_answered_out_of_the_state_whether_it_was_right(
    recall, dual
):
    for renderer, solved, ids in solved_rows(recall[1]):
        perfect = [*ids[1:], ids[-1]]  # writes what the row has
        targets = dual._targets(renderer, solved, perfect)
        asked = [turn for turn in solved.turns() if turn[0].text.endswith("?")]
        direct = [turn for turn in asked if turn[1].kind is StepKind.THOUGHT]
        assert [each for each in targets["knows"] if each != IGNORED] == [1] * len(direct)
        places = [at for at, key in enumerate(targets["key"]) if key != IGNORED]
        assert len(places) == len(asked)
        for at, turn in zip(places, asked):
            assert recall[1].decode(ids[at - 3 : at + 1]).replace(" ", "") == turn[0].text
            code = targets["key"][at]
            assert (
                "".join("abcdefghijklmnopqrstuvwxyz"[code // 26**place % 26] for place in range(3)) == turn[0].text[:3]
            )


def test_an_answer_is_wrong_where_its_value_or_what_follows_is_another(recall, dual):
    for renderer, solved, ids in solved_rows(recall[1]):
        for behind in (1, 2):
            choices = [*ids[1:], ids[-1]]
            known = dual._targets(renderer, solved, choices)["knows"]
            for at in [at for at, each in enumerate(known) if each != IGNORED]:
                choices[at + behind] ^= 1
            assert {each for each in dual._targets(renderer, solved, choices)["knows"] if each != IGNORED} <= {0}


def test_the_loss_of_a_key_is_that_of_its_letters(dual):
    generator = torch.Generator().manual_seed(0)
    predictions, letters = torch.randn(5, 78, generator=generator), torch.randint(26, (5, 3), generator=generator)
    code = (letters * 26 ** torch.arange(3)).sum(1)
    expected = -predictions.view(5, 3, 26).log_softmax(-1).gather(2, letters[..., None]).sum((1, 2))
    torch.testing.assert_close(dual.key_loss(predictions, code), expected)


def test_what_the_state_alone_answers_is_what_a_session_writes_that_begins_so(recall, questions):
    model, tokenizer = recall
    renderer, begin = Renderer(tokenizer), questions.ways(tokenizer)
    problems = questions.drawn_problems(True, 3, 4, 5, "a test")
    asked = questions.ask_both_ways(model, tokenizer, problems, "asked")
    assert asked.session.tolist() == [number for number in range(4) for _ in range(5)]
    found = []
    for problem in problems:
        turns = list(TASK.session(problem))
        said = [renderer.problem(text) for _, text, _ in turns]
        session = Session.start(model, [said[0]], tools=TASK.make_tools("either"), tokenizer=tokenizer)
        for at in range(3):
            if at:
                session.append([said[at]])
            session.run(questions.most_tokens(40))
        for at in range(3, 8):
            fork = session.clone()
            fork.append([said[at]])
            fork.held_choices[0] = begin.answers
            written = len(fork.answers[0])
            fork.run(len(said[at]) + 2)
            found.append(fork.answers[0][written:][:1] == turns[at][2] and fork.tokens > 0)
    wrong = ~np.array(found)
    assert not asked.state_is_right[wrong].any()  # where the value is another, the answer is


def test_distances_count_the_pairs_that_came_later(recall, questions):
    problems = questions.drawn_problems(True, 5, 2, 8, "a test of distances")
    asked = questions.ask_both_ways(*recall, problems, "asked")
    expected = []
    for problem in problems:
        keys = [turn.key for turn, *_ in TASK.session(problem)]
        expected += [4 - keys.index(key) for key in keys[5:]]
    assert asked.distance.tolist() == expected
    assert asked.load.tolist() == [5] * 16


def table(questions, rng, count):
    """Questions of two loads; of the larger one the state knows less, and its hidden states say what."""
    load = np.repeat([8, 64], count // 2)
    right = rng.random(count) < np.where(load == 8, 0.95, 0.5)
    hidden = rng.normal(size=(count, 6)).astype(np.float32)
    hidden[:, 0] += 3 * right
    of = dict.fromkeys(("entropy", "margin", "largest", "least", "change"), rng.random(count))
    session = np.arange(count) // 10
    tool = np.ones(count, bool)
    distance = rng.integers(0, load)
    return questions.Asked(session, load, distance, hidden, state_is_right=right, tool_is_right=tool, **of)


def test_a_fitted_controller_finds_what_the_hidden_states_say(questions, rules, dual):
    rng = np.random.default_rng(0)
    train, test = table(questions, rng, 4_000), table(questions, rng, 2_000)
    controller = dual.fit(train.hidden, train.state_is_right, 0)
    found = rules.scores(test, train, {"controller": controller}, 0)
    worth = {name: rules.worth(test, score) for name, score in found.items()}
    assert rules.hardest_load(test) == 64
    assert worth["controller"]["auroc"] > 0.97
    assert worth["controller"]["auroc_within"] > 0.95
    assert 0.6 < worth["load and distance"]["auroc"] < 0.9
    assert abs(worth["load and distance"]["auroc_within"] - 0.5) < 0.1
    assert abs(worth["random"]["auroc"] - 0.5) < 0.05
    half = rules.at_rate(test, found["controller"], 0.35)
    assert half["calls"] == pytest.approx(0.35)
    assert half["accuracy"] > 0.97 > rules.at_rate(test, found["random"], 0.35)["accuracy"]
    assert rules.at_rate(test, found["controller"], 1)["accuracy"] == 1
    sessions = rules.sessions_of(test, found["controller"])
    assert [len(each.scores) for each in sessions] == [10] * 200
    kept = rules.promises(sessions, 0.1, 0.1, 20, 0)
    assert kept["broken"] + kept["without a promise"] == 0
    assert kept["calls"] < 0.6
    assert kept["accuracy"] > 0.9


def test_the_loads_that_are_answerable_are_the_smallest(questions, rules):
    asked = table(questions, np.random.default_rng(1), 2_000)
    assert set(rules.answerable(asked, 0.95).load) == {8}
    assert set(rules.answerable(asked, 0.7).load) == {8, 64}


@pytest.mark.slow
def test_the_command_measures_every_weight_and_does_nothing_twice(tmp_path):
    model, output = tmp_path / "model", tmp_path / "output"
    config = ["--config", "recipes/configs/short_recall_cpu.yaml", "--output_dir", model, "--num_examples", 40]
    config += [
        "--max_steps",
        2,
        "--train_max_length",
        2,
        "--eval_lengths",
        2,
        "--eval_num_problems",
        1,
        "--num_proc",
        1,
    ]
    run_script("recipes/sft.py", *config)
    command = ["--models", model, "--output", output, "--weights", 0, 0.3, "--steps", 2, "--rows_per_load", 1]
    command += ["--sessions", 1, "--pool", 8, "--pairs", 3]
    printed = run_script(f"{FOLDER}/measure_retrieval.py", *command)
    assert (output / "calls.png").exists()
    assert printed.strip() == (output / "results.md").read_text(encoding="utf-8").strip()
    runs = json.loads((output / "results.json").read_text(encoding="utf-8"))["runs"]
    assert [(run["seed"], run["lambda"]) for run in runs] == [(0, 0.0), (0, 0.3)]
    assert ["controller, trained with the model" in run["rules"] for run in runs] == [False, True]
    assert list(runs[0]["state and store"]) == ["4", "8", "16", "32", "64", "128", "256", "512", "1024"]
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*.npz")}
    assert run_script(f"{FOLDER}/measure_retrieval.py", *command) == printed
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.npz")} == written
    AutoTokenizer.from_pretrained(output / "seed-0-lambda-0.3")
    with pytest.raises(SystemExit, match="is no model of short_recall"):
        run_script(f"{FOLDER}/measure_retrieval.py", "--models", output / "seed-0-lambda-0", "--output", output)
