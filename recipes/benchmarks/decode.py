"""Generation with the pointer tool in the loop, step by step, against `generate` of stock transformers.

Stock executes no tool: its steps do less work than ours.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_toolssm import ToolMambaForCausalLM
from hf_toolssm.generation.decoder import StepWeights
from hf_toolssm.generation.interface import Sampler
from hf_toolssm.generation.session import Session
from hf_toolssm.tools.pointer_memory import PointerMemory
from measure import Contender, MemoryRead, interleave
from models import Scale, Solved, addition_model, random_model, solved_additions, stepwise_difference, stock_model
from results import Bound, Result

DIFFERENCE_TOKENS = 32
"""Tokens whose logits are compared with stock's."""

BATCH = 32
LARGE_DIGITS = 5
"""Of the addition that the large model writes: a step costs the same behind any prompt, and stock reads one slowly."""


class InPython(PointerMemory):
    """The tool itself, of which the compiled loop knows nothing."""


class Greedy:
    """Chooses what a session would choose by itself. In a session with a sampler every token is a step of its own."""

    def choose(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        return logits.argmax(-1).tolist()

    def sampled_from(self) -> None:
        return None

    def stop(self, rows: Sequence[int]) -> list[bool]:
        return [False] * len(rows)


class Scripted(Greedy):
    """Has every row write a known solution, so that an untrained model does a trained one's work.

    Args:
        scripts: per row its tokens, observations included.
    """

    def __init__(self, scripts: Sequence[Sequence[int]]) -> None:
        self._scripts = [iter(script) for script in scripts]

    def choose(self, rows: Sequence[int], logits: Tensor) -> list[int]:
        return [next(self._scripts[row]) for row in rows]


def one_stream(scale: Scale, path: str | None) -> Iterator[Result]:
    """One addition, free and with every choice made outside."""
    yield from _additions(scale, path, scale.digits[0], 1, 80)


def batch(scale: Scale, path: str | None) -> Iterator[Result]:
    """Many additions side by side, free and with every choice made outside."""
    yield from _additions(scale, path, scale.digits[1], BATCH, 20)


def large_model(scale: Scale, path: str | None) -> Iterator[Result]:
    """A model of the 130M shape, one stream, with its weights in float32, bfloat16 and int8."""
    del path
    model, tokenizer = random_model(**scale.large_shape)
    read = MemoryRead(scale.read_mib)
    (solved,) = solved_additions(tokenizer, LARGE_DIGITS, 1)
    kinds: list[tuple[str, torch.dtype, StepWeights, int]] = [
        ("float32", torch.float32, None, 4),
        ("int8", torch.float32, "int8", 1),
        ("bfloat16", torch.bfloat16, None, 2),  # last, because it rounds the model
    ]
    for name, dtype, step_weights, bytes_per_weight in kinds:
        model = model.to(dtype)
        result = _large(name, model, solved, step_weights, bytes_per_weight, read, scale)
        if name == "float32":
            result.aim("ratio", ">=", 2)
            result.aim("bound_share", ">=", 0.85)
            result.aim("difference", "<=", 1e-4)
        yield result


def speculative(scale: Scale, path: str | None) -> Iterator[Result]:
    """Drafts that are verified by the model against a step for each token, where the compiled loop does not apply."""
    for forward in (False, True):
        model, tokenizer = addition_model(path)
        if forward:  # what hears of a layer's calls keeps every compiled step away
            model.backbone.layers[0].register_forward_hook(lambda *_: None)
        for rows in (1, 8):
            yield _speculative(model, tokenizer, scale, rows, "the model's forward" if forward else "tool in Python")


def _speculative(model: ToolMambaForCausalLM, tokenizer: Any, scale: Scale, rows: int, name: str) -> Result:
    prompts = [solved.prompt for solved in solved_additions(tokenizer, scale.digits[1], rows)]
    fed: dict[str, tuple[int, list]] = {}

    def contender(kind: str) -> Contender:
        def prepare() -> Session:
            session = Session.start(model, prompts, tools=[InPython(max_pointers=3)])
            if kind == "steps":
                session._may_draft = lambda: False
            return session

        def run(session: Session) -> None:
            session.run(scale.observation)
            fed[kind] = (session.tokens, [(row.answer, row.tool_calls) for row in session.rows])

        return Contender(run, scale.repetitions, prepare=prepare)

    timings = interleave({kind: contender(kind) for kind in ("drafts", "steps")})
    assert fed["drafts"] == fed["steps"], "drafts change no token"
    tokens = fed["steps"][0]
    return Result(
        f"decode, drafts, {rows} x {scale.digits[1]} digits, {name}",
        "tokens/s",
        tokens / timings["drafts"].seconds,
        stock=tokens / timings["steps"].seconds,
        repetitions={"ours": timings["drafts"].repetitions, "stock": timings["steps"].repetitions},
        details={"compared with": "the same session, a step for each token"},
    )


def _additions(scale: Scale, path: str | None, digits: int, rows: int, target: float) -> Iterator[Result]:
    """A trained model runs free; a random one writes the solutions."""
    model, tokenizer = addition_model(path)
    stock = stock_model(model)
    solved = solved_additions(tokenizer, digits, rows)
    prompts, solutions = [problem.prompt for problem in solved], [problem.solution for problem in solved]
    tokens = sum(map(len, solutions))
    difference = stepwise_difference(model, stock, solutions[0][:DIFFERENCE_TOKENS])
    samplers: dict[str, Callable[[], Sampler | None]] = {"with a sampler": lambda: Scripted(solutions)}
    if path is not None:
        samplers = {"free": lambda: None, "with a sampler": Greedy}
    ran: dict[str, Session] = {}

    def contender(name: str, make_sampler: Callable[[], Sampler | None]) -> Contender:
        def run(session: Session) -> None:
            session.run(sampler=make_sampler())
            ran[name] = session

        return Contender(run, scale.repetitions, prepare=lambda: Session.start(model, prompts))

    timings = interleave(
        {
            **{name: contender(name, make) for name, make in samplers.items()},
            "stock": _stock(stock, prompts, scale.stock_steps, scale.repetitions),
        }
    )
    for name in samplers:
        timing = timings[name]
        answered = [row.answer == problem.answer for row, problem in zip(ran[name].rows, solved)]
        result = Result(
            f"decode, addition, {rows} x {digits} digits, {name}",
            "tokens/s",
            tokens / timing.seconds,
            stock=rows * scale.stock_steps / timings["stock"].seconds,
            memory_mib=timing.peak_mib,
            stock_memory_mib=timings["stock"].peak_mib,
            difference=difference,
            repetitions={"ours": timing.repetitions, "stock": timings["stock"].repetitions},
            details={
                "tokens": tokens,
                "exact": ran[name].tokens == tokens and all(answered),
                "trained": path is not None,
            },
        )
        if name == "free":
            result.aim("ratio", ">=", target)
        result.aim("difference", "<=", 1e-4)
        yield result


def _large(
    name: str,
    model: ToolMambaForCausalLM,
    solved: Solved,
    step_weights: StepWeights,
    bytes_per_weight: int,
    read: MemoryRead,
    scale: Scale,
) -> Result:
    steps, stock_steps = scale.large_steps
    stock = stock_model(model)
    difference = stepwise_difference(model, stock, solved.solution[:stock_steps], step_weights)
    timings = interleave(
        {
            "ours": Contender(
                lambda session: session.run(steps, sampler=Scripted([solved.solution])),
                scale.repetitions,
                prepare=lambda: Session.start(model, [solved.prompt], step_weights=step_weights),
            ),
            "read": read.contender(scale.repetitions),
            "stock": _stock(stock, [solved.prompt], stock_steps, scale.repetitions),
        }
    )
    rate = read.bytes_per_second(timings["read"])
    return Result(
        f"decode, 130M, 1 stream, {name}",
        "steps/s",
        steps / timings["ours"].seconds,
        stock=stock_steps / timings["stock"].seconds,
        bound=Bound("bandwidth", rate, rate / _bytes_of_step(model, bytes_per_weight)),
        memory_mib=timings["ours"].peak_mib,
        stock_memory_mib=timings["stock"].peak_mib,
        difference=difference,
        repetitions={name: timing.repetitions for name, timing in timings.items()},
    )


def _stock(stock, prompts: Sequence[list[int]], steps: int, repetitions: int) -> Contender:
    """`generate` on from the prompts, of equal length, which are read before the time starts, as ours are."""
    ids = torch.tensor(prompts)

    @torch.no_grad()
    def prepare():
        return stock(input_ids=ids[:, :-1], use_cache=True).cache_params

    def work(cache) -> None:
        stock.generate(
            input_ids=ids[:, -1:],
            attention_mask=torch.ones_like(ids[:, -1:]),
            cache_params=cache,
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            use_cache=True,
        )

    return Contender(work, repetitions, prepare=prepare)


def _bytes_of_step(model: ToolMambaForCausalLM, bytes_per_weight: int) -> int:
    """What one step reads: the large matrices as they are stored, everything else in float32."""
    matrices = [getattr(block.mixer, name) for block in model.backbone.layers for name in _LARGE]
    stored = sum(layer.weight.numel() for layer in matrices) + model.lm_head.weight.numel()
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    embeddings = 0 if tied else model.get_input_embeddings().weight.numel()
    return stored * bytes_per_weight + (model.num_parameters() - stored - embeddings) * 4


_LARGE = ("in_proj", "x_proj", "out_proj")
