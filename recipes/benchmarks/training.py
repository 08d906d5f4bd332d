"""A whole training step: forward, loss, backward, AdamW."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.utils.import_utils import is_mambapy_available

from hf_toolssm import ToolMambaForCausalLM
from hf_toolssm.protocol.render import IGNORED
from hf_toolssm.training.freed_memory import keep_freed_memory
from measure import Contender, MatrixProduct, in_new_process, interleave, peak_mib, relative_difference, reset_peak
from models import ADDITION_SHAPE, Scale, addition_model, random_model, stock_model, training_batch
from results import Bound, Result, Target


def addition_batch(scale: Scale, path: str | None) -> Iterator[Result]:
    """A batch of the addition builder, with a model of the addition model's shape."""
    model, tokenizer = addition_model(path)
    rows, length = scale.train_batch
    batch = training_batch(tokenizer, rows, length)
    result = _against_stock(f"training, addition, {rows} x {length}", model, batch, scale)
    result.aim("ratio", ">=", 250)
    yield result


def large_model(scale: Scale, path: str | None) -> Iterator[Result]:
    """A model of the 130M shape on one row. A step of stock takes minutes."""
    del path
    model, _ = random_model(**scale.large_shape)
    batch = _random_batch(model.config.vocab_size, scale.large_train_tokens)
    result = _against_stock(f"training, 130M, 1 x {scale.large_train_tokens}", model, batch, scale)
    result.aim("ratio", ">=", 20)
    yield result


def by_length(scale: Scale, path: str | None) -> Iterator[Result]:
    """Time per token and peak memory of a step on one row, by its length."""
    del path
    # Alone, because memory that was freed before hides what is taken again.
    points = in_new_process(_measure_lengths, scale.train_lengths, scale.repetitions)
    per_token = {length: seconds / length for length, seconds, _ in points}
    shortest, longest = min(per_token), max(per_token)
    growth = Target(
        f"time/token at {longest:,} over {shortest:,}", per_token[longest] / per_token[shortest], "<=", 1.3
    )
    details = {"points": [dict(zip(("length", "seconds", "peak_mib"), point)) for point in points]}
    peaks = [peak for _, _, peak in points if peak is not None]
    if peaks:
        # Of a line, the last doubling adds twice what the one before it adds.
        doublings = (peaks[-1] - peaks[-2]) / (peaks[-2] - peaks[-3])
        slope = (peaks[-1] - peaks[0]) / (longest - shortest) * 1024
        details |= {"peak_kib_per_token": slope, "last_doubling_over_the_one_before": doublings}
    yield Result(
        f"training, addition, 1 x {longest:,}",
        "tokens/s",
        1 / per_token[longest],
        memory_mib=peaks[-1] if peaks else None,
        repetitions={"ours": scale.repetitions},
        targets=[growth, *([Target("peak's growth, doubled length", doublings, "<=", 2.1)] if peaks else [])],
        details=details,
    )


def _against_stock(name: str, model: ToolMambaForCausalLM, batch: dict[str, Tensor], scale: Scale) -> Result:
    """Stock is timed once and without a warm-up: one step of it outlasts all of ours."""
    stock = stock_model(model)
    difference = _difference(model, stock, batch)
    product = MatrixProduct(scale.product_size)
    contenders = {
        "ours": Contender(_step(model, batch), scale.repetitions),
        "product": product.contender(scale.repetitions),
    }
    if is_mambapy_available():
        contenders["mambapy"] = Contender(_step(stock_model(model, mambapy=True), batch), 1, warm_up=False)
    contenders["stock"] = Contender(_step(stock, batch), 1, warm_up=False)
    timings = interleave(contenders)
    tokens = batch["input_ids"].numel()
    rate = product.operations_per_second(timings["product"])
    return Result(
        name,
        "tokens/s",
        tokens / timings["ours"].seconds,
        stock=tokens / timings["stock"].seconds,
        mambapy=tokens / timings["mambapy"].seconds if "mambapy" in timings else None,
        bound=Bound("arithmetic", rate, tokens * rate / _operations(model, batch)),
        memory_mib=timings["ours"].peak_mib,
        stock_memory_mib=timings["stock"].peak_mib,
        difference=difference,
        repetitions={name: timing.repetitions for name, timing in timings.items()},
        details={"ours_seconds": timings["ours"].seconds, "stock_seconds": timings["stock"].seconds},
    )


def _step(model, batch: dict[str, Tensor]):
    """A training step of the model on the batch, as a function; memory is kept as the trainer keeps it."""
    keep_freed_memory()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def _difference(model, stock, batch: dict[str, Tensor]) -> float:
    """Of the logits of all real tokens."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ours, theirs = (each(**inputs, use_cache=False).logits for each in (model, stock))
    real = batch["attention_mask"].bool()
    return relative_difference(ours[real], theirs[real])


def _operations(model: ToolMambaForCausalLM, batch: dict[str, Tensor]) -> int:
    """Operations of the matrix products of a step: two per weight and token forwards, and twice that backwards.

    The head is needed only where a label is. Scan and convolution are left out, so the bound is never too low.
    """
    layers = [getattr(block.mixer, name) for block in model.backbone.layers for name in _PROJECTIONS]
    tokens = int(batch["attention_mask"].sum())
    labelled = int((batch["labels"][:, 1:] != IGNORED).sum())
    return 6 * (tokens * sum(layer.weight.numel() for layer in layers) + labelled * model.lm_head.weight.numel())


_PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj")


def _random_batch(vocabulary: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def _measure_lengths(lengths: tuple[int, ...], repetitions: int) -> list[tuple[int, float, float | None]]:
    """Length, seconds of a step and its peak in MiB above what was held before any step."""
    model, _ = random_model(**ADDITION_SHAPE)
    steps = {length: _step(model, _random_batch(model.config.vocab_size, length)) for length in lengths}
    steps[lengths[0]]()  # compiles
    peaks = []
    for step in steps.values():
        reset_peak()
        before = peak_mib()
        step()
        after = peak_mib()
        peaks.append(None if before is None or after is None else after - before)
    timings = interleave({str(length): Contender(step, repetitions) for length, step in steps.items()})
    return [(length, timings[str(length)].seconds, peak) for length, peak in zip(lengths, peaks)]
