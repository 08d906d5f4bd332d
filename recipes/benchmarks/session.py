"""One session of a million tokens: memory that does not grow, and a last tenth as fast as the first."""

import time
from collections.abc import Iterator

from decode import Scripted
from hf_toolssm.evaluation.report import resident_mib
from hf_toolssm.generation.session import Session
from measure import in_new_process, reset_peak
from models import Scale, addition_model, solved_additions
from results import Result, Target

TOKENS_PER_DIGIT = 35
"""Fewer than a solution has, so that the problem outlasts the session."""

WARM_UP_DIGITS = 300
"""Of the addition that is solved first: it compiles all kernels."""

BYTES_PER_CELL = 8
"""Of the pointer tool's memory: a token id."""


def long_session(scale: Scale, path: str | None) -> Iterator[Result]:
    """One addition in an interpreter of its own: free-running if the model is trained, otherwise its solution."""
    points, cells = in_new_process(_run, scale.session, path)
    speeds = [tokens / seconds for tokens, seconds, _ in points[1:]]
    resident = [mib for _, _, mib in points]
    tool = cells * BYTES_PER_CELL / 2**20
    growth = max(resident) - resident[0] - tool
    yield Result(
        f"session of {sum(tokens for tokens, _, _ in points):,} tokens",
        "tokens/s",
        sum(tokens for tokens, _, _ in points) / sum(seconds for _, seconds, _ in points),
        memory_mib=growth,
        repetitions={"ours": 1},
        targets=[
            Target("MB beyond the tool's own", growth * 2**20 / 1e6, "<=", 16),
            Target("last tenth's speed over the first's", speeds[-1] / speeds[0], ">=", 0.95),
        ],
        details={
            "tokens_per_second_by_tenth": speeds,
            "resident_mib_by_tenth": resident,
            "tool_memory_mib": tool,
            "trained": path is not None,
        },
    )


def _run(tokens: int, path: str | None) -> tuple[list[tuple[int, float, float]], int]:
    """Tokens, seconds and resident MiB at the end of each tenth, behind a first point before them; cells written."""
    model, tokenizer = addition_model(path)

    def start(digits: int) -> tuple[Session, Scripted | None]:
        (solved,) = solved_additions(tokenizer, digits, 1)
        return Session.start(model, [solved.prompt]), Scripted([solved.solution]) if path is None else None

    warm_up, sampler = start(WARM_UP_DIGITS)
    warm_up.run(tokens, sampler=sampler)
    session, sampler = start(tokens // TOKENS_PER_DIGIT)
    reset_peak()
    points = [(0, 0.0, resident_mib())]
    for _ in range(10):
        begin = time.perf_counter()
        fed = session.run(tokens // 10, sampler=sampler)
        points.append((fed, time.perf_counter() - begin, resident_mib()))
    (row,) = session.rows
    if row.finished:
        raise RuntimeError(
            f"the session ended early ({row.error or 'complete'}): give a --model that solves additions"
        )
    return points, len(row.tools[0].memory)
