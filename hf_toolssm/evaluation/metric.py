"""Exactness as an `evaluate` metric, over the same function that the recipes use."""

import datasets
import evaluate

from hf_toolssm.evaluation.exactness import exactness

_DESCRIPTION = "Share of predictions that equal their reference exactly, with the number of problems beside it."


class Exactness(evaluate.Metric):
    """`Exactness().compute(predictions=[...], references=[...])` on answers or on trajectories written as text.

    Raises:
        ValueError: there is nothing to compare.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: lists of strings of equal length",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return exactness(predictions, references)
