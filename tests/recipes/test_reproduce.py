"""An experiment of the paper is one command: it trains what is missing and shows median and worst beside the paper."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, in_sandbox, run_script
from transformers import HfArgumentParser

from hf_toolssm.training.sft_config import ToolSFTConfig

REPRODUCE = ROOT / "recipes" / "reproduce"
RUN = "recipes/reproduce/run.py"
SMALL = ["max_steps=2", "num_examples=64", "per_device_train_batch_size=8", "eval_num_problems=2", "num_proc=1"]


@pytest.fixture(scope="module")
def reproduce():
    """The recipe's modules, which import each other by name."""
    sys.path.insert(0, str(REPRODUCE))
    import experiment
    import summary

    yield experiment, summary
    sys.path.remove(str(REPRODUCE))


def result(seed, by_length, variant="local"):
    prefix = "" if variant == "local" else f"{variant}_"
    wrong = {"position": 40 + seed, "found": "7", "expected": "8", "context": ["<|read_1|>", "\n"]}
    measured = [
        {
            **{"problem_set": prefix + f"length_{n}", "length": n, "num_problems": 8},
            **{"answer_accuracy": a, "trajectory_accuracy": t, "first_error": None if a == t == 1 else wrong},
        }
        for n, (a, t) in by_length.items()
    ]
    hard = [{**measured[0], "problem_set": "nines_5", "answer_accuracy": 0.25}]
    machine = {"gpu": None, "cpu": "a chip", "cores": 2, "memory_gib": 24}
    facts = {"num_parameters": 1_000, "train_max_length": 5, "train_minutes": seed + 1.0, "resumed": False}
    facts |= {"learning_rate": 0.003, "train_loss": 0.5}
    facts |= {"variant": variant, "commit": f"{seed}" * 40 + "-dirty"}
    return {"seed": seed, "by_length": measured, "adversarial": hard, "hardware": machine, **facts}


def test_the_table_shows_median_and_worst_seed_beside_the_papers_figure(reproduce, tmp_path):
    experiment, summary = reproduce
    described = experiment.Experiment("e", "A title", "Table 0", {"ours": {}}, {"ours": "41% at 7"})
    runs = [result(0, {5: (1.0, 1.0)}), result(1, {5: (0.75, 0.5)}), result(2, {5: (1.0, 0.875)})]
    found = summary.summarize(described, {"ours": runs})
    table = summary.write_summary(found, tmp_path)
    assert "| length_5 | nines_5 | the paper |" in table
    assert "| ours | 1,000 | 2.0 | 5 | 0.88 / 0.50 | 0.25 / 0.25 | 41% at 7 |" in table
    assert "3 seeds, 8 problems a set; a chip, 2 cores" in table
    assert "; commit 0000000000-dirty, 1111111111-dirty, 2222222222-dirty." in table
    assert "- ours, length_5: token 41, `7` for `8` behind `<|read_1|> \\n`" in table
    assert (
        json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["rows"]["ours"]["accuracy"]["length_5"][
            "worst"
        ]
        == 0.5
    )
    assert (tmp_path / "accuracy.png").stat().st_size > 1_000


def with_rate(seed, rate, loss, by_length):
    return {**result(seed, by_length), "learning_rate": rate, "train_loss": loss}


TRIED = [
    with_rate(0, 0.001, 0.1, {4: (0.5, None), 5: (1.0, None), 9: (1.0, None)}),
    with_rate(0, 0.003, 0.3, {4: (1.0, None), 5: (0.75, None), 9: (0.0, None)}),
    with_rate(0, 0.01, 0.2, {4: (0.75, None), 5: (1.0, None), 9: (0.25, None)}),
]
"""The last two are equally good up to 5, training's longest; the last has the lower loss."""


