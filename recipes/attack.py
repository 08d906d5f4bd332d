"""Searches for a run on which a model errs, whether it is proved or not.

    python recipes/attack.py --model outputs/palindrome --tokens 10000000

Exits 0 where every token was right, and 1 with the end of the first run where one was not, which the same seed finds
again. How it searches stands in `hf_toolssm/evaluation/certification/attack.py`.
"""

import sys
from dataclasses import dataclass, field

from transformers import AutoTokenizer, HfArgumentParser

from dataset_builders.mixture import measured_task
from hf_toolssm.errors import CertificationError
from hf_toolssm.evaluation.certification.attack import attack
from hf_toolssm.evaluation.report import training_facts
from hf_toolssm.files import escape_unprintable
from hf_toolssm.models.architectures import load_model

_SHOWN = 40


@dataclass
class AttackArguments:
    model: str = field(metadata={"help": "A folder or a Hub id with model and tokenizer."})
    tokens: int = field(default=10_000_000, metadata={"help": "How many are fed, all runs together."})
    task: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    variant: str | None = field(default=None, metadata={"help": "By default the one that the model was trained on."})
    seed: int = field(default=0, metadata={"help": "Another seed walks other ways."})


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(AttackArguments)
    (options,) = parser.parse_args_into_dataclasses()
    if options.tokens < 1:
        parser.error(f"--tokens is at least 1, not {options.tokens}")
    task, variant = measured_task(training_facts(options.model), options.model, options.task, options.variant)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    try:
        found = attack(load_model(options.model), tokenizer, task.rule(variant), options.tokens, options.seed)
    except CertificationError as error:
        sys.exit(f"not attacked: {error}")
    if found.error is None:
        print(f"no error in {found.tokens:,} tokens, of which the model writes {found.asked:,}")
        return
    behind, right, wrote = " ".join(found.error.tokens[-_SHOWN:]), found.error.right, found.error.wrote
    sys.exit(f"an error behind {behind}\nright: {right}\nwrote: {wrote}")


if __name__ == "__main__":
    main()
