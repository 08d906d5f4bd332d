"""A trained model comes back from the Hub in a fresh process, with and without the package, and is exact there."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, WITHOUT_PACKAGE
from huggingface_hub import hf_hub_download

from hf_toolssm.evaluation import evaluate_free_running
from hf_toolssm.evaluation.report import write_report
from hf_toolssm.hub.publish import Destination
from hf_toolssm.hub.publish_model import publish_model
from hub.test_model_card import ABOUT, TEMPLATE
from hub.test_publish_model import TRAINING

GENERATE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

path, problems = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(path, **options)
tokenizer = AutoTokenizer.from_pretrained(path, **options)
batch = tokenizer(problems, padding=True, return_tensors="pt")
result = model.generate(**batch, return_dict_in_generate=True)
sequences = [row[:length].tolist() for row, length in zip(result.sequences, result.lengths)]
print(json.dumps([type(model).__module__, result.answers, result.complete, sequences]))
"""


@pytest.fixture(scope="module", params=["by heart", pytest.param("by the recipe", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """A model's folder, and problems that it solves with their answers: two that it knows, or any of 100 digits."""
    folder = tmp_path_factory.mktemp("trained") / "addition"
    if request.param == "by heart":
        (model, references), tokenizer = (request.getfixturevalue(name) for name in ("memorised", "tokenizer"))
        problems = {"".join(reference.problem): reference.answer for reference in references}
        model = copy.deepcopy(model)  # others hold it too
        model.generation_config.max_new_tokens = 200
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        measured = evaluate_free_running(model, tokenizer, "length_1", 1, references)
        write_report(folder, [measured], [], {**ABOUT, "example_problem": next(iter(problems))})
        return folder, problems
    words = [*TRAINING, "--per_device_train_batch_size", "32", "--num_examples", "20000"]  # the README's, smaller
    words += ["--eval_lengths", "5", "100", "--eval_num_problems", "8", "--output_dir", str(folder)]
    done = subprocess.run([sys.executable, *words], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    sevens, fives, nines = ("7" * 100, "5" * 100, "9" * 100)
    return folder, {f"{sevens}+{fives}=": str(int(sevens) + int(fives)), f"{nines}+1=": "1" + "0" * 100}


@pytest.fixture
def published(hub, trained):
    publish_model(trained[0], Destination(hub.repo_id("addition"), "model"), TEMPLATE)
    return hub.repo_id("addition")


def test_a_published_model_is_exact_with_the_package_and_writes_the_same_tokens_without_it(
    hub, published, trained, tmp_path
):
    _, problems = trained

    def generate(code):
        """In a fresh process, in a folder where the package does not lie."""
        words = [sys.executable, "-c", code + GENERATE, published, json.dumps(list(problems))]
        done = subprocess.run(words, env=hub.environment, capture_output=True, encoding="utf-8", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        module, answers, complete, sequences = json.loads(done.stdout)
        assert answers == list(problems.values())
        assert all(complete)
        return module, sequences

    module, with_package = generate("import hf_toolssm\noptions = {}\n")
    assert module.startswith("hf_toolssm.")
    assert not any(request.path.endswith(".py") for request in hub.log), "no remote code where the package is"
    module, without_package = generate(WITHOUT_PACKAGE + "options = {'trust_remote_code': True}\n")
    assert module.startswith("transformers_modules.")
    assert without_package == with_package


def test_the_card_shows_what_the_training_measured_and_its_example_runs(hub, published, trained, tmp_path):
    results = json.loads((trained[0] / "results.json").read_text(encoding="utf-8"))
    card = Path(hf_hub_download(published, "README.md")).read_text(encoding="utf-8")
    for measured in results["by_length"]:
        assert f"| length_{measured['length']} | {measured['length']} | {measured['answer_accuracy']} |" in card
    first, second = (part.partition("```")[0] for part in card.split("```python\n")[1:])
    expected = str(sum(map(int, results["example_problem"].removesuffix("=").split("+"))))
    for code in (first, WITHOUT_PACKAGE + second):
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, env=hub.environment, capture_output=True, encoding="utf-8", cwd=tmp_path)
        assert done.stdout == f"['{expected}'] [True]\n", done.stderr[-3000:]
