"""Proofs of the models of an experiment's runs: each is proved, its proof is verified, and it is attacked."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import ROOT
from hf_toolssm.evaluation.report import markdown_table, weights_digest, write_json
from hf_toolssm.hub.model_card import read_json
from hf_toolssm.models.architectures import load_model

_FACTS = ("proved", "j", "contexts", "asked", "margin", "hardware")


def prove(model: Path, attacked: int) -> None:
    """Writes `proof.json` into a model's folder, and the certificate beside it. What is there of these weights, and of
    as many tokens, is not done again.

    Args:
        model: a trained model's folder.
        attacked: the tokens that the attack feeds.

    Raises:
        SystemExit: one of the recipes ended with an error of its own.
    """
    path, certificate = model / "proof.json", model / "certificate.json"
    stated = {"weights": weights_digest(load_model(model)), "attack_tokens": attacked}
    if stated.items() <= _found(path).items():
        return
    claim = _found(certificate)
    if claim.get("weights") != stated["weights"]:
        certificate.unlink(missing_ok=True)
        why = _said("certify.py", ("proved:", "not proved:"), model, "--output", str(certificate))
        claim = _found(certificate) or {"proved": False, "why": why}  # there is none where nothing is bounded
    found = stated | {fact: claim.get(fact) for fact in _FACTS} | {"why": claim.get("why")}
    found |= {"prove_seconds": claim.get("seconds"), "open": len(claim.get("failing", ()))}
    found["errs"] = sum(each["at_most"] < 0 for each in claim.get("failing", ()))
    if claim["proved"]:
        began = time.perf_counter()
        found["verification"] = _said("verify_certificate.py", None, model, str(certificate))
        found["verify_seconds"] = round(time.perf_counter() - began, 2)
    began = time.perf_counter()
    found["attack"] = _said("attack.py", ("no error in", "an error behind"), model, "--tokens", str(attacked))
    found["attack_seconds"] = round(time.perf_counter() - began, 2)
    write_json(path, found)


def _found(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _said(recipe: str, expected: tuple[str, ...] | None, model: Path, *words: str) -> str:
    """What a recipe printed, from the first line on that says how it ended; all of it goes to `log.txt`.

    Args:
        expected: how such a line begins; None where any line does.
    """
    command = [sys.executable, f"recipes/{recipe}", "--model", str(model), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    with (model / "log.txt").open("a", encoding="utf-8") as log:
        log.write(done.stdout + done.stderr)
    lines = (done.stdout + done.stderr).splitlines()
    for at, line in enumerate(lines if "Traceback" not in done.stderr else ()):
        if expected is None or line.startswith(expected):
            return "\n".join(lines[at:]) if done.returncode else line
    raise SystemExit(f"{recipe} failed on {model.name}, see {model}/log.txt: repair it, and the same command goes on")


def proofs_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each of those that have `proofs`, by seed; empty where none has."""
    head = ["", "contexts", "asked", "margin by seed, or how many are open", "proved in", "verified in", "attack"]
    lines = [[label, *_cells(row["proofs"])] for label, row in rows.items() if "proofs" in row]
    return f"\n{markdown_table(head, lines)}\n" if lines else ""


def _cells(proofs: Sequence[Mapping[str, Any]]) -> list[str]:
    proved = [each["prove_seconds"] for each in proofs if each["prove_seconds"] is not None]
    verified = [each["verify_seconds"] for each in proofs if each["proved"]]
    errors = [each for each in proofs if each["attack"].startswith("an error")]
    fed = f"{min(each['attack_tokens'] for each in proofs):,} tokens: "
    return [
        *(f"{proofs[0][count]:,}" if proofs[0][count] is not None else "" for count in ("contexts", "asked")),
        " / ".join(map(_result, proofs)),
        f"at most {max(proved):.0f} s" if proved else "",
        f"at most {max(verified):.0f} s" if verified else "",
        fed + (f"an error with {len(errors)} of {len(proofs)}" if errors else "no error"),
    ]


def _result(proof: Mapping[str, Any]) -> str:
    if proof["why"] is not None:
        return proof["why"]
    if not proof["proved"]:
        return f"{proof['open']:,} open, errs in {proof['errs']:,} of them"
    return f"{proof['margin']:.3f}" + ("" if proof["verification"].startswith("verified:") else ", not verified")
