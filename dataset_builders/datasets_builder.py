"""The rows as the `datasets` library knows them: their features, and a builder of one problem set."""

from collections.abc import Iterator
from typing import Any

import datasets
from datasets.fingerprint import Hasher

from dataset_builders.builder import ProblemSet, generate_rows, shard_ranges
from dataset_builders.task import load_task, task_name

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "problem": datasets.List(datasets.Value("string")),
        "steps": datasets.List({"kind": datasets.Value("string"), "text": datasets.Value("string")}),
        "answer": datasets.Value("string"),
        "length": datasets.Value("int64"),
    }
)


class TrajectoryConfig(datasets.BuilderConfig):
    """A `datasets` configuration that holds a `ProblemSet`."""

    def __init__(self, problems: ProblemSet | None = None, **kwargs: Any) -> None:
        # The whole problem set is the version of the cache: another seed or size never meets an old cache.
        kwargs.setdefault("name", problems.name if problems else "default")
        super().__init__(**kwargs)
        self.problems = problems

    def create_config_id(self, config_kwargs: dict, custom_features: Any = None) -> str:
        return super().create_config_id({**config_kwargs, "problems": repr(self.problems)}, custom_features)


class TrajectoryBuilder(datasets.GeneratorBasedBuilder):
    """Builds one problem set with `datasets`: `download_and_prepare(num_proc=...)`, then `as_dataset()`.

    Example:
        problems = ProblemSet("addition", "max_length", 5, (("train", 1000),), "local")
        builder = TrajectoryBuilder(problems=problems)
    """

    BUILDER_CONFIG_CLASS = TrajectoryConfig

    def __init__(self, problems: ProblemSet, **kwargs: Any) -> None:
        # As the task writes them now, in case that its code changed and its version did not.
        samples = [next(generate_rows(problems, split, 0, 1)) for split, _ in problems.sizes]
        super().__init__(
            dataset_name=f"tool_{task_name(problems.task)}",
            config_name=problems.name,
            problems=problems,
            hash=Hasher.hash([load_task(problems.task).version, samples]),
            **kwargs,
        )

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=load_task(self.config.problems.task).title, features=FEATURES)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        # A list-valued argument is what `num_proc` shards.
        return [
            datasets.SplitGenerator(split, gen_kwargs={"split": split, "ranges": shard_ranges(size, 1_000)})
            for split, size in self.config.problems.sizes
        ]

    def _generate_examples(self, split: str, ranges: list[tuple[int, int]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for start, stop in ranges:
            yield from enumerate(generate_rows(self.config.problems, split, start, stop), start)
