"""A certificate holds what another machine can check, and one that claims something else is refused."""

import json
from hashlib import sha256

import pytest
from conftest import ROOT, import_recipe, random_model, run_script, written

from dataset_builders.catalog import load_task
from hf_toolssm.errors import NoRuleError
from hf_toolssm.protocol.task_tokenizer import build_task_tokenizer
from hf_toolssm.tools import make_tool


@pytest.fixture(scope="module")
def certificates():
    """recipes/certificate.py as a module."""
    return import_recipe("certificate")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A random model's wrong answer, cut off after 200 tokens, with its certificate."""
    folder, task = tmp_path_factory.mktemp("record"), load_task("binary_increment")
    specs = task.tools("tape")
    tokenizer = build_task_tokenizer(task.cells("tape"), [make_tool(spec) for spec in specs])
    random_model(tokenizer, specs).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = ["--model", folder / "model", "--task", "binary_increment", "--problem", "1011"]
    run_script("recipes/long_problem.py", *words, "--output", folder / "run", "--max_new_tokens", "200")
    return folder


@pytest.fixture
def claim(record):
    return json.loads((record / "run" / "certificate.json").read_text(encoding="utf-8"))


def test_a_certificate_says_all_that_is_needed_to_check_it(claim):
    assert (claim["problem"], claim["length"], claim["exact"]) == ("1011", 4, False)
    assert {
        "commits",
        "resumed",
        "hardware",
        "minutes",
        "peak_memory_mib",
        "weights_sha256",
        "first_wrong_symbol",
    } <= set(claim)


def test_a_wrong_answer_is_confirmed_as_wrong(record):
    said = run_script("recipes/certificate.py", record / "run" / "certificate.json", "--model", record / "model")
    assert "wrong or cut off, as the certificate says" in said
    assert "the weights are those" in said


def test_a_right_answer_is_confirmed_with_its_tokens(certificates, claim):
    tokens = len(written(load_task("binary_increment").solve("1011", "tape"))) + 1
    right = claim | {"exact": True, "complete": True, "answer_sha256": sha256(b"1100").hexdigest(), "tokens": tokens}
    with pytest.raises(certificates.CertificateError, match="counts other answers"):
        list(certificates.verify(right, ROOT, None, True))
    right |= {"right_answers": 1}
    assert list(certificates.verify(right, ROOT, None, True))[1:] == [
        "the answer is right",
        f"the right trajectory has as many tokens, {tokens}",
    ]
    with pytest.raises(certificates.CertificateError, match=f"has {tokens} tokens, and the certificate says 7"):
        list(certificates.verify(right | {"tokens": 7}, ROOT, None, True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact": True}, "says exact: True, but its answer is wrong"),
        ({"task_version": "0"}, "the task has changed since, from version 0"),
        ({"problem": "1010"}, "the problem is another one"),
        ({"length": 1_000_000}, "the problem has 4 symbols, not 1000000"),
        ({"problem": None}, "the problem is another one"),
        ({"weights_sha256": "0"}, "has other weights"),
        ({"answers": 2}, "counts other answers"),
        ({"right_answers": 1}, "counts other answers"),
    ],
)
def test_what_is_not_so_is_refused(certificates, record, claim, changes, message):
    with pytest.raises(certificates.CertificateError, match=message):
        list(certificates.verify(claim | changes, record, str(record / "model"), True))


def test_what_is_no_certificate_is_named(certificates, tmp_path):
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(certificates.CertificateError, match="is no certificate"):
        certificates.read(tmp_path / "other.json")
    with pytest.raises(certificates.CertificateError, match="cannot be read"):
        certificates.read(tmp_path / "none.json")


def test_a_field_of_another_type_is_named(certificates, tmp_path, claim):
    (tmp_path / "edited.json").write_text(json.dumps(claim | {"tokens": "200"}), encoding="utf-8")
    with pytest.raises(certificates.CertificateError, match="tokens is '200', and not of the type int"):
        certificates.read(tmp_path / "edited.json")


def test_a_certificate_of_the_users_own_machine_is_checked_wherever_its_folder_is_moved(record, tmp_path):
    table = (ROOT / "dataset_builders" / "machines" / "binary_increment.tm").read_text(encoding="utf-8")
    (tmp_path / "mine.tm").write_text(table, encoding="utf-8")
    words = ["--model", record / "model", "--task", tmp_path / "mine.tm", "--problem", "1011"]
    run_script("recipes/long_problem.py", *words, "--output", tmp_path / "run", "--max_new_tokens", "200")
    (tmp_path / "mine.tm").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    said = run_script("recipes/certificate.py", tmp_path / "moved" / "certificate.json")
    assert "the problem is mine, 4 symbols, given as a text" in said


def test_a_problem_without_an_answer_is_said_before_the_run(record, tmp_path):
    table = (ROOT / "dataset_builders" / "machines" / "binary_increment.tm").read_text(encoding="utf-8")
    (tmp_path / "hole.tm").write_text(table.replace("carry 0_ ->", "carry 0 ->"), encoding="utf-8")
    words = ["--model", record / "model", "--task", tmp_path / "hole.tm", "--problem", "11"]
    with pytest.raises(NoRuleError, match="hole has no rule for the state carry on '_'"):
        run_script("recipes/long_problem.py", *words, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_problem_is_either_given_or_drawn(record, capsys):
    with pytest.raises(SystemExit):
        run_script("recipes/long_problem.py", "--model", record / "model", "--output", record / "none")
    assert "give the --length of a random problem, or the --problem itself" in capsys.readouterr().err
