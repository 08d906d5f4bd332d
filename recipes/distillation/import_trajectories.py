"""Makes training rows of mini-swe-agent's trajectories: of `messages` and `tools`, as `recipes/sft.py` takes them.

    python recipes/distillation/import_trajectories.py --trajectories outputs/agent --output outputs/distilled
    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/sft.py --dataset outputs/distilled \\
        --chat_template toolssm --output_dir outputs/distilled-model

Of the trajectories of `run_agent.py` those are kept that repaired the repository and are no longer than the mean of
those that did, among repositories of as many functions (the paper's section 4, task 6, c). Length is in characters of
what the model wrote and read. A row begins with the problem's text, as the task states it: what the teacher was told
beside it the student has to learn.

`--unchecked` takes trajectories of other tasks, of which no check is known: all that were submitted, as they are, and
the mean is that of all of them. `report.json` says of every file what became of it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from datasets import Dataset
from tqdm import tqdm
from transformers import HfArgumentParser

from hf_toolssm.errors import CorruptRowError
from hf_toolssm.evaluation.report import markdown_table, write_json
from hf_toolssm.files import atomic_write, escape_unprintable
from hf_toolssm.tools.bash import Bash
from hf_toolssm.tools.tool import facts_of
from hf_toolssm.training.message_rows import FEATURES
from trajectory_files import SUBMITTED, AgentTrajectory, read_trajectory

KEPT, LONGER = "kept", "longer than the mean"
UNSOLVED, OF_ANOTHER_TASK = "not repaired", "of another task: --unchecked takes it"
REFUSED = "refused"
SUFFIX = ".traj.json"
OTHER = "other"
"""In the place of a number of functions, of tasks that have none."""


@dataclass
class ImportArguments:
    trajectories: str = field(metadata={"help": "a folder; its files *.traj.json are read, at any depth"})
    output: str = field(metadata={"help": "a folder; its train.parquet and report.json are written anew"})
    unchecked: bool = field(default=False, metadata={"help": "take trajectories of other tasks too, if submitted"})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(ImportArguments).parse_args_into_dataclasses()
    folder = Path(options.trajectories)
    fates: dict[str, str] = {}
    usable: dict[str, AgentTrajectory] = {}
    format_errors = 0
    for path in tqdm(sorted(folder.rglob(f"*{SUFFIX}")), desc="reading", unit="file"):
        name = path.relative_to(folder).as_posix()
        try:
            trajectory = read_trajectory(path)
        except CorruptRowError as error:
            fates[name] = f"{REFUSED}: {error}"
            continue
        format_errors += trajectory.format_errors
        fates[name] = fate(trajectory, options.unchecked)
        if fates[name] == KEPT:
            usable[name] = trajectory
    means = mean_lengths(usable.values())
    fates |= {name: LONGER for name, each in usable.items() if length(each) > means[group(each)]}
    tools = [{"type": "function", "function": facts_of(Bash()).schemas["bash"]}]
    kept = [name for name, fate in fates.items() if fate == KEPT]
    rows = [{"id": name.removesuffix(SUFFIX), "messages": conversation(usable[name]), "tools": tools} for name in kept]
    report(Path(options.output), fates, usable, means, format_errors)
    if not rows:
        raise CorruptRowError(f"none of {len(fates)} files *{SUFFIX} in {folder} makes a row, for the reasons above")
    with atomic_write(Path(options.output, "train.parquet")) as path:
        Dataset.from_list(rows, FEATURES).to_parquet(path)


def fate(trajectory: AgentTrajectory, unchecked: bool) -> str:
    """What becomes of a trajectory that can be read, its length aside."""
    if trajectory.problem is None and not unchecked:
        return OF_ANOTHER_TASK
    if trajectory.ended != SUBMITTED:
        return f"ended by {trajectory.ended}"
    return KEPT if trajectory.problem is None or trajectory.problem["solved"] else UNSOLVED


def conversation(trajectory: AgentTrajectory) -> list[dict[str, Any]]:
    """The messages of a row: of our problems the user says the problem, in the place of the agent's instructions."""
    if trajectory.problem is None:
        return list(trajectory.messages)
    return [{"role": "user", "content": trajectory.problem["text"]}, *worked(trajectory)]


def worked(trajectory: AgentTrajectory) -> Sequence[dict[str, Any]]:
    """The messages from the model's first on."""
    first = next(at for at, message in enumerate(trajectory.messages) if message["role"] == "assistant")
    return trajectory.messages[first:]


def length(trajectory: AgentTrajectory) -> int:
    """Characters that the model wrote and read."""
    said = sum(len(message["content"]) + len(message.get("reasoning_content", "")) for message in worked(trajectory))
    calls = [call for message in worked(trajectory) for call in message.get("tool_calls", ())]
    return said + sum(len(call["function"]["arguments"]["command"]) for call in calls)


def group(trajectory: AgentTrajectory) -> str:
    """Those that a trajectory's length is compared with: the number of functions."""
    return OTHER if trajectory.problem is None else str(trajectory.problem["length"])


def mean_lengths(trajectories: Iterable[AgentTrajectory]) -> dict[str, float]:
    """The mean length of each group."""
    lengths = defaultdict(list)
    for each in trajectories:
        lengths[group(each)].append(length(each))
    return {name: mean(lengths[name]) for name in sorted(lengths, key=lambda name: (len(name), name))}


def report(
    output: Path,
    fates: Mapping[str, str],
    usable: Mapping[str, AgentTrajectory],
    means: Mapping[str, float],
    format_errors: int,
) -> None:
    """Says what became of every file, and writes it down."""
    kept = Counter(group(usable[name]) for name, fate in fates.items() if fate == KEPT)
    solved = Counter(group(each) for each in usable.values())
    table = [[name, str(solved[name]), f"{means[name]:,.0f}", str(kept[name])] for name in means]
    print(markdown_table(["functions", "solved", "mean characters", "kept"], table))
    for name, fate in fates.items():
        if fate.startswith(REFUSED):
            print(f"{name} is {fate}")
    counts = Counter(fate.partition(":")[0] for fate in fates.values())
    print(f"{len(fates)} files: " + ", ".join(f"{fate} {count}" for fate, count in counts.most_common()))
    print(f"{format_errors} replies in a wrong format were left out, and what the agent said to them")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "report.json", {"counts": counts, "mean_characters": means, "kept": kept, "files": fates})


if __name__ == "__main__":
    main()