def test_a_rate_is_chosen_up_to_trainings_lengths_and_the_figures_of_the_others_are_kept(reproduce, tmp_path):
    experiment, summary = reproduce
    described = experiment.Experiment("e", "A title", "Table 0", {"a/ours": {}, "b/ours": {}}, {})
    runs = [*TRIED, with_rate(1, 0.01, 0.4, {4: (0.5, None), 5: (1.0, None), 9: (0.0, None)})]
    one_rate = [result(0, {4: (1.0, None), 5: (1.0, None), 9: (1.0, None)})]
    found = summary.summarize(described, {"a/ours": runs, "b/ours": one_rate})
    row = found["rows"]["a/ours"]
    assert (row["learning_rate"], row["seeds"]) == (0.01, [0, 1])
    assert row["accuracy"]["length_4"]["seeds"] == [0.75, 0.5]
    assert [(each["learning_rate"], each["accuracy"]["length_9"]) for each in row["rejected"]] == [
        (0.001, 1.0),
        (0.003, 0.0),
    ]
    table = summary.write_summary(found, tmp_path)
    assert "Problems that pass the task's check, free-running" in table
    assert "| parameters | learning rate | minutes |" in table
    assert "| a/ours | 1,000 | 0.01 | 1.5 | 5 | 0.62 / 0.50 | 1.00 / 1.00 | 0.12 / 0.00 |" in table
    assert "| b/ours | 1,000 |  | 1.0 | 5 | 1.00 / 1.00 |" in table
    assert "rejected" not in found["rows"]["b/ours"]


def write_results(folder, run, content):
    (folder / run.name).mkdir(parents=True)
    (folder / run.name / "results.json").write_text(json.dumps(content), encoding="utf-8")


def test_the_other_seeds_are_run_at_the_best_rate_only(reproduce, tmp_path):
    experiment, _ = reproduce
    import run

    words = ["learning_rate=[0.001, 0.003, 0.01]"]
    first = experiment.load_experiment("regimes", False).runs([0], ["interactive", "no chain of thought"], words)
    assert [each.options["learning_rate"] for each in first] == [0.001, 0.003, 0.01] * 2
    names = []
    for each in run.needed(first, [1, 2], tmp_path):
        names.append(each.name)
        rates = [tried["learning_rate"] for tried in TRIED]
        write_results(tmp_path, each, TRIED[rates.index(each.options["learning_rate"])])
    assert names[:5] == [
        "interactive-0.001-0",
        "interactive-0.003-0",
        "interactive-0.01-0",
        "interactive-0.01-1",
        "interactive-0.01-2",
    ]
    assert len(names) == 10
    assert [each.name for each in run.needed(first, [1, 2], tmp_path)] == names


