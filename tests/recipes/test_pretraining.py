"""Pretraining: pinned archives become a corpus, a model is trained on it, measured, and fine-tuned as a checkpoint."""

import gzip
import hashlib
import json
import lzma
import math
import random
import shutil
import zipfile
from collections import Counter

import numpy
import pytest
from conftest import import_recipe, run_script
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_toolssm import Chat, ToolMambaForCausalLM
from hf_toolssm.protocol.text_tokenizer import build_text_tokenizer

FOLDER = "recipes/pretraining"
SERVICE = {
    "metadata": {"serviceFullName": "Letter Service"},
    "documentation": "<p>Sends &amp; receives letters.</p>",
    "operations": {"SendLetter": {"input": {"shape": "Letter"}, "documentation": "<p>Sends one.</p>"}},
    "shapes": {
        "Letter": {
            "type": "structure",
            "members": {"To": {"shape": "Name", "documentation": "<p>A <b>name</b>.</p>"}},
        },
        "Name": {"type": "string"},
    },
}


def probability(train, context, token, vocabulary, order):
    """Witten and Bell's, by counting again for every token."""
    if order == 0:
        return 1 / vocabulary
    before = tuple(context[len(context) - order + 1 :]) if order > 1 else ()
    lower = probability(train, context, token, vocabulary, order - 1)
    if len(before) < order - 1:
        return lower
    grams = [tuple(train[at : at + order]) for at in range(len(train) - order + 1)]
    followed = Counter(gram[-1] for gram in grams if gram[:-1] == before)
    if not followed:
        return lower
    kinds, total = len(followed), sum(followed.values())
    return (followed[token] + kinds * lower) / (total + kinds)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=8, max_size=40), st.lists(st.integers(0, 4), min_size=5, max_size=12))
def test_a_5_gram_model_counts_as_its_definition_says(train, test):
    ngram = import_recipe("ngram", FOLDER)
    found = ngram.ngram_log2(numpy.array(train), numpy.array(test), vocabulary=5, order=5)
    expected = [math.log2(probability(train, test[:at], token, 5, 5)) for at, token in enumerate(test)]
    assert found == pytest.approx(expected)


def archive(folder, name, files):
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for file, content in files.items():
            packed.writestr(file, content)
        packed.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        packed.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        packed.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def prose(seed):
    rng = random.Random(seed)
    return " ".join(rng.choice(["a", "letter", "is", "sent", "to", "the", "house"]) for _ in range(400)) + f" {seed}\n"


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A requirements file with hashes, and the folder that has its archives."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = tmp_path / "downloads"
    folder.mkdir()
    files = {f"first/{seed}.py": prose(seed) for seed in range(8)}
    files["first/botocore/data/letters/1/service-2.json.gz"] = gzip.compress(json.dumps(SERVICE).encode())
    files |= {"first/short.py": "x = 1", "first/picture.png": b"\x89PNG" * 50, "first/broken.txt": b"\xff" * 100}
    files["first/again.md"] = prose(100)  # which is held out
    first = archive(folder, "first", files)
    second = archive(folder, "second_part", {"second/guide.rst": prose(100), "second/twice.txt": prose(100)})
    path = tmp_path / "archives.txt"
    path.write_text(f"# trained on\n{first}\n# held out\n{second}\n", encoding="utf-8")
    return path, folder


def build(archives, output):
    words = ["--archives", archives[0], "--downloads", archives[1], "--output", output]
    return run_script(f"{FOLDER}/corpus.py", *words)


