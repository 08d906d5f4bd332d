"""The README's commands run, the recipe goes on after an interruption, and every config loads."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset

from dataset_builders.task import load_task

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIG = "recipes/configs/addition_cpu.yaml"
IN_TWO_PROCESSES = (
    f"accelerate launch --config_file recipes/accelerate/cpu_two_processes.yaml recipes/sft.py --config {CONFIG} "
    "--per_device_train_batch_size 32"
)
# The training commands, made small.
SMALL = {"max_steps": "4", "num_examples": "96", "eval_num_problems": "2", "save_steps": "2", "logging_steps": "1"}
SMALL_OPTIONS = [word for name, value in SMALL.items() for word in (f"--{name}", value)] + ["--eval_lengths", "2", "3"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command, **options):
    """Runs a command of the README with this interpreter."""
    program, *arguments = command
    launcher = {"python": [], "accelerate": ["-m", "accelerate.commands.launch"]}[program]
    arguments = arguments[1:] if program == "accelerate" else arguments  # after `launch`
    port = ["--main_process_port", "0"] if program == "accelerate" else []
    done = subprocess.run(
        [sys.executable, *launcher, *port, *arguments], capture_output=True, encoding="utf-8", cwd=ROOT, **options
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The README's main command, made small, in a folder of its own."""
    outputs = tmp_path_factory.mktemp("outputs")
    (command,) = [line for line in commands() if line.endswith(CONFIG) and "--model" not in line]
    return outputs, run(shlex_small(command, outputs))


def commands():
    return [command for block in blocks("bash") for line in block.splitlines() for command in line.split(" && ")]


def shlex_small(command, outputs):
    """A README command with its outputs moved and its work made small."""
    words = command.replace("outputs/", f"{outputs}/").split()
    if "recipes/sft.py" in words:
        if "--output_dir" not in words:
            words += ["--output_dir", f"{outputs}/addition"]
        words += [*SMALL_OPTIONS, "--per_device_train_batch_size", "8"]
    return words


def test_the_main_command_writes_what_the_readme_says(trained):
    outputs, printed = trained
    folder = outputs / "addition"
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [(r["length"], r["num_problems"], r["mode"]) for r in content["by_length"]] == [
        (2, 2, "free-running"),
        (3, 2, "free-running"),
    ]
    assert {"answer_accuracy", "trajectory_accuracy", "first_error"} <= set(content["by_length"][0])
    assert content["num_parameters"] < 100_000
    assert content["steps"] == 4
    assert "length_2" in printed
    for name in ("model.safetensors", "tokenizer.json", "README.md", "length_generalization.png", "training.json"):
        assert (folder / name).exists(), name
    rows = load_dataset(str(folder / "dataset"), "max_length_5")
    assert rows["train"].num_rows == 96


