"""What a fine-tuning forgets: lm-eval's bits per byte of held-out texts, of a checkpoint and of what was made of it.

    pip install -c constraints.txt -e ".[lm-eval]"
    python recipes/harness/forgetting.py --models outputs/pretrained outputs/function-calling --corpus outputs/corpus

`held_out_texts.yaml` is the task. Every text is read in pieces of 4,096 tokens; a state begins anew with each, as
lm-eval has no state to pass on. Weights that were measured on that corpus are not measured again.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase

from hf_toolssm.evaluation.report import hardware, markdown_table, weights_digest, write_json
from hf_toolssm.files import escape_unprintable
from hf_toolssm.models.architectures import load_model

TASK = Path(__file__).with_name("held_out_texts.yaml")
MEASURED_AT_ONCE = 4_096
"""Tokens of a piece, as `recipes/pretraining/pretrain.py` measures."""


@dataclass
class ForgettingArguments:
    models: list[str] = field(metadata={"help": "folders or repositories of the Hub; first the one fine-tuned from"})
    corpus: str = field(default="outputs/corpus", metadata={"help": "a dataset of `text` with a split `validation`"})
    output: Path = field(default=Path("outputs/forgetting"), metadata={"help": "folder of the results"})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(ForgettingArguments).parse_args_into_dataclasses()
    tokenizers = [AutoTokenizer.from_pretrained(name) for name in options.models]
    begin = begin_of(tokenizers[0], options.models[0])
    prefixes = [prefix_of(*each, begin) for each in zip(tokenizers, options.models, strict=True)]
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.json"
    texts = load_dataset(options.corpus, split="validation")["text"][:]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"texts_sha256": digest, "models": {}}
    if known["texts_sha256"] != digest:
        raise SystemExit(f"{path} holds figures of other texts: name another folder by --output")
    found = []
    for name, tokenizer, prefix in zip(options.models, tokenizers, prefixes, strict=True):
        model = load_model(name).eval().to(PartialState().device)
        weights = f"{weights_digest(model)} behind {begin}"
        if weights not in known["models"]:
            known["models"][weights] = {"model": name, **measure(model, tokenizer, prefix, options.corpus)}
            write_json(path, known)
        found.append({**known["models"][weights], "model": name})
    print(table(found))


def begin_of(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The token behind which a text's first token is predicted."""
    begin = tokenizer.bos_token or tokenizer.eos_token
    if begin is None:
        raise SystemExit(f"the tokenizer of {name} has neither a first nor a last token, behind which a text begins")
    return str(begin)


def prefix_of(tokenizer: PreTrainedTokenizerBase, name: str, begin: str) -> int:
    """That token's number in the vocabulary of another model, which has it if it was made of the first."""
    if begin not in tokenizer.get_vocab():
        raise SystemExit(f"{name} has no token {begin}, behind which texts begin: it was not made of the first model")
    return int(tokenizer.get_vocab()[begin])


def measure(model: Any, tokenizer: PreTrainedTokenizerBase, prefix: int, corpus: str) -> dict[str, Any]:
    """The figures of a model, by lm-eval.

    Args:
        prefix: the token behind which a text's first token is predicted.
        corpus: the dataset that stands in place of the task's own.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: pip install -c constraints.txt -e '.[lm-eval]'") from error
    task = yaml.safe_load(TASK.read_text(encoding="utf-8")) | {"dataset_path": corpus}
    said = lm_eval.simple_evaluate(
        HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            max_length=MEASURED_AT_ONCE,
            prefix_token_id=prefix,
            add_bos_token=False,
        ),
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
    )
    figures = said["results"][task["task"]]
    return {
        "texts": said["n-samples"][task["task"]]["effective"],
        "bits_per_byte": round(figures["bits_per_byte,none"], 4),
        "byte_perplexity": round(figures["byte_perplexity,none"], 4),
        "lm_eval": lm_eval.__version__,
        "hardware": hardware(),
    }


def table(found: list[dict[str, Any]]) -> str:
    """One line a model, with its distance from the first."""
    first = found[0]["bits_per_byte"]
    differences = [each["bits_per_byte"] - first for each in found]
    lines = [[each["model"], f"{first + more:.4f}", f"{more:+.4f}"] for each, more in zip(found, differences)]
    return markdown_table(["model", "bits per byte", "beside the first"], lines)


if __name__ == "__main__":
    main()
