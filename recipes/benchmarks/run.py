"""Measures this package against stock transformers and against the machine, on the same weights and inputs.

    python recipes/benchmarks/run.py --model outputs/addition
    python recipes/benchmarks/run.py --only decode_one_stream observation

prints a table and writes `--output`, a JSON file with every figure, the hardware and the date; a target that is missed
is shown as missed. Nothing else should run on the machine meanwhile. Of about fifteen minutes nearly all go into two
training steps of stock, in `training_addition` and `training_130m`. A column for mambapy is filled if that package is
installed.
"""

import dataclasses
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from transformers import HfArgumentParser
from transformers.utils import logging

import decode
import training
from building import building
from chat import conversation
from hf_toolssm.evaluation.report import hardware, write_json
from hf_toolssm.files import escape_unprintable
from models import FULL, SMALL, Scale
from observation import observation
from results import Result, table
from session import long_session

BENCHMARKS: dict[str, Callable[[Scale, str | None], Iterator[Result]]] = {
    "training_addition": training.addition_batch,
    "training_by_length": training.by_length,
    "training_130m": training.large_model,
    "decode_one_stream": decode.one_stream,
    "decode_batch": decode.batch,
    "decode_130m": decode.large_model,
    "speculative": decode.speculative,
    "observation": observation,
    "building": building,
    "session": long_session,
    "conversation": conversation,
}


@dataclass
class BenchmarkArguments:
    only: list[str] = field(
        default_factory=lambda: list(BENCHMARKS), metadata={"help": f"Some of {', '.join(BENCHMARKS)}."}
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "A model trained on addition, which then runs free. Without one, random weights of the same shape "
            "write known solutions token by token: the same work, but never in the compiled loop."
        },
    )
    output: Path = field(default=Path("outputs/benchmarks.json"), metadata={"help": "The JSON file."})
    scale: Literal["full", "small"] = field(
        default="full",
        metadata={"help": "small takes seconds and shows that all parts run; its targets mean nothing."},
    )


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(BenchmarkArguments)
    (options,) = parser.parse_args_into_dataclasses()
    unknown = [name for name in options.only if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; they are {', '.join(BENCHMARKS)}")
    logging.set_verbosity_error()  # stock says at every model that it has no CUDA kernels
    options.output.parent.mkdir(parents=True, exist_ok=True)
    scale = {"full": FULL, "small": SMALL}[options.scale]
    results: list[Result] = []
    for name in options.only:
        print(f"{name} ...", flush=True)
        for result in BENCHMARKS[name](scale, options.model):
            results.append(result)
            write_json(options.output, _content(options, scale, results))
        gc.collect()
    print(table(results))
    print(f"every figure is in {options.output}")


def _content(options: BenchmarkArguments, scale: Scale, results: list[Result]) -> dict:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "trained_model": options.model is not None,
        "scale": dataclasses.asdict(scale),
        "results": [result.to_dict() for result in results],
    }


if __name__ == "__main__":
    main()
