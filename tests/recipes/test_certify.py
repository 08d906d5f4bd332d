"""A model is proved, by two programs that share no code; and neither proves what is not so."""

import functools
import hashlib
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import run_script
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoTokenizer

from dataset_builders.algorithms.machine_contexts import MachineContexts
from dataset_builders.catalog import MACHINES, load_task
from hf_toolssm.evaluation.certification import attack as attacks
from hf_toolssm.evaluation.certification.attack import attack
from hf_toolssm.evaluation.certification.certificate import prove, write_boxes
from hf_toolssm.models.architectures import load_model
from hf_toolssm.protocol.rule import Place

pytestmark = pytest.mark.slow

CONFIG = "recipes/configs/turing_machine_cpu.yaml"


def train(folder, *words):
    options = ("--config", CONFIG, "--task", "palindrome", "--output_dir", folder, "--eval_num_problems", "8")
    run_script("recipes/sft.py", *options, "--time_step_min", "0.5", "--time_step_max", "4", *words)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("certified") / "palindrome")


@pytest.fixture(scope="module")
def certificate(trained):
    path = trained / "certificate.json"
    printed = run_script("recipes/certify.py", "--model", trained, "--output", path)
    assert "proved: all" in printed
    return path


def certify(model, path, *words):
    return run_script("recipes/certify.py", "--model", model, "--output", path, *words)


def verify(model, path):
    return run_script("recipes/verify_certificate.py", "--model", model, path)


def copied(certificate, folder, change=lambda arrays: None, **facts):
    """A certificate whose arrays and facts are changed, and whose hash is right again."""
    arrays = dict(np.load(certificate.with_suffix(".npz")))
    change(arrays)
    np.savez(folder / "certificate.npz", **arrays)
    sha = hashlib.sha256((folder / "certificate.npz").read_bytes()).hexdigest()
    about = {**json.loads(certificate.read_text(encoding="utf-8")), "boxes_sha256": sha, **facts}
    (folder / "certificate.json").write_text(json.dumps(about), encoding="utf-8")
    return folder / "certificate.json"


