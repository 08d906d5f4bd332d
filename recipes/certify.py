"""Proves that a model does what its task's rule says, at every length, or names the contexts where it may not.

    python recipes/certify.py --model outputs/palindrome --output outputs/palindrome/certificate.json

Exits 0 where it is proved, and 1 where it is not. `recipes/verify_certificate.py` checks a certificate by other code.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.mixture import measured_task
from hf_toolssm.errors import CertificationError
from hf_toolssm.evaluation.certification.certificate import THEOREM, plot_margins, prove, write_boxes
from hf_toolssm.evaluation.report import hardware, training_facts, weights_digest, write_json
from hf_toolssm.files import escape_unprintable
from hf_toolssm.models.architectures import load_model

_NAMED = 10


@dataclass
class CertificationArguments:
    model: str = field(metadata={"help": "A folder or a Hub id with model and tokenizer."})
    output: str = field(
        metadata={"help": "The certificate, a .json file; its boxes lie beside it as .npz, its picture as .png."}
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
    write_json(path, certificate)
    plot_margins(proof, path.with_suffix(".png"))
    of = f"{int(asked.sum()):,} contexts of {proof.graph.j} tokens in which {task.name} asks the model"
    if proof.failing:
        errs = sum(high < 0 for *_, high in proof.failing)
        named = [
            f"  {low:10.3f} to {high:.3f}  {' '.join(node.tokens)} -> {node.right}"
            for node, low, high in proof.failing[:_NAMED]
        ]
        head = f"not proved: {len(proof.failing):,} of {of}; it errs in {errs:,} of them. Margins, the worst first:"
        sys.exit("\n".join([head, *named]))
    print(f"proved: all {of}, by a margin of at least {margin:.3f}, in {certificate['seconds']:.1f} s; {path}")


if __name__ == "__main__":
    main()
