"""What a benchmark found: against whom, against which bound, and whether the target is met."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Target:
    """What a figure should be; a target that is missed is shown as missed."""

    quantity: str
    measured: float
    relation: Literal[">=", "<="]
    limit: float

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.relation == ">=" else self.measured <= self.limit

    def __str__(self) -> str:
        met = "met" if self.met else "MISSED"
        return f"{self.quantity} {self.relation} {self.limit:g}: {self.measured:.4g}, {met}"


@dataclass(frozen=True)
class Bound:
    """What the machine allows.

    Attributes:
        kind: which of its limits.
        machine: that limit as measured beside the figure, in bytes or operations per second.
        figure: the figure that it allows, in the figure's own unit.
    """

    kind: Literal["bandwidth", "arithmetic"]
    machine: float
    figure: float


@dataclass
class Result:
    """One figure. Larger is better for every unit that is a speed.

    Attributes:
        name: of the figure.
        unit: of `ours`, `stock` and `mambapy`.
        ours: median of this package.
        stock: median of stock transformers, on the same weights and inputs.
        mambapy: median of stock transformers with the scan of the package mambapy, on the same weights and inputs.
        bound: what the machine allows, if it is known.
        memory_mib: peak above what was held before, ours.
        stock_memory_mib: the same of stock.
        difference: largest difference of our logits from stock's, relative to the largest of them.
        repetitions: how many of each went into the median.
        targets: what the figures should be.
        details: anything else that was measured, by name.
    """

    name: str
    unit: str
    ours: float
    stock: float | None = None
    mambapy: float | None = None
    bound: Bound | None = None
    memory_mib: float | None = None
    stock_memory_mib: float | None = None
    difference: float | None = None
    repetitions: dict[str, int] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times faster than stock."""
        return None if self.stock is None else self.ours / self.stock

    @property
    def bound_share(self) -> float | None:
        """Ours as a share of what the machine allows."""
        return None if self.bound is None else self.ours / self.bound.figure

    def aim(
        self, quantity: Literal["ratio", "bound_share", "difference"], relation: Literal[">=", "<="], limit: float
    ):
        """Adds a target for one of the result's own figures."""
        self.targets.append(Target(quantity, getattr(self, quantity), relation, limit))

    def to_dict(self) -> dict[str, Any]:
        content = asdict(self)
        content["ratio"], content["bound_share"] = self.ratio, self.bound_share
        for target, written in zip(self.targets, content["targets"]):
            written["met"] = target.met
        return content


def table(results: Sequence[Result]) -> str:
    """The results as aligned text, one a line."""
    rows = [("name", "ours", "stock", "mambapy", "unit", "ratio", "of bound", "MiB", "difference", "targets")]
    for r in results:
        speeds = (_number(r.ours), _number(r.stock), _number(r.mambapy))
        share = "-" if r.bound_share is None else f"{r.bound_share:.0%}"
        difference = "-" if r.difference is None else f"{r.difference:.0e}"
        targets = "; ".join(map(str, r.targets)) or "-"
        rows.append((r.name, *speeds, r.unit, _number(r.ratio), share, _number(r.memory_mib), difference, targets))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
