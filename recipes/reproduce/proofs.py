"""Proofs of the models of an experiment's runs: each is proved, its proof is verified, and it is attacked."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import ROOT
from hf_toolssm.evaluation.report import markdown_table, write_json

_FACTS = ("proved", "j", "contexts", "asked", "margin", "weights", "hardware")


def prove(model: Path, attacked: int) -> None:
    """Writes `proof.json` into a model's folder, and the certificate beside it; what is there is not done again.

    Args:
        model: a trained model's folder.
        attacked: the tokens that the attack feeds.

    Raises:
        SystemExit: one of the recipes ended with an error of its own.
    """
    path, certificate = model / "proof.json", model / "certificate.json"
    if path.exists():
        return
    if not certificate.exists():
        _said("certify.py", ("proved:", "not proved:"), model, "--output", str(certificate))
    claim = json.loads(certificate.read_text(encoding="utf-8"))
    found = {fact: claim[fact] for fact in _FACTS} | {"prove_seconds": claim["seconds"]}
    found |= {"open": len(claim["failing"]), "errs": sum(each["at_most"] < 0 for each in claim["failing"])}
    if claim["proved"]:
        began = time.perf_counter()
        found["verification"] = _said("verify_certificate.py", ("verified:",), model, str(certificate))
        found["verify_seconds"] = round(time.perf_counter() - began, 2)
    began = time.perf_counter()
    attack = _said("attack.py", ("no error in", "an error behind"), model, "--tokens", str(attacked))
    found |= {"attack": attack, "attack_tokens": attacked, "attack_seconds": round(time.perf_counter() - began, 2)}
    write_json(path, found)


def _said(recipe: str, expected: tuple[str, ...], model: Path, *words: str) -> str:
    """What a recipe printed, from the first line on that says how it ended; all of it goes to `log.txt`."""
    command = [sys.executable, f"recipes/{recipe}", "--model", str(model), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    with (model / "log.txt").open("a", encoding="utf-8") as log:
        log.write(done.stdout + done.stderr)
    lines = (done.stdout + done.stderr).splitlines()
    for at, line in enumerate(lines):
        if line.startswith(expected):
            return "\n".join(lines[at:]) if done.returncode else line
    raise SystemExit(f"{recipe} failed on {model.name}, see {model}/log.txt: repair it, and the same command goes on")


def proofs_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each of those that have `proofs`, by seed; empty where none has."""
    head = ["", "contexts", "asked", "margin by seed, or how many are open", "proved in", "verified in", "attack"]
    lines = [[label, *_cells(row["proofs"])] for label, row in rows.items() if "proofs" in row]
    return f"\n{markdown_table(head, lines)}\n" if lines else ""


def _cells(proofs: Sequence[Mapping[str, Any]]) -> list[str]:
    margins = [f"{each['margin']:.3f}" if each["proved"] else _open(each) for each in proofs]
    verified = [each["verify_seconds"] for each in proofs if each["proved"]]
    errors = [each for each in proofs if each["attack"].startswith("an error")]
    fed = f"{max(each['attack_tokens'] for each in proofs):,} tokens: "
    return [
        f"{proofs[0]['contexts']:,}",
        f"{proofs[0]['asked']:,}",
        " / ".join(margins),
        f"at most {max(each['prove_seconds'] for each in proofs):.0f} s",
        f"at most {max(verified):.0f} s" if verified else "",
        fed + (f"an error with {len(errors)} of {len(proofs)}" if errors else "no error"),
    ]


def _open(proof: Mapping[str, Any]) -> str:
    return f"{proof['open']:,} open, errs in {proof['errs']:,} of them"
