"""The README's commands run, the recipe goes on after an interruption, and every config loads."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, run_script, written
from datasets import load_dataset

from dataset_builders.build import main as build
from dataset_builders.catalog import load_task
from dataset_builders.mixture import Share
from dataset_builders.training_rows import training_rows
from hf_toolssm.errors import CertificationError, TooFewProblemsError, UnsafeTrainingError
from hf_toolssm.training.trainer import ToolSFTTrainer

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIG = "recipes/configs/addition_cpu.yaml"
IN_TWO_PROCESSES = (
    f"accelerate launch --config_file recipes/accelerate/cpu_two_processes.yaml recipes/sft.py --config {CONFIG} "
    "--per_device_train_batch_size 32"
)
# The training commands, made small.
SMALL = {"max_steps": "4", "num_examples": "96", "eval_num_problems": "2", "save_steps": "2", "logging_steps": "1"}
SMALL |= {"num_proc": "1", "per_device_train_batch_size": "8"}
SMALL_OPTIONS = [word for name, value in SMALL.items() for word in (f"--{name}", value)] + ["--eval_lengths", "2", "3"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command):
    """Runs a command of the README with this interpreter, in a process of its own."""
    program, *arguments = command
    launcher = {"python": [], "accelerate": ["-m", "accelerate.commands.launch"]}[program]
    arguments = arguments[1:] if program == "accelerate" else arguments  # after `launch`
    port = ["--main_process_port", "0"] if program == "accelerate" else []
    words = [sys.executable, *launcher, *port, *arguments]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_here(command):
    """Runs a command of the README in this process, without the launcher."""
    if command[:3] == ["python", "-m", "dataset_builders.build"]:
        return build(command[3:])
    at = next(at for at, word in enumerate(command) if word.startswith("recipes/") and word.endswith(".py"))
    return run_script(*command[at:])


def train_here(*words):
    """Runs the recipe in this process, made small."""
    return run_script("recipes/sft.py", *words, *SMALL_OPTIONS)


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
    if "recipes/configs/function_calling_cpu.yaml" in words:
        folders = {"dataset": "function-calling-data", "output_dir": "function-calling"}
        options = {name: f"{outputs}/{folder}" for name, folder in folders.items()}
        options |= {name: SMALL[name] for name in ("max_steps", "save_steps", "logging_steps", "num_proc")}
        return words + [word for name, value in options.items() for word in (f"--{name}", value)]
    if "recipes/sft.py" in words:
        if "--output_dir" not in words:
            words += ["--output_dir", f"{outputs}/addition"]
        words += SMALL_OPTIONS
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
    machine, mine = tmp_path / "my increment.tm", tmp_path / "mine"
    machine.write_text(table, encoding="utf-8")
    config = "recipes/configs/turing_machine_cpu.yaml"
    words = ["--config", config, *SMALL_OPTIONS, "--eval_lengths", "12"]
    run_script("recipes/sft.py", *words, "--task", machine, "--output_dir", mine)
    machine.unlink()  # a copy lies beside the model
    words = ["--lengths", "12", "--num_problems", "2", "--output", tmp_path / "measured"]
    assert "length_12" in run_script("recipes/evaluate.py", "--model", mine, *words)
    assert json.loads((tmp_path / "measured" / "results.json").read_text(encoding="utf-8"))["train_max_length"] == 8
    assert "# ToolMamba for my increment\n" in (mine / "README.md").read_text(encoding="utf-8")
    for name in ("README.md", "results.json", "dataset/README.md"):
        assert str(tmp_path) not in (mine / name).read_text(encoding="utf-8"), name


def test_a_test_set_that_does_not_exist_is_said_before_the_training(tmp_path):
    words = ["--config", "recipes/configs/turing_machine_cpu.yaml", "--task", "copy", "--eval_lengths", "1"]
    with pytest.raises(TooFewProblemsError, match="no input has 1 symbols"):  # a word and a sign are two symbols
        run_script("recipes/sft.py", *words, "--output_dir", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_mixture_trains_one_model_that_is_measured_on_each_of_its_tasks(tmp_path):
    mixed = tmp_path / "mixed"
    train_here("--config", CONFIG, "--mixture", "sorting:3=0.5", "logical_graph:2=0.5", "--output_dir", mixed)
    config = json.loads((mixed / "config.json").read_text(encoding="utf-8"))
    assert config["tools"] == [{"name": "pointer_memory", "max_pointers": 19}, {"name": "search_memory"}]
    results = json.loads((mixed / "results.json").read_text(encoding="utf-8"))
    assert results["mixture"][0] == "sorting/local:3=0.5"
    for task in ("sorting", "logical_graph"):
        words = ["--task", task, "--lengths", "2", "--num_problems", "2", "--output", tmp_path / task]
        assert "length_2" in run_script("recipes/evaluate.py", "--model", mixed, *words)
        assert json.loads((tmp_path / task / "results.json").read_text(encoding="utf-8"))["task"] == task


def test_a_curriculum_and_an_early_choice_run_from_the_recipe(tmp_path):
    chosen = tmp_path / "chosen"
    train_here("--config", CONFIG, "--curriculum", "true", "--selection_length", "6", "--output_dir", chosen)
    results = json.loads((chosen / "results.json").read_text(encoding="utf-8"))
    assert results["curriculum"] is True
    assert results["selected_step"] in (2, 4)
    state = json.loads((chosen / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    assert sum("eval_accuracy" in entry for entry in state["log_history"]) == 2
    with pytest.raises(UnsafeTrainingError, match="selection_length 5 is no longer than the training's 5"):
        train_here("--config", CONFIG, "--selection_length", "5", "--output_dir", tmp_path / "no")


def test_walks_through_the_rule_are_trained_on_beside_problems(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ToolSFTTrainer, "train", lambda trainer, **_: asked.append(trainer.train_dataset) or 1 / 0)
    words = ["--task", "addition", "--output_dir", tmp_path / "model", "--rule_walks", 24, "--max_steps", 1]
    with pytest.raises(ZeroDivisionError):
        train_here(*words)
    (rows,) = asked
    assert len(rows) == 96 + 24
    assert {len(ids) for ids in rows[96:]["input_ids"]} - {len(ids) for ids in rows[:96]["input_ids"]}
    with pytest.raises(CertificationError, match="456,976 contexts"):
        train_here("--task", "logical_graph", "--output_dir", tmp_path / "none", "--rule_walks", 24)
    assert not (tmp_path / "none").exists()


def test_the_python_example_runs(trained, capsys):
    outputs, _ = trained
    code = blocks("python")[0].replace("outputs/", f"{outputs}/")
    code = code.replace("return_dict_in_generate=True", "return_dict_in_generate=True, max_new_tokens=20")
    code = code.replace('Paris?"', 'Paris?", max_new_tokens=20')
    for words in small_commands(outputs):
        if "function_calling" in " ".join(words):
            run_here(words)
    capsys.readouterr()
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert len(names["four"].rows) == 4
    assert (outputs / "session.safetensors").exists()
    assert names["what_if"].messages == names["chat"].messages


def small_commands(outputs):
    """Every other command of the README as words, made small."""
    for command in [*commands(), IN_TWO_PROCESSES]:
        if command.split()[0] not in ("python", "accelerate") or (
            command.endswith(CONFIG) and "--model" not in command
        ):
            continue  # installing and testing are what .ci/run does
        words = shlex_small(command, outputs)
        shorter = {"100_000": "64", "10000": "12", "1000": "12", "100": "6", "10": "3"}
        words = [shorter.get(word, word) for word in words]
        if "recipes/function_calling/conversations.py" in words:
            words += ["--num-examples", "60"]
        if "recipes/long_problem.py" in words:
            words += ["--max_new_tokens", "300"]  # a model of four steps does not find the end
        if "recipes/reproduce/run.py" in words:
            small = [f"{name}={value}" for name, value in SMALL.items()]
            words += ["--rows", "no chain of thought", "--seeds", "0", "--output", f"{outputs}/reproduce"]
            words += ["--override", *small]
        if "recipes/configs/turing_machine_cpu.yaml" in words:
            words += ["--eval_lengths", "30"]  # shorter words may all be in training
        if command == IN_TWO_PROCESSES:
            words += ["--output_dir", f"{outputs}/two"]
            words[words.index("--per_device_train_batch_size") + 1] = "4"
        yield words


LAUNCH_OTHERS = ("recipes/reproduce/run.py", "recipes/accelerate/cpu_two_processes.yaml")


def check_outputs(outputs):
    assert (outputs / "palindrome" / "results.json").exists()
    assert (outputs / "function-calling" / "chat_template.jinja").exists()
    assert (outputs / "tool-addition" / "README.md").exists()
    assert "<html" in (outputs / "trace.html").read_text(encoding="utf-8")
    measured = json.loads((outputs / "addition" / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert measured["teacher_forced"]
    assert json.loads((outputs / "long-addition" / "certificate.json").read_text(encoding="utf-8"))["length"] == 12
    tuned = json.loads((outputs / "addition-lora" / "results.json").read_text(encoding="utf-8"))
    assert (tuned["lora_rank"], tuned["base_model"]) == (8, f"{outputs}/addition")


def test_every_other_command_of_the_readme_that_is_one_process_runs(trained):
    outputs, _ = trained
    alone = [words for words in small_commands(outputs) if not set(LAUNCH_OTHERS) & set(words)]
    assert len(alone) == 8
    for words in alone:
        run_here(words)
    check_outputs(outputs)


@pytest.mark.slow
def test_every_other_command_of_the_readme_runs_in_a_process_of_its_own(trained, tmp_path):
    shutil.copytree(trained[0] / "addition", tmp_path / "addition", ignore=shutil.ignore_patterns("evaluation"))
    every = list(small_commands(tmp_path))
    assert len(every) == 10
    for words in every:
        run(words)
    check_outputs(tmp_path)
    table = (tmp_path / "reproduce" / "regimes" / "table.md").read_text(encoding="utf-8")
    assert "no chain of thought" in table


def test_the_readme_is_short_and_its_links_resolve():
    assert len(README.splitlines()) <= 120
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://arxiv.org/abs/") or (ROOT / link).exists(), link


def test_the_trajectory_of_the_readme_is_what_the_package_records():
    signs = {"observation": "→", "output": "!"}
    recorded = load_task("addition").solve("7+5=", "local")
    shown = [line for line in blocks("text")[0].splitlines() if not line.startswith("#")]
    assert " ".join(shown).split() == [signs.get(kind, "") + cell for kind, cell in written(recorded)]
    assert "All of `7+5=`" in README


def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path):
    words = ["recipes/sft.py", "--config", CONFIG, *SMALL_OPTIONS, "--max_steps", "24", "--output_dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint-4").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    run_script(*words, "--resume_from_checkpoint", "true")
    state = json.loads((tmp_path / "checkpoint-24" / "trainer_state.json").read_text(encoding="utf-8"))
    steps = [entry["step"] for entry in state["log_history"]]
    assert steps == list(range(1, 25))
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["steps"] == 24


def test_rows_come_from_the_folder_that_was_built_whatever_another_folder_of_that_name_holds(tmp_path):
    """`datasets` caches a folder by its last name and configurations, and would answer with another task's rows."""
    for task in ("multiplication_nx1", "multiplication_nx2", "multiplication_nx1"):
        problems = Share(load_task(task), "local", 3, 1.0).training_set(20, seed=0)
        folder = tmp_path / task / "dataset"
        rows, revision = training_rows(problems, None, folder, num_proc=1, builds=True)
        assert {row["id"].split("/")[0] for row in rows} == {task}
        assert training_rows(problems, str(folder), tmp_path, num_proc=1, builds=True)[0]["id"] == rows["id"]
        assert revision is None  # a folder has none


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_has_only_options_that_change_something_and_says_how_it_was_run(path, sft):
    from trl import TrlParser

    def read(*arguments):
        recipe, config = TrlParser((sft.RecipeArguments, sft.ToolSFTConfig)).parse_args_and_config(list(arguments))
        return vars(config) | vars(recipe)

    # Without a GPU, bfloat16 is taken where the CPU is asked for.
    machine = ["--use_cpu", "true"] if path.stem.endswith("_cuda") else []
    configured, defaults = read("--config", str(path), *machine), read()
    for name in yaml.safe_load(
        path.read_text(encoding="utf-8")
    ):  # a name that is no option has already stopped the parser
        assert configured[name] != defaults[name], f"{name} is the default: leave it out"
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert "accelerate launch" in header
    assert "minutes" in header


def test_a_whole_number_in_a_config_may_stand_where_a_share_is_meant(tmp_path, sft):
    """YAML's `4` is an int, and what takes it makes a model's config of it, which wants a float."""
    from hf_toolssm.models.architectures import make_model

    steps = sft.RecipeArguments(time_step_min=1, time_step_max=4)
    given = {name: getattr(steps, name) for name in ("time_step_min", "time_step_max")}
    assert make_model("tool_mamba", 16, width=16, depth=1, state_size=4, mamba=given).config.time_step_max == 4.0


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
