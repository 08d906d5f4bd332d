"""The benchmarks' command measures every part, and what it times computes what stock transformers computes."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

from hf_toolssm.protocol.text_tokenizer import build_text_tokenizer

RUN = [sys.executable, "recipes/benchmarks/run.py", "--scale", "small"]
IN_NEW_PROCESSES = ["training_by_length", "session"]
REST = [
    "training_addition",
    "training_130m",
    "decode_one_stream",
    "decode_batch",
    "decode_130m",
    "speculative",
    "observation",
    "building",
]
COMPARED = [
    "training, addition, 4 x 24",
    "training, 130M, 1 x 32",
    "decode, addition, 1 x 5 digits, with a sampler",
    "decode, addition, 32 x 3 digits, with a sampler",
    "decode, 130M, 1 stream, float32",
    "observation of 200 tokens",
]


def measure(output, *parts):
    """What the command prints and writes, at the small scale: in its own process, of which it measures the memory."""
    words = [*RUN, "--output", str(output), "--only", *parts]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads(output.read_text(encoding="utf-8"))
    return done.stdout, content, {result["name"]: result for result in content["results"]}


@pytest.mark.slow
def test_a_checkpoint_trains_from_both_file_layouts_in_full_and_with_a_lora(tmp_path):
    build_text_tokenizer(["a letter is sent to the house"] * 8, 300).save_pretrained(tmp_path)
    words = ["--tokenizer", tmp_path / "tokenizer.json", "--output", tmp_path / "found.json"]
    words += ["--hidden_size", "32", "--num_hidden_layers", "2"]
    printed = run_script("recipes/benchmarks/checkpoint_training.py", *words)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["trainings"]
    ways = [(each["layout"], each["training"]) for each in found]
    assert ways == [(layout, way) for layout in ("transformers", "mamba_ssm") for way in ("full", "LoRA of rank 8")]
    # The same rows by the same tokenizer, whatever the layout; and what trains does not depend on it either.
    assert len({each["tokens"] for each in found}) == 1
    assert [each["what_trains"] for each in found[:2]] == [each["what_trains"] for each in found[2:]]
    assert all(each["seconds"] > 0 and each["peak_gib"] > 0.1 for each in found)
    assert len(printed.splitlines()) >= 6


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("benchmarks") / "results.json", *REST)


@pytest.mark.parametrize("name", COMPARED)
def test_what_is_compared_is_equal(measured, name):
    result = measured[2][name]
    assert 0 < result["difference"] < 1e-4  # not 0: two computations, not one
    assert result["ratio"] == pytest.approx(result["ours"] / result["stock"])


@pytest.mark.parametrize("name", ["int8", "bfloat16"])
def test_rounded_weights_give_other_logits_and_say_how_far_off(measured, name):
    assert 1e-4 < measured[2][f"decode, 130M, 1 stream, {name}"]["difference"] < 0.1


def test_every_figure_says_what_it_is(measured):
    assert_every_figure_says_what_it_is(*measured)


def assert_every_figure_says_what_it_is(printed, content, results):
    assert all(any(line.startswith(name) for line in printed.splitlines()) for name in results)
    assert {"cpu", "cores", "packages"} <= set(content["hardware"])
    assert content["date"]
    assert not content["trained_model"]
    for result in results.values():
        assert result["ours"] > 0
        assert result["unit"]
        assert result["repetitions"]["ours"] >= 1
        for target in result["targets"]:
            above, below = target["measured"] >= target["limit"], target["measured"] <= target["limit"]
            assert target["met"] == {">=": above, "<=": below}[target["relation"]]


def test_bounds_are_measured_beside_the_figure(measured):
    bounds = {name: result["bound"] for name, result in measured[2].items() if result["bound"] is not None}
    assert {bound["kind"] for bound in bounds.values()} == {"bandwidth", "arithmetic"}
    assert all(bound["machine"] > 1e6 for bound in bounds.values())
    float32, int8 = (measured[2][f"decode, 130M, 1 stream, {name}"]["bound"] for name in ("float32", "int8"))
    assert int8["figure"] / int8["machine"] > float32["figure"] / float32["machine"]  # fewer bytes, more steps


def test_the_tool_answers_the_scripted_additions_as_the_solutions_say(measured):
    decoded = [result for name, result in measured[2].items() if name.startswith("decode, addition")]
    assert [result["details"]["exact"] for result in decoded] == [True, True]


def test_rows_are_built_in_the_bytes_that_their_dicts_have(measured):
    assert measured[2]["rows of additions, one process"]["details"]["same_bytes"]


def test_a_target_that_is_missed_is_shown_as_missed(measured):
    assert "MISSED" in measured[0]  # at this scale nothing is 250 times faster


@pytest.mark.slow
def test_what_is_measured_in_new_processes(tmp_path):
    found = measure(tmp_path / "results.json", *IN_NEW_PROCESSES)
    assert_every_figure_says_what_it_is(*found)
    session = found[2]["session of 2,000 tokens"]
    assert len(session["details"]["tokens_per_second_by_tenth"]) == 10
    assert 0 < session["details"]["tool_memory_mib"] < 0.1
