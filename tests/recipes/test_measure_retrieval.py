"""Questions asked both ways, the dual objective's targets, and the command that measures lazy retrieval."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from conftest import by_heart, import_recipe, random_model, run_script
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


@pytest.fixture(scope="module")
def knowing(recall):
    """A model that knows a session by heart, and so is right about that one, and that session."""
    _, tokenizer = recall
    problem = "3 pairs, 12 queries, tested; seed 1"
    renderer = Renderer(tokenizer)
    rows = [renderer.render(TASK.solve(problem, variant)) for variant in ("either", "store")]
    model = random_model(tokenizer, TASK.tools("either"), hidden_size=48, state_size=16)
    return by_heart(model, rows, 0.06), tokenizer, problem


def test_both_ways_are_what_sessions_write_that_begin_so(knowing, questions):
    model, tokenizer, known = knowing
    renderer, begin = Renderer(tokenizer), questions.ways(tokenizer)
    other = "3 pairs, 12 queries, tested; seed 2"
    asked = questions.ask_both_ways(model, tokenizer, [known, other], "asked")
    found = {name: [] for name in ("state_is_right", "tool_is_right", "hidden", "entropy", "margin", "largest")}
    for problem in (known, other):
        turns = list(TASK.session(problem))
        said = [renderer.problem(text) for _, text, _ in turns]
        session = Session.start(model, [said[0]], tools=TASK.make_tools("either"), tokenizer=tokenizer, record=True)
        session.run(questions.most_tokens(40))
        for text in said[1:3]:
            session.append([text])
            session.run(questions.most_tokens(40))
        for at in {turn.key: at for at, (turn, *_) in enumerate(turns) if at >= 3}.values():
            for name, way in (("state_is_right", begin.answers), ("tool_is_right", begin.asks)):
                fork = session.clone()
                fork.append([said[at]])
                fork.held_choices[0] = way
                fork.run(questions.most_tokens(40))
                found[name].append(fork.rows[0].complete and fork.answers[0] == turns[at][2])
            fork = session.clone()
            fork.append([said[at]])
            fork.held_choices[0] = begin.answers
            fork.run(len(said[at]) + 1)
            shares = fork.state.logits[0].double().softmax(-1)
            best = shares.sort(descending=True).values
            found["entropy"].append(float(-(shares * shares.log()).sum()))
            found["margin"].append(float(best[0] - best[1]))
            found["largest"].append(float(best[0]))
            ids = [*fork.recording.ids[0][:-1]]
            found["hidden"].append(model.backbone(torch.tensor([ids])).last_hidden_state[0, -1].detach().numpy())
    assert {True, False} == set(found["state_is_right"])
    assert asked.state_is_right.tolist() == found["state_is_right"]
    assert asked.tool_is_right.tolist() == found["tool_is_right"]
    for name in ("entropy", "margin", "largest", "hidden"):
        np.testing.assert_allclose(getattr(asked, name), np.array(found[name]), rtol=1e-3, atol=1e-4, err_msg=name)
    assert (asked.least <= asked.largest + 1e-9).all()
    assert ((asked.change > 0) & (asked.change < 2)).all()
    assert len(set(asked.change.round(6))) > 1


def test_distances_count_the_pairs_that_came_later(recall, questions):
    problems = questions.drawn_problems(True, 5, 2, 8, "a test of distances")
    asked = questions.ask_both_ways(*recall, problems, "asked")
    expected = []
    for problem in problems:
        keys = [turn.key for turn, *_ in TASK.session(problem)]
        expected += [(4 - keys.index(key), questions.key_number(key)) for key in dict.fromkeys(keys[5:])]
    assert list(zip(asked.distance.tolist(), asked.key.tolist())) == expected
    assert set(asked.load.tolist()) == {5}
    assert len(set(asked.session[: len(expected) // 2])) == 1


def table(questions, rng, count, related=True):
    """Questions of two loads; of the larger one the state knows less, and its hidden states say what. What the rules
    read is another's number each, which says something of it, too."""
    load = np.repeat([8, 64], count // 2)
    right = rng.random(count) < np.where(load == 8, 0.95, 0.5) if related else rng.random(count) < 0.5
    hidden = rng.normal(size=(count, 6)).astype(np.float32)
    hidden[:, 0] += 3 * right
    knows = {name: right + rng.normal(size=count) for name in ("margin", "largest", "least")}
    knows |= {"entropy": rng.random(count) + ~right, "change": 1 + ~right}
    distance, key = rng.integers(0, load), rng.integers(0, 26**3, count)
    session, tool = np.arange(count) // 10, np.ones(count, bool)
    return questions.Asked(session, load, distance, key, hidden, state_is_right=right, tool_is_right=tool, **knows)


def test_a_fitted_controller_finds_what_the_hidden_states_say(questions, rules, dual):
    rng = np.random.default_rng(0)
    train, test = table(questions, rng, 4_000), table(questions, rng, 2_000)
    controller = dual.fit_controller(train.hidden, train.state_is_right, 0)
    found = rules.scores(test, rules.learn(train, 0), {"controller": controller}, 0)
    worth = {name: rules.worth(test, score, 64) for name, score in found.items()}
    assert rules.hardest_load(test) == 64
    assert worth["controller"]["auroc"] > 0.97
    assert worth["controller"]["auroc_within"] > 0.95
    for name in ("entropy", "margin", "largest probability", "FLARE-like", "DRAGIN-like", "these five, fitted"):
        assert worth[name]["auroc"] > 0.7, name
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
    assert kept["without a promise"] == 0
    assert kept["broken"] <= 4  # of 20, each with a probability of at most a tenth
    assert kept["calls"] < 0.6
    assert kept["accuracy"] > 0.9


def test_what_is_fitted_is_fitted_on_other_sessions_than_are_tested(questions, rules):
    rng = np.random.default_rng(2)
    train, test = table(questions, rng, 2_000, related=False), table(questions, rng, 2_000)
    found = rules.scores(test, rules.learn(train, 0), {}, 0)
    assert abs(rules.worth(test, found["load and distance"], 64)["auroc"] - 0.5) < 0.3
    assert found["load and distance"].std() < 0.1


def test_a_promise_that_is_broken_is_counted_and_is_tested_on_the_other_half(questions, rules, monkeypatch):
    asked = table(questions, np.random.default_rng(3), 400)
    sessions = rules.sessions_of(asked, np.full(400, 0.5))
    halves = []
    promise = rules.calibrate(sessions[:1] * 400, [0.9], 0.99, 0.5)
    careless = dataclasses.replace(promise, threshold=0.1)
    monkeypatch.setattr(rules, "calibrate", lambda half, *_: halves.append(half) or careless)
    found = rules.promises(sessions, 0.1, 0.1, 7, 0)
    assert (found["broken"], found["calls"]) == (7, 0)
    assert {len(half) for half in halves} == {20}
    wrong = 1 - asked.state_is_right.mean()
    tested = [2 * wrong - np.mean([each.loss(0.1) for each in half]) for half in halves]
    assert found["accuracy"] == pytest.approx(1 - np.mean(tested))
    monkeypatch.setattr(rules, "calibrate", lambda *_: None)
    assert rules.promises(sessions, 0.1, 0.1, 7, 0)["without a promise"] == 7


def test_the_loads_that_are_answerable_are_the_smallest(questions, rules):
    asked = table(questions, np.random.default_rng(1), 2_000)
    assert rules.answerable_loads(asked, 0.95) == [8]
    assert rules.answerable_loads(asked, 0.7) == [8, 64]


def test_a_key_is_read_where_all_its_letters_are(dual):
    keys = np.array([0, 26**3 - 1, 27])
    letters = np.array([[0, 0, 0], [25, 25, 25], [1, 1, 0]])
    perfect = np.eye(26, dtype=np.float32)[letters].reshape(3, -1)
    assert dual.keys_read(torch.nn.Identity(), perfect, keys) == 1
    perfect[2, 26:52] = 0
    perfect[2, 26 + 5] = 1
    assert dual.keys_read(torch.nn.Identity(), perfect, keys) == pytest.approx(2 / 3)


@pytest.mark.slow
def test_the_command_measures_every_weight_and_does_nothing_twice(tmp_path):
    model, output = tmp_path / "model", tmp_path / "output"
    config = ["--config", "recipes/configs/short_recall_cpu.yaml", "--output_dir", model, "--num_examples", 40]
    config += ["--max_steps", 2, "--train_max_length", 2, "--eval_lengths", 4, "--eval_num_problems", 1]
    run_script("recipes/sft.py", *config, "--num_proc", 1)
    command = ["--models", model, "--output", output, "--weights", 0, 0.3, "--steps", 2, "--rows_per_load", 1]
    command += ["--sessions", 1, "--pool", 14, "--pairs", 3]
    printed = run_script(f"{FOLDER}/measure_retrieval.py", *command)
    assert (output / "calls.png").exists()
    results = (output / "results.md").read_text(encoding="utf-8")
    assert printed.endswith(results + "\n")
    runs = json.loads((output / "results.json").read_text(encoding="utf-8"))["runs"]
    assert [(run["seed"], run["lambda"]) for run in runs] == [(0, 0.0), (0, 0.3)]
    assert ["controller, trained with the model" in run["rules"] for run in runs] == [False, True]
    assert list(runs[0]["state and store"]) == ["4", "8", "16", "32", "64", "128", "256", "512", "1024"]
    assert runs[0]["answerable"]["loads"] == runs[1]["answerable"]["loads"]
    assert set(runs[0]["conversations"]) >= {"always", "never", "at a third of the calls"}
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*.npz")}
    assert run_script(f"{FOLDER}/measure_retrieval.py", *command) == results + "\n"
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.npz")} == written
    (folder,) = output.glob("seed-0-*")
    AutoTokenizer.from_pretrained(folder / "lambda-0.3")
    (folder / "lambda-0.3" / "measured.json").unlink()  # as if it had been interrupted there
    run_script(f"{FOLDER}/measure_retrieval.py", *command)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.npz")} == written
    run_script(f"{FOLDER}/measure_retrieval.py", *command[:-2], "--pairs", 4, "--weights", 0)
    assert len(list(output.glob("seed-0-*"))) == 2  # other options, another folder
    with pytest.raises(SystemExit, match="is no model of short_recall"):
        run_script(f"{FOLDER}/measure_retrieval.py", "--models", folder / "adapted", "--output", output)
    with pytest.raises(SystemExit, match="one seed"):
        run_script(f"{FOLDER}/measure_retrieval.py", "--models", model, f"{model}/", "--output", output)