@pytest.fixture(scope="module")
def broken(trained, tmp_path_factory):
    """The same model with the rows of two tokens exchanged in its head: it writes one for the other."""
    folder = tmp_path_factory.mktemp("broken") / "palindrome"
    shutil.copytree(trained, folder)
    model = load_model(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    left, right = tokenizer.convert_tokens_to_ids(["<|tape_left|>", "<|tape_right|>"])
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name, value in weights.items() if value.shape == model.lm_head.weight.shape][-1:]
    weights[name][[left, right]] = weights[name][[right, left]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_trained_model_is_proved_and_the_proof_is_verified(trained, certificate):
    about = json.loads(certificate.read_text(encoding="utf-8"))
    assert about["proved"]
    assert about["margin"] > 0
    assert certificate.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "verified" in verify(trained, certificate)


def test_an_attack_finds_no_error_in_what_is_proved(trained, certificate):
    assert "no error" in run_script("recipes/attack.py", "--model", trained, "--tokens", "300000")


def test_an_attack_ends_where_no_progress_is_shown(trained, monkeypatch):
    monkeypatch.setattr(attacks, "tqdm", functools.partial(tqdm, disable=True))
    rule = load_task("palindrome").rule("tape")
    found = attack(load_model(trained), AutoTokenizer.from_pretrained(trained), rule, 100_000)
    assert found.error is None
    assert found.tokens >= 100_000
    assert found.asked > 0.3 * found.tokens


def test_an_attack_of_nothing_or_on_what_has_no_rule_is_refused(trained, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_script("recipes/attack.py", "--model", trained, "--tokens", "0")
    assert "--tokens is at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="not attacked"):
        run_script("recipes/attack.py", "--model", trained, "--task", "logical_graph")


def test_a_model_that_errs_is_neither_proved_nor_verified(broken, certificate, tmp_path):
    found = attack(
        load_model(broken), AutoTokenizer.from_pretrained(broken), load_task("palindrome").rule("tape"), 10**6
    )
    assert found.error is not None
    assert found.error.right != found.error.wrote
    with pytest.raises(SystemExit, match="not proved"):
        certify(broken, tmp_path / "certificate.json")
    with pytest.raises(SystemExit, match="weights"):
        verify(broken, certificate)


def test_changed_weights_are_refused_with_the_hash_off(broken, certificate, tmp_path):
    from hf_toolssm.evaluation.report import weights_digest

    path = copied(certificate, tmp_path, weights=weights_digest(load_model(broken)))
    with pytest.raises(SystemExit, match="margin|left"):
        verify(broken, path)


def test_a_model_that_has_hardly_learned_is_not_proved(tmp_path):
    model = train(tmp_path / "untrained", "--max_steps", "20")
    with pytest.raises(SystemExit, match="not proved"):
        certify(model, tmp_path / "certificate.json")
    failing = json.loads((tmp_path / "certificate.json").read_text(encoding="utf-8"))["failing"]
    rows = (tmp_path / "certificate_open.md").read_text(encoding="utf-8").splitlines()[2:]
    cells = [row.replace("\\|", "").split(" | ") for row in rows]
    assert [int(row[1].replace(",", "")) for row in cells] == sorted(
        Counter(each["right"] for each in failing).values(), reverse=True
    )
    assert sum(int(row[2].replace(",", "")) for row in cells) == sum(each["at_most"] < 0 for each in failing)
    widths = [each["at_most"] - each["margin"] for each in failing]
    most = max(float(row[3].rpartition(" / ")[2]) for row in cells)
    assert most == pytest.approx(max(widths), rel=0.01)


def test_a_proof_leaves_no_table_of_open_contexts(trained, tmp_path):
    (tmp_path / "certificate_open.md").write_text("of an earlier one", encoding="utf-8")
    certify(trained, tmp_path / "certificate.json")
    assert not (tmp_path / "certificate_open.md").exists()


def test_another_rule_than_that_it_was_trained_on_is_not_proved(trained, tmp_path):
    table = (MACHINES / "palindrome.tm").read_text(encoding="utf-8")
    swapped = table.replace("seek_a ab -> seek_a R", "seek_a ab -> seek_b R")
    assert swapped != table
    (tmp_path / "palindrome.tm").write_text(swapped, encoding="utf-8")
    with pytest.raises(SystemExit, match="not proved"):
        certify(trained, tmp_path / "certificate.json", "--task", tmp_path / "palindrome.tm")


def test_contexts_that_are_too_short_are_named(trained, tmp_path):
    with pytest.raises(SystemExit, match="do not determine"):
        certify(trained, tmp_path / "certificate.json", "--context", 4)


class Without(MachineContexts):
    """The rule, but an observation never comes."""

    def place(self, state):
        place = super().place(state)
        return Place(place.right, {token: then for token, then in place.follows.items() if token != "<|tape_end|>"})


def test_an_observation_that_is_left_out_is_missed(trained, certificate, tmp_path):
    model, tokenizer = load_model(trained), AutoTokenizer.from_pretrained(trained)
    about = json.loads(certificate.read_text(encoding="utf-8"))
    proof = prove(model, tokenizer, Without(load_task("palindrome").machine), about["j"])
    assert not proof.failing
    sha = write_boxes(tmp_path / "certificate.npz", proof)
    (tmp_path / "certificate.json").write_text(json.dumps({**about, "boxes_sha256": sha}), encoding="utf-8")
    with pytest.raises(SystemExit, match="missing"):
        verify(trained, tmp_path / "certificate.json")


def narrower(arrays):
    high, low = arrays["high_1"], arrays["low_1"]
    at = np.unravel_index((high - low).argmax(), high.shape)
    high[at] -= (high[at] - low[at]) / 2


def without_a_node(arrays):
    for name in arrays:
        arrays[name] = np.delete(arrays[name], 100, axis=0)


def endless(arrays):
    arrays["high_0"][50] = np.inf


def not_a_number(arrays):
    arrays["low_0"][50] = np.nan


@pytest.mark.parametrize(
    ("change", "reason"),
    [(narrower, "is left by"), (without_a_node, "is missing"), (endless, "infinity"), (not_a_number, "NaN")],
)
def test_a_certificate_that_was_changed_is_refused(trained, certificate, tmp_path, change, reason):
    with pytest.raises(SystemExit, match=reason):
        verify(trained, copied(certificate, tmp_path, change))


def test_boxes_that_are_others_than_those_hashed_are_refused(trained, certificate, tmp_path):
    path = copied(certificate, tmp_path, boxes_sha256="0" * 64)
    with pytest.raises(SystemExit, match="npz|boxes"):
        verify(trained, path)
