"""A tool's long result: read by the scan in pieces, against token by token through stock transformers."""

from collections.abc import Iterator

import torch

from hf_toolssm.cache.cache_tensors import cache_tensors
from hf_toolssm.generation.model_runner import ModelRunner
from measure import Contender, interleave, relative_difference
from models import Scale, addition_model, solved_additions, stock_model
from results import Result


def observation(scale: Scale, path: str | None) -> Iterator[Result]:
    """Behind the prompt of an addition, with the logits and the states that both end in compared."""
    model, tokenizer = addition_model(path)
    stock = stock_model(model)
    prompt = solved_additions(tokenizer, scale.digits[1], 1)[0].prompt
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(tokenizer), (scale.observation,), generator=generator).tolist()
    runner = ModelRunner(model)
    before, _ = runner.feed(None, [prompt])
    read = {}

    def ours() -> None:
        read["ours"], _ = runner.feed(before, [tokens])

    @torch.no_grad()
    def prompt_through_stock():
        return stock(input_ids=torch.tensor([prompt]), use_cache=True).cache_params

    @torch.no_grad()
    def through_stock(cache) -> None:
        for token in tokens:
            output = stock(input_ids=torch.tensor([[token]]), cache_params=cache, use_cache=True)
            cache = output.cache_params
        read["stock"] = cache, output.logits[:, -1]

    timings = interleave(
        {
            "ours": Contender(ours, scale.repetitions),
            "stock": Contender(through_stock, 1, warm_up=False, prepare=prompt_through_stock),
        }
    )
    state, (cache, logits) = read["ours"], read["stock"]
    expected = cache_tensors(cache)
    states = [
        relative_difference(value[..., -expected[name].shape[-1] :], expected[name])
        for name, value in cache_tensors(state.cache).items()
    ]
    result = Result(
        f"observation of {len(tokens):,} tokens",
        "tokens/s",
        len(tokens) / timings["ours"].seconds,
        stock=len(tokens) / timings["stock"].seconds,
        memory_mib=timings["ours"].peak_mib,
        stock_memory_mib=timings["stock"].peak_mib,
        difference=max(relative_difference(state.logits, logits), *states),
        repetitions={name: timing.repetitions for name, timing in timings.items()},
        details={"logits_difference": relative_difference(state.logits, logits), "state_difference": max(states)},
    )
    result.aim("ratio", ">=", 100)
    result.aim("difference", "<=", 1e-4)
    yield result