def test_a_machine_of_the_users_own_is_one_file_and_one_command_away_from_a_model(tmp_path):
    table = (ROOT / "dataset_builders" / "machines" / "binary_increment.tm").read_text(encoding="utf-8")
    (tmp_path / "my increment.tm").write_text(table, encoding="utf-8")
    config = "recipes/configs/turing_machine_cpu.yaml"
    command = f"accelerate launch recipes/sft.py --config {config} --output_dir {tmp_path}/mine"
    words = [*shlex_small(command, tmp_path), "--task", str(tmp_path / "my increment.tm"), "--eval_lengths", "12"]
    run(words)
    (tmp_path / "my increment.tm").unlink()  # a copy lies beside the model
    measure = f"python recipes/evaluate.py --model {tmp_path}/mine --lengths 12 --num_problems 2"
    assert "length_12" in run([*measure.split(), "--output", f"{tmp_path}/measured"])
    assert json.loads((tmp_path / "measured" / "results.json").read_text(encoding="utf-8"))["train_max_length"] == 8
    assert "# ToolMamba for my increment\n" in (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    for name in ("README.md", "results.json", "dataset/README.md"):
        assert str(tmp_path) not in (tmp_path / "mine" / name).read_text(encoding="utf-8"), name


def test_a_test_set_that_does_not_exist_is_said_before_the_training(tmp_path):
    words = ["recipes/sft.py", "--config", "recipes/configs/turing_machine_cpu.yaml", "--task", "copy"]
    words += ["--eval_lengths", "1", "--output_dir", str(tmp_path / "copy")]  # a word and a sign are two symbols
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert "TooFewProblemsError: no input has 1 symbols" in done.stderr
    assert not (tmp_path / "copy").exists()


def test_a_mixture_trains_one_model_that_is_measured_on_each_of_its_tasks(tmp_path):
    command = f"accelerate launch recipes/sft.py --config {CONFIG} --mixture sorting:3=0.5 logical_graph:2=0.5"
    run(shlex_small(f"{command} --output_dir {tmp_path}/mixed", tmp_path))
    config = json.loads((tmp_path / "mixed" / "config.json").read_text(encoding="utf-8"))
    assert config["tools"] == [{"name": "pointer_memory", "max_pointers": 19}, {"name": "search_memory"}]
    assert (
        json.loads((tmp_path / "mixed" / "results.json").read_text(encoding="utf-8"))["mixture"][0]
        == "sorting/local:3=0.5"
    )
    for task in ("sorting", "logical_graph"):
        measure = f"python recipes/evaluate.py --model {tmp_path}/mixed --task {task} --lengths 2 --num_problems 2"
        assert "length_2" in run([*measure.split(), "--output", f"{tmp_path}/{task}"])
        assert json.loads((tmp_path / task / "results.json").read_text(encoding="utf-8"))["task"] == task


def test_a_curriculum_and_an_early_choice_run_from_the_recipe(tmp_path):
    command = f"accelerate launch recipes/sft.py --config {CONFIG} --curriculum true --choice_length 6"
    run(shlex_small(f"{command} --output_dir {tmp_path}/chosen", tmp_path))
    results = json.loads((tmp_path / "chosen" / "results.json").read_text(encoding="utf-8"))
    assert results["curriculum"] is True
    assert results["chosen_step"] in (2, 4)
    state = json.loads((tmp_path / "chosen" / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    assert sum("eval_accuracy" in entry for entry in state["log_history"]) == 2
    shorter = [sys.executable, "recipes/sft.py", "--config", CONFIG, "--choice_length", "5", "--num_examples", "20"]
    refused = subprocess.run(
        [*shorter, "--output_dir", f"{tmp_path}/no"], capture_output=True, encoding="utf-8", cwd=ROOT
    )
    assert "choice_length 5 is no longer than the training's 5" in refused.stderr


def test_the_python_example_runs(trained, capsys):
    outputs, _ = trained
    code = blocks("python")[0].replace("outputs/", f"{outputs}/")
    code = code.replace("return_dict_in_generate=True", "return_dict_in_generate=True, max_new_tokens=20")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert len(names["four"].rows) == 4
    assert (outputs / "session.safetensors").exists()


def test_every_other_command_of_the_readme_runs(trained):
    outputs, _ = trained
    seen = []
    for command in [*commands(), IN_TWO_PROCESSES]:
        if command.split()[0] not in ("python", "accelerate") or (
            command.endswith(CONFIG) and "--model" not in command
        ):
            continue  # installing and testing are what .ci/run does
        words = shlex_small(command, outputs)
        shorter = {"100_000": "64", "10000": "12", "1000": "12", "100": "6", "10": "3"}
        words = [shorter.get(word, word) for word in words]
        if "recipes/long_problem.py" in words:
            words += ["--max_new_tokens", "300"]  # a model of four steps does not find the end
        if "recipes/reproduce/run.py" in words:
            small = [f"{name}={value}" for name, value in SMALL.items()]
            words += ["--rows", "no chain of thought", "--seeds", "0", "--output", f"{outputs}/reproduce"]
            words += ["--override", *small, "per_device_train_batch_size=8"]
        if "recipes/configs/turing_machine_cpu.yaml" in words:
            words += ["--eval_lengths", "30"]  # shorter words may all be in training
        if words[0] == "accelerate" and "--output_dir" not in command:
            words += ["--output_dir", f"{outputs}/two"]
            words[words.index("--per_device_train_batch_size") + 1] = "4"
        run(words)
        seen.append(words)
    assert len(seen) == 7
    assert (outputs / "palindrome" / "results.json").exists()
    assert "no chain of thought" in (outputs / "reproduce" / "regimes" / "table.md").read_text(encoding="utf-8")
    assert (outputs / "tool-addition" / "README.md").exists()
    assert json.loads((outputs / "addition" / "evaluation" / "results.json").read_text(encoding="utf-8"))[
        "teacher_forced"
    ]
    assert json.loads((outputs / "long-addition" / "certificate.json").read_text(encoding="utf-8"))["length"] == 12
    tuned = json.loads((outputs / "addition-lora" / "results.json").read_text(encoding="utf-8"))
    assert (tuned["lora_rank"], tuned["base_model"]) == (8, f"{outputs}/addition")


def test_the_readme_is_short_and_its_links_resolve():
    assert len(README.splitlines()) <= 120
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://arxiv.org/abs/") or (ROOT / link).exists(), link


def test_the_trajectory_of_the_readme_is_what_the_package_records():
    signs = {"observation": "→", "output": "!"}
    recorded = load_task("addition").solve("7+5=", "local")
    shown = [line for line in blocks("text")[0].splitlines() if not line.startswith("#")]
    assert " ".join(shown).split() == [signs.get(step.kind, "") + step.text for step in recorded.steps]
    assert "All of `7+5=`" in README


def test_the_machine_of_the_readme_is_the_one_that_it_names():
    table = (ROOT / "dataset_builders" / "machines" / "binary_increment.tm").read_text(encoding="utf-8")
    assert table.endswith("\n\n" + blocks("text")[1])
    assert "`binary_increment`" in README


def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path):
    words = ["recipes/sft.py", "--config", CONFIG, "--output_dir", str(tmp_path), "--per_device_train_batch_size", "8"]
    words += ["--num_examples", "400", "--eval_lengths", "2", "--eval_num_problems", "1"]
    words += ["--max_steps", "40", "--save_steps", "2", "--logging_steps", "1"]
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint-4").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    run(["python", *words, "--resume_from_checkpoint", "true"])
    state = json.loads((tmp_path / "checkpoint-40" / "trainer_state.json").read_text(encoding="utf-8"))
    steps = [entry["step"] for entry in state["log_history"]]
    assert steps == list(range(1, 41))
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["steps"] == 40


def test_rows_come_from_the_folder_that_was_built_whatever_another_folder_of_that_name_holds(tmp_path):
    """`datasets` caches a folder by its last name and configurations, and would answer with another task's rows."""
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        import sft
    finally:
        sys.path.pop(0)
    for task in ("multiplication_nx1", "multiplication_nx2", "multiplication_nx1"):
        recipe = sft.RecipeArguments(
            task=task, train_max_length=3, num_examples=20, num_proc=1, eval_lengths=[3], eval_num_problems=2
        )
        rows, revision = sft.load_training_rows(recipe, "local", tmp_path / task)
        assert {row["id"].split("/")[0] for row in rows} == {task}
        recipe.dataset = str(tmp_path / task / "dataset")
        assert sft.load_training_rows(recipe, "local", tmp_path)[0]["id"] == rows["id"]
        assert revision is None  # a folder has none


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_has_only_options_that_change_something_and_says_how_it_was_run(path):
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        import sft
    finally:
        sys.path.pop(0)
    from trl import TrlParser

    def read(*arguments):
        recipe, config = TrlParser((sft.RecipeArguments, sft.ToolSFTConfig)).parse_args_and_config(list(arguments))
        return vars(config) | vars(recipe)

    configured, defaults = read("--config", str(path)), read()
    for name in yaml.safe_load(
        path.read_text(encoding="utf-8")
    ):  # a name that is no option has already stopped the parser
        assert configured[name] != defaults[name], f"{name} is the default: leave it out"
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert "accelerate launch" in header
    assert "minutes" in header


def test_the_main_recipe_needs_no_extra():
    """Without the extras `peft` and `test`: a bare install must train."""
    code = "import sys; sys.modules.update(peft=None, pytest=None, hypothesis=None); sys.path.insert(0, 'recipes')"
    code += "; import sft"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_ci_runs_what_contributing_says():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("ruff check .", "ruff format --check .", "mypy", "pytest"):
        assert command in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