def test_archives_become_texts_and_what_is_held_out_is_in_no_training_row(archives, tmp_path):
    printed = build(archives, tmp_path / "corpus")
    corpus = load_dataset(str(tmp_path / "corpus"))
    held_out, trained = corpus["validation"]["text"][:], corpus["train"]["text"][:]
    assert held_out == [prose(100)]
    assert {*trained} >= {prose(seed) for seed in range(8)}
    assert not {*trained} & {*held_out}
    (service,) = [text for text in trained if text.startswith("# Letter Service")]
    assert "Sends & receives letters." in service
    assert "- To (string): A name ." in service
    assert not any("x = 1" in text or "\ufffd" in text or "PNG" in text for text in trained)
    assert "validation: 1 texts" in printed
    told = json.loads((tmp_path / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    assert told["validation"]["archives"] == ["second_part==1.0"]


def test_another_archive_than_the_pinned_one_is_refused(archives, tmp_path):
    path, folder = archives
    path.write_text(path.read_text(encoding="utf-8").replace("sha256:", "sha256:00")[:-10], encoding="utf-8")
    with pytest.raises(ValueError, match="pip could not get the archives"):
        build((path, folder), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_list_without_held_out_archives_is_refused(archives, tmp_path):
    path, folder = archives
    path.write_text(path.read_text(encoding="utf-8").replace("# held out\n", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="# held out"):
        build((path, folder), tmp_path / "corpus")


def test_the_pinned_archives_have_hashes_and_some_are_held_out():
    corpus = import_recipe("corpus", FOLDER)
    trained, held_out = corpus.archive_names(corpus.ARCHIVES)
    lines = [line for line in corpus.ARCHIVES.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert len(lines) == len(trained) + len(held_out)
    assert all("--hash=sha256:" in line for line in lines)
    assert trained
    assert held_out


@pytest.mark.parametrize(
    ("words", "error"), [(("--vocabulary_size", "5000"), "at most 4,096"), (("--block", "9000"), "--block 9000")]
)
def test_what_could_not_be_measured_is_said_before_the_training(words, error, tmp_path):
    for split in ("train", "validation"):
        Dataset.from_list([{"text": prose(0)}]).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=error):
        run_script(f"{FOLDER}/pretrain.py", "--corpus", tmp_path, "--output_dir", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def pretrained(tmp_path):
    """A model of a few steps."""
    corpus, output = tmp_path / "corpus", tmp_path / "pretrained"
    corpus.mkdir()
    Dataset.from_list([{"text": prose(seed)} for seed in range(60)]).to_parquet(corpus / "train.parquet")
    Dataset.from_list([{"text": prose(seed)} for seed in range(60, 64)]).to_parquet(corpus / "validation.parquet")
    words = ["--corpus", corpus, "--output_dir", output, "--vocabulary_size", "320", "--hidden_size", "32"]
    words += ["--num_hidden_layers", "1", "--block", "64", "--num_proc", "1", "--max_steps", "30"]
    words += ["--learning_rate", "0.01", "--state_passing_share", "0", "--report_to", "none", "--disable_tqdm", "true"]
    run_script(f"{FOLDER}/pretrain.py", *words)
    return output


def test_a_training_goes_on_with_the_rows_that_it_began_with_or_not_at_all(tmp_path):
    (tmp_path / "corpus").mkdir()
    for split in ("train", "validation"):
        texts = [{"text": prose(seed)} for seed in range(20)]
        Dataset.from_list(texts).to_parquet(tmp_path / "corpus" / f"{split}.parquet")
    words = [f"{FOLDER}/pretrain.py", "--corpus", tmp_path / "corpus", "--vocabulary_size", "320", "--block", "64"]
    words += ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_proc", "1", "--state_passing_share", "0"]
    words += ["--report_to", "none", "--disable_tqdm", "true", "--save_steps", "4", "--max_steps", "8"]
    run_script(*words, "--output_dir", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-8")
    run_script(*words, "--output_dir", tmp_path / "again", "--resume_from_checkpoint", "true")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]
    Dataset.from_list([{"text": prose(99)}]).to_parquet(tmp_path / "corpus" / "train.parquet")
    with pytest.raises(ValueError, match="began with other rows"):
        run_script(*words, "--output_dir", tmp_path / "again", "--resume_from_checkpoint", "true")


def test_a_model_is_pretrained_measured_and_then_fine_tuned_as_any_checkpoint(pretrained, tmp_path):
    results = json.loads((pretrained / "results.json").read_text(encoding="utf-8"))
    found = results["bits_per_byte"]
    # Seven words, and a blank behind each: log2(7) bits for about five bytes.
    assert 0.55 < found["5-gram"] < 0.8
    assert 0.6 < found["model"] < 1.2
    texts = "".join(prose(seed) for seed in range(60, 64)).encode()
    packed = lzma.compress(texts, preset=9 | lzma.PRESET_EXTREME)
    assert found["xz"] == round(8 * len(packed) / len(texts), 4)
    assert results["held_out_texts"] == 4
    model, tokenizer = ToolMambaForCausalLM.from_pretrained(pretrained), AutoTokenizer.from_pretrained(pretrained)
    assert model.config.vocab_size >= len(tokenizer)
    assert tokenizer.eos_token == "<|endoftext|>"
    run_script("recipes/function_calling/conversations.py", "--output", tmp_path / "rows", "--num-examples", "16")
    words = ["--dataset", tmp_path / "rows", "--model", pretrained, "--chat_template", "toolssm", "--max_steps", "1"]
    words += ["--output_dir", tmp_path / "tuned", "--num_proc", "1", "--report_to", "none", "--disable_tqdm", "true"]
    run_script("recipes/sft.py", *words)
    tuned, tokenizer = (
        ToolMambaForCausalLM.from_pretrained(tmp_path / "tuned"),
        AutoTokenizer.from_pretrained(tmp_path / "tuned"),
    )
    assert Chat.start(tuned, tokenizer).send("a letter", max_new_tokens=3).tokens >= 3


def forgetting(corpus, output, *models):
    words = ["--models", *models, "--corpus", corpus, "--output", output]
    return run_script("recipes/harness/forgetting.py", *words)


def test_lm_eval_finds_the_bits_per_byte_of_our_own_measure_and_what_a_fine_tuning_forgets(pretrained, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[lm-eval]'")
    run_script("recipes/function_calling/conversations.py", "--output", tmp_path / "rows", "--num-examples", "16")
    words = ["--dataset", tmp_path / "rows", "--model", pretrained, "--chat_template", "toolssm", "--max_steps", "20"]
    words += ["--output_dir", tmp_path / "tuned", "--num_proc", "1", "--report_to", "none", "--disable_tqdm", "true"]
    run_script("recipes/sft.py", *words, "--learning_rate", "0.01")
    printed = forgetting(tmp_path / "corpus", tmp_path / "found", pretrained, tmp_path / "tuned")
    told = json.loads((tmp_path / "found" / "results.json").read_text(encoding="utf-8"))
    before, after = told["models"].values()
    ours = json.loads((pretrained / "results.json").read_text(encoding="utf-8"))["bits_per_byte"]["model"]
    assert before["texts"] == 4
    assert before["bits_per_byte"] == pytest.approx(ours, abs=2e-4)
    assert after["bits_per_byte"] > before["bits_per_byte"] + 0.1
    assert f"{after['bits_per_byte'] - before['bits_per_byte']:+.4f}" in printed
    written = (tmp_path / "found" / "results.json").stat().st_mtime_ns
    again = forgetting(tmp_path / "corpus", tmp_path / "found", pretrained, tmp_path / "tuned")
    assert again.splitlines()[-1] == printed.splitlines()[-1]
    assert (tmp_path / "found" / "results.json").stat().st_mtime_ns == written, "measured again"
    Dataset.from_list([{"text": prose(1)}]).to_parquet(tmp_path / "corpus" / "validation.parquet")
    with pytest.raises(SystemExit, match="figures of other texts"):
        forgetting(tmp_path / "corpus", tmp_path / "found", pretrained)


def test_a_model_that_was_made_of_another_is_refused_before_anything_is_measured(tmp_path):
    for name, end in (("first", "<|endoftext|>"), ("second", "<|stop|>"), ("third", None)):
        tokenizer = build_text_tokenizer([prose(0)], 300)
        tokenizer.add_special_tokens({"eos_token": end} if end else {})
        tokenizer.save_pretrained(tmp_path / name)
    with pytest.raises(SystemExit, match="second has no token <.endoftext.>"):
        forgetting(tmp_path / "corpus", tmp_path / "found", tmp_path / "first", tmp_path / "second")
    with pytest.raises(SystemExit, match="third has neither a first nor a last token"):
        forgetting(tmp_path / "corpus", tmp_path / "found", tmp_path / "third")
    assert not (tmp_path / "found").exists()
