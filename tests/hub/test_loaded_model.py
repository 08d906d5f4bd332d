"""A trained model comes back from the Hub in a fresh process, with and without the package, and is exact there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WITHOUT_PACKAGE
from huggingface_hub import hf_hub_download

from hf_toolssm.hub.publish import Destination
from hf_toolssm.hub.publish_model import publish_model
from hub.test_model_card import TEMPLATE
from hub.test_publish_model import ROOT, TRAINING

PROBLEMS = ["7" * 100 + "+" + "5" * 100 + "=", "9" * 100 + "+1="]
ANSWERS = [str(int("7" * 100) + int("5" * 100)), "1" + "0" * 100]

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The recipe's addition model, trained until it is exact: the README's command on smaller batches."""
    folder = tmp_path_factory.mktemp("trained") / "addition"
    words = [*TRAINING, "--per_device_train_batch_size", "32", "--num_examples", "20000"]
    words += ["--eval_lengths", "5", "100", "--eval_num_problems", "8", "--output_dir", str(folder)]
    done = subprocess.run([sys.executable, *words], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def published(hub, trained):
    publish_model(trained, Destination(hub.repo_id("addition"), "model"), TEMPLATE)
    return hub.repo_id("addition")


def generate(code, path, environment, folder):
    """In a fresh process, in a folder where the package does not lie."""
    words = [sys.executable, "-c", code + GENERATE, path, json.dumps(PROBLEMS)]
    done = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_published_model_adds_100_digits_with_the_package_and_the_same_tokens_without_it(hub, published, tmp_path):
    code = "import hf_toolssm\noptions = {}\n"
    module, answers, complete, with_package = generate(code, published, hub.environment, tmp_path)
    assert module.startswith("hf_toolssm.")
    assert answers == ANSWERS
    assert all(complete)
    assert not any(request.path.endswith(".py") for request in hub.log), "no remote code where the package is"
    code = WITHOUT_PACKAGE + "options = {'trust_remote_code': True}\n"
    module, answers, complete, without_package = generate(code, published, hub.environment, tmp_path)
    assert module.startswith("transformers_modules.")
    assert answers == ANSWERS
    assert all(complete)
    assert without_package == with_package


def test_the_card_shows_what_the_training_measured_and_its_example_runs(hub, published, trained, tmp_path):
    results = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    card = Path(hf_hub_download(published, "README.md")).read_text(encoding="utf-8")
    for measured in results["by_length"]:
        assert f"| length_{measured['length']} | {measured['length']} | {measured['answer_accuracy']} |" in card
    first, second = (part.partition("```")[0] for part in card.split("```python\n")[1:])
    expected = str(sum(map(int, results["example_problem"].removesuffix("=").split("+"))))
    for code in (first, WITHOUT_PACKAGE + second):
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, env=hub.environment, capture_output=True, encoding="utf-8", cwd=tmp_path)
        assert done.stdout == f"['{expected}'] [True]\n", done.stderr[-3000:]
