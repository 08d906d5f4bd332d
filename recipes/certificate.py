"""What a record claims, and how anyone checks it.

    python recipes/certificate.py recipes/records/addition_1000000.json --model outputs/addition

reads a certificate that `recipes/long_problem.py` wrote, states its problem again from task, length and seed, solves
it in the task's other way, and compares the hashes. It then solves it step by step with the real tool and compares the
number of tokens, where a trajectory fits into memory and is made of cells. With `--model` the weights must be those of
the run.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataset_builders.catalog import load_task
from dataset_builders.task import Task, example_rng
from hf_toolssm.errors import DidNotHaltError, ToolSSMError
from hf_toolssm.evaluation.report import weights_digest
from hf_toolssm.files import escape_unprintable
from hf_toolssm.models.architectures import load_model

ROOT = Path(__file__).parents[1]


FIELDS = {
    **dict.fromkeys(("task", "task_version", "variant", "problem_sha256", "answer_sha256", "weights_sha256"), str),
    **dict.fromkeys(("length", "seed", "tokens"), int),
    **dict.fromkeys(("complete", "exact"), bool),
}
"""What is checked of a certificate; beside it the problem as a text, or null for one that is drawn."""


class CertificateError(ToolSSMError):
    """A certificate that cannot be read, or that claims what is not so."""


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description="Checks what a certificate claims.")
    parser.add_argument("certificate", type=Path, help="the JSON file")
    parser.add_argument("--model", help="a folder or a Hub id, which must hold the weights of the run")
    parser.add_argument("--answer-only", action="store_true", help="do not count the right trajectory's tokens")
    options = parser.parse_args()
    folder = options.certificate.parent
    for line in verify(read(options.certificate), folder, options.model, not options.answer_only):
        print(line, flush=True)


def read(path: Path) -> dict[str, Any]:
    """A certificate's content.

    Raises:
        CertificateError: the file is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path} cannot be read as a certificate: {error}") from error
    if not isinstance(content, dict) or not (FIELDS.keys() | {"problem"}) <= content.keys():
        raise CertificateError(f"{path} is no certificate: recipes/long_problem.py writes one")
    for name, kind in FIELDS.items():
        if type(content[name]) is not kind:
            raise CertificateError(f"{path}: {name} is {content[name]!r}, and not of the type {kind.__name__}")
    return content


def verify(claim: Mapping[str, Any], folder: Path, model: str | None, count_tokens: bool) -> Iterator[str]:
    """Checks a claim, and says what holds, a line each.

    Args:
        claim: what `read` gives.
        folder: where the certificate lies, beside it a table of the user's own.
        model: a folder or a Hub id, which must hold the weights of the run; None checks no weights.
        count_tokens: whether to solve the problem step by step.

    Raises:
        CertificateError: something does not hold.
    """
    task = load_task(claim["task"], beside=folder)
    if task.version != claim["task_version"]:
        raise CertificateError(
            f"the task has changed since, from version {claim['task_version']} to {task.version}: check it with the "
            f"package of commit {claim.get('commits')}, or with the same table"
        )
    problem = state_problem(task, claim)
    if digest(problem) != claim["problem_sha256"]:
        raise CertificateError("the problem is another one: the certificate was edited")
    if task.length(problem) != claim["length"]:
        raise CertificateError(f"the problem has {task.length(problem):,} {task.unit}, not {claim['length']}")
    origin = f"seed {claim['seed']}" if claim["problem"] is None else "given as a text"
    yield f"the problem is {task.name}, {claim['length']:,} {task.unit}, {origin}"
    answers = [right for _, right in task.dialogue(problem, claim["variant"]) if right is not None]
    right = digest("\n".join(answers)) == claim["answer_sha256"]
    if (right and claim["complete"]) != claim["exact"]:
        raise CertificateError(
            f"the certificate says exact: {claim['exact']}, but its answer is {'right' if right else 'wrong'}"
        )
    if "answers" in claim:  # records of one turn are older than this count
        all_right = claim["right_answers"] == len(answers)
        if claim["answers"] != len(answers) or all_right < claim["exact"] or right < all_right:
            raise CertificateError("the certificate counts other answers than the problem has, or than are right")
    yield "the answer is right" if claim["exact"] else "the answer is wrong or cut off, as the certificate says"
    if model is not None:
        if weights_digest(load_model(model)) != claim["weights_sha256"]:
            raise CertificateError(f"{model} has other weights than the model that made the record")
        yield f"the weights are those of {model}"
    if claim["exact"] and count_tokens:
        yield _count(task, problem, claim)


def _count(task: Task, problem: str, claim: Mapping[str, Any]) -> str:
    if not task.cells(claim["variant"]):
        return "tokens not counted: its steps are texts, whose tokens are a tokenizer's"
    try:
        cells = list(task.solve(problem, claim["variant"]).cells())
        tokens = len(cells) - len(problem) + 1  # behind the problem, and the end token
    except DidNotHaltError as error:
        return f"tokens not counted: {error}"
    if tokens != claim["tokens"]:
        raise CertificateError(
            f"the right trajectory has {tokens:,} tokens, and the certificate says {claim['tokens']:,}"
        )
    return f"the right trajectory has as many tokens, {claim['tokens']:,}"


def state_problem(task: Task, claim: Mapping[str, Any]) -> str:
    """The problem that was given as a text, or drawn by task, length and seed."""
    if claim["problem"] is not None:
        return claim["problem"]
    rng = example_rng("long problem", task.name, claim["length"], claim["seed"])
    return task.sample_test(rng, claim["length"])


def digest(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def commit() -> str | None:
    """The commit of this package's source, marked where files differ from it; None outside of a repository."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    main()