def test_a_model_that_was_trained_as_another_run_is_not_measured(reproduce, tmp_path):
    experiment, _ = reproduce
    import run

    (interactive,) = experiment.load_experiment("regimes", False).runs([0], ["interactive"], [])
    (tmp_path / interactive.name).mkdir()
    facts = {"variant": "local", "train_max_length": 5, "learning_rate": 0.003, "steps": 600, "seed": 1}
    (tmp_path / interactive.name / "training.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(SystemExit, match="was trained with seed 1, and not 0"):
        run.finish(interactive, tmp_path, "recipes/accelerate/cpu.yaml")
    assert not (tmp_path / interactive.name / "run.json").exists()


def test_variants_stand_in_the_same_columns_and_an_interrupted_run_does_not_count_its_minutes(reproduce, tmp_path):
    experiment, summary = reproduce
    described = experiment.Experiment("e", "A title", "Table 0", {"a": {}, "b": {}}, {})
    right = {5: (1.0, 1.0)}
    interrupted = {**result(5, right), "resumed": True, "train_minutes": 0.1}
    rows = {"a": [result(0, right), interrupted], "b": [result(2, {5: (0.0, 0.0)}, "calculator")]}
    table = summary.write_summary(summary.summarize(described, rows), tmp_path)
    assert "| trained up to | length_5 | nines_5 |" in table
    assert "| a | 1,000 | 1.0 | 5 | 1.00 / 1.00 |" in table
    assert "| b | 1,000 | 3.0 | 5 | 0.00 / 0.00 |" in table


def test_long_problems_run_once_and_no_further_than_the_first_wrong_one(reproduce, model, tokenizer, tmp_path):
    experiment, summary = reproduce
    import run

    model.save_pretrained(tmp_path / "row-0")
    tokenizer.save_pretrained(tmp_path / "row-0")
    (tmp_path / "row-0" / "results.json").write_text(json.dumps(result(0, {5: (1.0, 1.0)})), encoding="utf-8")
    long = experiment.Run("row", {"seed": 0}, {20: 50, 30: 50})
    run.run_long_problems(long, tmp_path)
    certificate = tmp_path / "row-0" / "long-20" / "certificate.json"
    written = certificate.stat().st_mtime_ns
    run.run_long_problems(long, tmp_path)
    assert certificate.stat().st_mtime_ns == written
    assert not (tmp_path / "row-0" / "long-30").exists()
    described = experiment.Experiment("e", "A title", "Table 0", {"row": {}}, {})
    table = summary.write_summary(summary.summarize(described, {"row": [run.results_of(long, tmp_path)]}), tmp_path)
    assert "Of length_20 one problem a seed, whose answer is compared." in table
    assert "| 1.00 / 1.00 | 0.00 / 0.00 |" in table


def test_every_experiment_names_options_that_the_recipe_has(reproduce, sft):
    experiment, _ = reproduce
    known = {field.name for kind in (sft.RecipeArguments, ToolSFTConfig) for field in dataclasses.fields(kind)}
    parser = HfArgumentParser((sft.RecipeArguments, ToolSFTConfig))
    for name in experiment.names():
        described = yaml.safe_load((experiment.FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        for paper_sized in (False, True) if "paper_sized" in described else (False,):
            for run in experiment.load_experiment(name, paper_sized).runs([0], None, []):
                assert (ROOT / run.options["config"]).exists(), run.name
                assert set(run.options) - {"config"} <= known, (name, run.name)
                words = run.arguments()
                at = words.index("--config")
                parser.parse_args([*words[:at], *words[at + 2 :], "--output_dir", "anywhere"])  # each is of its type


@pytest.mark.parametrize("word", ["seed=5", "output_dir=x", "max_steps"])
def test_what_cannot_be_overridden_is_named(reproduce, word):
    experiment, _ = reproduce
    with pytest.raises(SystemExit, match="name=value"):
        experiment.load_experiment("regimes", False).runs([0], None, [word])


def test_an_override_wins_and_a_seed_that_is_named_twice_runs_once(reproduce):
    experiment, _ = reproduce
    runs = experiment.load_experiment("regimes", False).runs([0, 0, 1], ["interactive"], ["eval_lengths=[2, 3]"])
    assert [run.options["seed"] for run in runs] == [0, 1]
    words = runs[0].arguments()
    assert words[words.index("--eval_lengths") :][:3] == ["--eval_lengths", "2", "3"]
    assert runs[0].options["eval_lengths"] == [2, 3]


def test_a_changed_configuration_is_another_run(reproduce, monkeypatch, tmp_path):
    experiment, _ = reproduce
    (run,) = experiment.load_experiment("regimes", False).runs([0], ["interactive"], [])
    before = run.identity()
    changed = tmp_path / run.options["config"]
    changed.parent.mkdir(parents=True)
    changed.write_text(
        (ROOT / run.options["config"]).read_text(encoding="utf-8").replace("max_steps: 600", "max_steps: 7"),
        encoding="utf-8",
    )
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    assert run.identity() != before


def test_a_grid_is_every_combination(reproduce):
    experiment, _ = reproduce
    content = yaml.safe_load((REPRODUCE / "experiments" / "steps_by_digits.yaml").read_text(encoding="utf-8"))["grid"]
    rows = experiment.load_experiment("steps_by_digits", False).rows
    assert len(rows) == len(content["train_max_length"]) * len(content["max_steps"])
    assert rows["train_max_length 10, max_steps 500"]["max_steps"] == 500


def test_an_experiment_runs_and_its_finished_runs_are_not_repeated(tmp_path):
    words = ["regimes", "--rows", "no chain of thought", "--seeds", "0", "--output", tmp_path, "--override", *SMALL]
    run_script(RUN, *words)
    folder = tmp_path / "regimes"
    (results,) = folder.glob("*/results.json")
    written = results.stat().st_mtime_ns
    assert "no chain of thought" in (folder / "table.md").read_text(encoding="utf-8")
    run_script(RUN, *words)
    assert results.stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="other options"):
        run_script(RUN, *words, "eval_lengths=[3, 4]")


@pytest.mark.slow
def test_rows_are_built_once_and_a_model_that_is_there_is_only_measured(tmp_path):
    words = ["regimes", "--rows", "no chain of thought", "--seeds", "0", "1", "--output", tmp_path]
    words += ["--override", *SMALL, "eval_lengths=[2]", "shared_dataset=true", "train_max_length=5"]
    words += ["learning_rate=[0.001, 0.01]"]
    run_script(RUN, *words)
    folder = tmp_path / "regimes"
    runs = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/results.json")}
    assert len(runs) == 3
    assert {found["dataset"] for found in runs.values()} == {str((folder / "dataset").resolve())}
    assert not list(folder.glob("no_*/dataset"))
    for path in runs:  # as they come from another machine
        (path / "results.json").unlink()
        (path / "run.json").unlink()
    written = {path: (path / "model.safetensors").stat().st_mtime_ns for path in runs}
    run_script(RUN, *words)
    for path, before in runs.items():
        after = json.loads((path / "results.json").read_text(encoding="utf-8"))
        assert (path / "model.safetensors").stat().st_mtime_ns == written[path]
        assert after["by_length"][0]["answer_accuracy"] == before["by_length"][0]["answer_accuracy"]
        assert after["training_hardware"] == before["hardware"]
    with pytest.raises(SystemExit, match="other options"):
        run_script(RUN, *words, "max_steps=3")


PROOF = {"weights": "w", "hardware": {}, "contexts": 1_225, "asked": 1_165, "j": 10, "attack_tokens": 5_000}


def test_the_proofs_of_a_row_stand_by_seed_with_what_is_open(reproduce, tmp_path):
    experiment, summary = reproduce
    proved = {**PROOF, "proved": True, "margin": 1.2345, "open": 0, "errs": 0, "prove_seconds": 7.4}
    proved |= {
        "verify_seconds": 12.6,
        "verification": "verified: 7",
        "why": None,
        "attack": "no error in 5,000 tokens",
    }
    not_proved = {**PROOF, "proved": False, "margin": -3.0, "open": 1_000, "errs": 2, "prove_seconds": 9.6}
    not_proved |= {"attack": "an error behind 1 0", "why": None}
    described = experiment.Experiment("e", "A title", "Table 0", {"a": {}, "b": {}}, {})
    runs = [{**result(seed, {5: (1.0, 1.0)}), "proof": proof} for seed, proof in enumerate((proved, not_proved))]
    found = summary.summarize(described, {"a": runs, "b": [result(0, {5: (1.0, 1.0)})]})
    table = summary.write_summary(found, tmp_path)
    cells = (
        "1.234 / 1,000 open, errs in 2 of them | at most 10 s | at most 13 s | 5,000 tokens: an error with 1 of 2 |"
    )
    assert f"| a | 1,225 | 1,165 | {cells}" in table
    assert table.count("\n| b |") == 1  # it has no proof


@pytest.mark.slow
def test_a_model_is_proved_verified_and_attacked_once_and_one_that_errs_is_not(tmp_path):
    words = ["proofs", "--seeds", "0", "--output", tmp_path]
    few = ["--override", "num_proc=1", "eval_lengths=[20]", "eval_num_problems=2", "proof=100000"]
    run_script(RUN, *words, "--rows", "unary addition", *few)
    (path,) = (tmp_path / "proofs").glob("*/proof.json")
    proof, written = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime_ns
    assert (proof["proved"], proof["open"]) == (True, 0)
    assert proof["attack"].startswith("no error in 10")
    assert proof["verification"].startswith("verified: 225 contexts")
    run_script(RUN, *words, "--rows", "unary addition", *few)
    assert path.stat().st_mtime_ns == written
    table = (tmp_path / "proofs" / "table.md").read_text(encoding="utf-8")
    assert f"| unary addition | 225 | 165 | {proof['margin']:.3f} |" in table

    run_script(RUN, *words, "--rows", "palindrome", *few, "max_steps=20")
    table = (tmp_path / "proofs" / "table.md").read_text(encoding="utf-8")
    assert re.search(
        r"\| palindrome \| 4,894 \| 4,313 \| [\d,]+ open, errs in [\d,]+ of them \|.*an error with 1 of 1", table
    )


@pytest.mark.slow
@in_sandbox
def test_code_fixing_is_measured_by_what_the_shells_hold(tmp_path):
    words = ["code_fixing", "--rows", "single turn/LSTM", "--seeds", "0", "--output", tmp_path, "--override"]
    few = ["num_examples=8", "eval_num_problems=1", "per_device_train_batch_size=2", "train_max_length=4"]
    run_script(RUN, *words, *SMALL, *few, "eval_lengths=[4]", "learning_rate=[0.001, 0.01]", "hidden_size=32")
    summary = json.loads((tmp_path / "code_fixing" / "summary.json").read_text(encoding="utf-8"))
    (row,) = summary["rows"].values()
    assert summary["checked"]
    assert row["accuracy"]["length_4"]["worst"] == 0.0
    assert len(row["rejected"]) == 1


def test_the_generalist_stands_beside_the_tasks_own_models(reproduce, model, tmp_path, monkeypatch):
    """From results of these very weights: nothing is trained or measured again."""
    monkeypatch.syspath_prepend(ROOT / "recipes")
    from certificate import weights_digest

    experiment, summary = reproduce
    folder, words = tmp_path / "generalist", ["eval_lengths=[5]", "eval_num_problems=8"]
    (run,) = experiment.load_experiment("generalist", False).runs([0], None, words)
    model.save_pretrained(folder / run.name)
    content = result(0, {5: (1.0, 1.0)}) | {"weights_sha256": weights_digest(model)}
    for name in ("", "addition", "sorting"):
        measured = folder / run.name / name / "results.json"
        measured.parent.mkdir(parents=True, exist_ok=True)
        measured.write_text(json.dumps(content), encoding="utf-8")
    (folder / run.name / "run.json").write_text(json.dumps(run.identity()), encoding="utf-8")
    own = summary.summarize(experiment.load_experiment("table1", False), {"sorting": [result(0, {5: (0.5, 0.5)})]})
    (tmp_path / "table1").mkdir()
    summary.write_summary(own, tmp_path / "table1")
    options = ["--rows", "addition", "sorting", "--seeds", "0", "--specialists", tmp_path / "table1"]
    run_script("recipes/reproduce/generalist.py", *options, "--output", tmp_path, "--override", *words)
    rows = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["rows"]
    found = {name: row["accuracy"]["length_5"]["worst"] for name, row in rows.items()}
    assert found == {"addition": 1.0, "sorting": 1.0, "sorting, its own model": 0.5}


@pytest.mark.slow
def test_the_generalist_is_trained_and_measured_on_every_task(tmp_path):
    few = [*SMALL, "eval_lengths=[2]"]
    own = [sys.executable, RUN, "table1", "--rows", "sorting", "--seeds", "0", "--output", tmp_path, "--override"]
    subprocess.run([*own, *few], cwd=ROOT, check=True, capture_output=True)
    command = [sys.executable, "recipes/reproduce/generalist.py", "--rows", "addition", "sorting", "--seeds", "0"]
    command += ["--specialists", tmp_path / "table1", "--output", tmp_path]
    command += ["--override", *few, 'mixture=["sorting:2=1"]']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((tmp_path / "generalist" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["rows"]) == ["addition", "sorting", "sorting, its own model"]
    assert [row["trained_up_to"] for row in summary["rows"].values()] == [5, 2, 10]
    assert all(set(row["accuracy"]) == {"length_2"} for row in summary["rows"].values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "no experiment 'nothing'.*regimes"),
        (["regimes", "--rows", "telepathy"], "no row 'telepathy'"),
        (["robustness", "--paper_sized", "true"], "no shapes for robustness"),
    ],
)
def test_what_does_not_exist_is_named(tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        run_script(RUN, *words, "--output", tmp_path)
