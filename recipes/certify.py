"""Proves that a model does what its task's rule says, at every length, or names the contexts where it may not.

    python recipes/certify.py --model outputs/palindrome --output outputs/palindrome/certificate.json

Exits 0 where it is proved, and 1 where it is not, with a table of the contexts that stay open.
`recipes/verify_certificate.py` checks a certificate by other code.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.mixture import measured_task
from hf_toolssm.errors import CertificationError
from hf_toolssm.evaluation.certification.certificate import THEOREM, plot_margins, prove, write_boxes
from hf_toolssm.evaluation.report import hardware, markdown_table, training_facts, weights_digest, write_json
from hf_toolssm.files import escape_unprintable, write_atomically
from hf_toolssm.models.architectures import load_model

_NAMED = 10


@dataclass
class CertificationArguments:
    model: str = field(metadata={"help": "A folder or a Hub id with model and tokenizer."})
    output: str = field(
        metadata={
            "help": "The certificate, a .json file; beside it lie boxes (.npz), a picture and what is open (_open.md)."
        }
    )
    task: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    variant: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    context: int | None = field(
        default=None, metadata={"help": "Tokens of a context: more give tighter bounds. By default the rule's."}
    )


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(CertificationArguments)
    (options,) = parser.parse_args_into_dataclasses()
    path = Path(options.output)
    if path.suffix != ".json":
        parser.error(f"--output {path} has to end in .json")
    task, variant = measured_task(training_facts(options.model), options.model, options.task, options.variant)
    began = time.perf_counter()
    try:
        rule = task.rule(variant)
        model, tokenizer = load_model(options.model), AutoTokenizer.from_pretrained(options.model)
        proof = prove(model, tokenizer, rule, rule.context if options.context is None else options.context)
    except CertificationError as error:
        sys.exit(f"not proved: {error}")
    asked = np.isfinite(proof.margins)
    margin = float(proof.margins.min())
    path.parent.mkdir(parents=True, exist_ok=True)
    boxes = path.with_suffix(".npz")
    certificate = {
        "proved": margin > 0,
        "theorem": THEOREM,
        "task": task.saved_name,
        "task_version": task.version,
        "variant": variant,
        "weights": weights_digest(model),
        "j": proof.graph.j,
        "contexts": len(proof.graph.nodes),
        "edges": len(proof.graph.edges),
        "asked": int(asked.sum()),
        "margin": margin,
        "median_margin": float(np.median(proof.margins[asked])),
        "seconds": round(time.perf_counter() - began, 2),
        "hardware": hardware(),
        "boxes": boxes.name,
        "boxes_sha256": write_boxes(boxes, proof),
        "failing": [
            {"tokens": node.tokens, "right": node.right, "margin": low, "at_most": high}
            for node, low, high in proof.failing
        ],
    }
    table = path.with_name(f"{path.stem}_open.md")
    table.unlink(missing_ok=True)  # an earlier proof's
    write_json(path, certificate)
    if proof.failing:
        write_atomically(table, open_table(certificate["failing"]) + "\n")
    plot_margins(proof, path.with_suffix(".png"))
    of = f"{int(asked.sum()):,} contexts of {proof.graph.j} tokens in which {task.name} asks the model"
    if proof.failing:
        errs = sum(high < 0 for *_, high in proof.failing)
        named = [
            f"  {low:10.3f} to {high:.3f}  {' '.join(node.tokens)} -> {node.right}"
            for node, low, high in proof.failing[:_NAMED]
        ]
        head = f"not proved: {len(proof.failing):,} of {of}; it errs in {errs:,} of them. Margins, the worst first:"
        sys.exit("\n".join([head, *named, f"All of them by the right token: {table}"]))
    print(f"proved: all {of}, by a margin of at least {margin:.3f}, in {certificate['seconds']:.1f} s; {path}")


def open_table(failing: Sequence[Mapping[str, Any]]) -> str:
    """The contexts that are not proved, by the token that is right there: how many, in how many the model errs in
    whatever run comes there, the widths between what a margin is at least and at most, and the worst context."""
    by_right: dict[str, list[Mapping[str, Any]]] = {}
    for each in failing:
        by_right.setdefault(each["right"], []).append(each)
    rows = []
    for right, found in sorted(by_right.items(), key=lambda each: -len(each[1])):
        widths = [each["at_most"] - each["margin"] for each in found]
        worst = min(found, key=lambda each: each["margin"])
        spread = " / ".join(f"{width:.3g}" for width in (min(widths), median(widths), max(widths)))
        errs = sum(each["at_most"] < 0 for each in found)
        named = f"`{' '.join(worst['tokens'])}`".replace("|", "\\|")
        rows.append([f"`{right}`".replace("|", "\\|"), f"{len(found):,}", f"{errs:,}", spread, named])
    return markdown_table(["right", "open", "errs", "widths: least / median / most", "the worst"], rows)


if __name__ == "__main__":
    main()
