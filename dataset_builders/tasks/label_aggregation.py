"""Aggregation over real text: how many examples have a label, or which label is the most frequent (PAPER, task 7).

The questions are some of those of Oolong's synthetic half (arXiv 2511.02817): over all examples, over those of a user,
or over those before a date. The labelled texts are real (`labelled_texts.py`); users and dates are made up, as
Oolong's are: four times of five an example is one of the busiest fifth of the users, else any one's.

Worked example, `2 examples, gold; seed 1233`, where a label stands in the place of the text, with the labels of TREC:

    user    2022-01-29, user 721
            number
            2022-06-29, user 924
            entity
            How many of user 924 are entity? Start at 0.
    call    put {"key":"user 924","value":""}
            stored
    call    put {"key":"start","value":"0"}
            stored
    call    put {"key":"filter","value":"user"}
            stored
    call    put {"key":"goal","value":"label entity"}
            stored
    call    get {"key":"start"}
            found: 0
    call    put {"key":"label abbreviation","value":"0"}
            stored
            ... and so on for every label ...
    call    get {"key":"filter"}
            found: user
    call    next_line
            line: 2022-01-29, user 721
    call    get {"key":"user 721"}
            absent
    call    skip_line
            skipped
    call    get {"key":"filter"}
            found: user
    call    next_line
            line: 2022-06-29, user 924
    call    get {"key":"user 924"}
            found:
    call    next_line
            line: entity
    call    add {"key":"label entity","amount":1}
            found: 1
    call    put {"key":"reached 1","value":"entity"}
            stored
    call    put {"key":"most","value":"entity"}
            stored
    call    get {"key":"filter"}
            found: user
    call    next_line
            line: How many of user 924 are entity? Start at 0.
    call    get {"key":"goal"}
            found: label entity
    call    get {"key":"label entity"}
            found: 1
    answer  1

So one example is fetched at a time, labelled by the model (in `add`), and counted in the store; nothing is carried in
the state from one example to the next, and no number is compared. The store does both: a label that is the first to
reach a count leads from then on, and a date is before another if the other's key stands behind it in a sorted list.
Training starts counts at up to 9,999, so that five examples show numbers of any size; tests start at 0.

Variants:
    retrieval: as above.
    single_pass: has the same tools, calls none, and answers at once.

Adversarial set:
    gold: labels in the place of the texts, so that nothing but the aggregation can be wrong.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, NamedTuple

from dataset_builders.algorithms.labelled_texts import LabelledText, LabelledTexts, labelled_texts
from dataset_builders.algorithms.memory_texts import quoted
from dataset_builders.task import Task, example_rng
from hf_toolssm.errors import InvalidProblemError
from hf_toolssm.protocol.recorder import Recorder
from hf_toolssm.protocol.trajectory import Trajectory
from hf_toolssm.tools.key_value import FOUND

MOST = "most"
FILTERS = ("all", "user", "before")
QUESTIONS = tuple(f"{goal}, {over}" for goal in ("count", MOST) for over in FILTERS)
"""Kinds of questions."""

MOST_START_DIGITS = 4
LARGEST_USER = 999
_FIRST_DAY, _DAYS = date(2022, 1, 1), 1_461
_PROBLEM = re.compile(r"([1-9]\d*) examples(, tested)?(, gold)?; seed (\d+)|tested text (\d+)")
_LABEL = "label "


class Example(NamedTuple):
    """One that a question may be about."""

    day: str
    user: int
    text: str
    label: str


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        kind: one of `QUESTIONS`.
        examples: in the order in which they are shown.
        label: whose examples are counted; None where the most frequent one is asked for.
        over: which examples: "all", "user" or "before".
        value: the user or the date; "" for all.
        start: of every count.
    """

    examples: Sequence[Example]
    label: str | None
    over: str
    value: str
    start: int

    @property
    def kind(self) -> str:
        return f"{MOST if self.label is None else 'count'}, {self.over}"

    def is_meant(self, example: Example) -> bool:
        """Whether the question is about an example."""
        return {"all": True, "user": str(example.user) == self.value, "before": example.day < self.value}[self.over]

    def labels(self) -> list[str]:
        """Those of the examples that are meant, in their order."""
        return [example.label for example in self.examples if self.is_meant(example)]

    def counts(self) -> Counter[str]:
        """How many of the examples that are meant have each label."""
        return Counter(self.labels())

    def answer(self) -> str:
        """The right one."""
        counts = self.counts()
        return str(self.start + counts[self.label]) if self.label is not None else counts.most_common(1)[0][0]

    def text(self) -> str:
        """What the user writes: an example is two lines, and the question the last one."""
        which = {"all": "", "user": f" of user {self.value}", "before": f" before {self.value}"}[self.over]
        asked = f"Which label is most frequent{which}?" if self.label is None else f"How many{which} are {self.label}?"
        lines = [f"{each.day}, user {each.user}\n{each.text}" for each in self.examples]
        return "\n".join([*lines, f"{asked} Start at {self.start}."])


class LabelAggregation(Task):
    """See the module's text."""

    title = "Aggregation over labelled texts: one at a time is fetched, labelled, and counted in a store"
    version = "1"
    variants: Sequence[str] = ("retrieval", "single_pass")
    adversarial: Sequence[str] = ("gold",)
    unit = "examples"

    @property
    def environment(self) -> str:
        return f"{labelled_texts().about}; users and dates are made up"

    def tools(self, variant: str) -> list[dict[str, Any]]:
        return [{"name": "lines"}, {"name": "key_value"}]

    def cells(self, variant: str) -> Sequence[str]:
        return ()

    def sample_training(self, rng: random.Random, max_length: int) -> str:
        return self._problem(rng, rng.randint(1, max_length), ", gold" * (rng.random() < 0.25))

    def sample_test(self, rng: random.Random, length: int) -> str:
        return self._problem(rng, length, ", tested")

    def sample_adversarial(self, name: str, rng: random.Random, length: int, index: int) -> str:
        if name not in self.adversarial:
            raise self.unknown_set(name)
        return self._problem(rng, length, ", tested, gold")

    def _problem(self, rng: random.Random, length: int, kind: str) -> str:
        return f"{length} examples{kind}; seed {rng.getrandbits(32)}"

    def held_out(self, problem: str) -> bool:
        found = _read(problem)
        return bool(found[2] or found[5])

    def length(self, problem: str) -> int:
        return int(_read(problem)[1] or 1)

    def question(self, problem: str) -> Question:
        """What a problem asks.

        Raises:
            InvalidProblemError: the problem is none.
            LabelledTextsError: there are no texts, see `labelled_texts`.
        """
        found, texts = _read(problem), labelled_texts()
        rng = example_rng(self.name, problem)
        if found[5]:
            if int(found[5]) >= len(texts.tested):
                raise InvalidProblemError(f"there are {len(texts.tested):,} tested texts: {problem!r}")
            return Question(_examples(rng, [texts.tested[int(found[5])]]), None, "all", "", 0)
        of_tests, gold, length = bool(found[2]), bool(found[3]), int(found[1])
        start = 0 if of_tests or rng.random() < 0.2 else rng.randrange(10 ** rng.randint(1, MOST_START_DIGITS))
        goal, over = rng.choice(QUESTIONS).split(", ")
        while True:
            examples = _examples(rng, _drawn(rng, texts, length, of_tests, gold))
            one = rng.choice(examples)
            value = {"all": "", "user": str(one.user), "before": _day(rng)}[over]
            label = None if goal == MOST else rng.choice([one.label, rng.choice(texts.labels)])
            question = Question(examples, label, over, value, start)
            best = question.counts().most_common(2)
            if label is not None or (best and (len(best) == 1 or best[0][1] > best[1][1])):
                return question

    def solve(self, problem: str, variant: str) -> Trajectory:
        question = self.question(problem)
        pen = Recorder(question.text(), *self.make_tools(variant))
        answer = self._retrieved(pen, question) if variant == "retrieval" else question.answer()
        pen.begin_answer()
        pen.output(answer)
        return pen.trajectory()

    def _retrieved(self, pen: Recorder, question: Question) -> str:
        def put(key: str, value: str) -> str:
            return pen.call("put", f'{{"key":{quoted(key)},"value":{quoted(value)}}}')

        def get(key: str) -> str:
            return pen.call("get", f'{{"key":{quoted(key)}}}')

        def is_meant(example: Example, over: str) -> bool:
            if over == "user":
                return get(f"user {example.user}").startswith(FOUND)
            after = f"before {example.day}"
            return over == "all" or bool(pen.call("list", f'{{"after":{quoted(after)},"prefix":"before "}}'))

        if question.over != "all":
            put(f"{question.over} {question.value}", "")
        put("start", str(question.start))
        put("filter", question.over)
        put("goal", MOST if question.label is None else f"label {question.label}")
        start = get("start").removeprefix(FOUND)
        for label in labelled_texts().labels:
            put(f"label {label}", start)
        over = get("filter").removeprefix(FOUND)
        for example in question.examples:
            pen.call("next_line")
            if not is_meant(example, over):
                pen.call("skip_line")
            else:
                pen.call("next_line")
                count = pen.call("add", f'{{"key":{quoted(f"label {example.label}")},"amount":1}}').removeprefix(FOUND)
                if put(f"reached {count}", example.label) == "stored":
                    put(MOST, example.label)
            over = get("filter").removeprefix(FOUND)
        pen.call("next_line")
        return get(get("goal").removeprefix(FOUND)).removeprefix(FOUND)

    def answer(self, problem: str, variant: str) -> str:
        self.check_variant(variant)
        return self.question(problem).answer()


def single_problem(index: int) -> str:
    """The problem that shows one text of the test split, and asks for its label."""
    return f"tested text {index}"


def given_labels(trajectory: Trajectory) -> list[str]:
    """The labels that a trajectory counts, in their order; "" where an `add` counts none."""
    return [_label(step.text) for step in trajectory.steps if step.name == "add"]


def _label(argument: str) -> str:
    try:
        read = json.loads(argument)
    except ValueError:  # what a model writes may be anything
        return ""
    key = read.get("key") if isinstance(read, dict) else None
    return key.removeprefix(_LABEL) if isinstance(key, str) and key.startswith(_LABEL) else ""


def score(right: str, answer: str | None, is_count: bool) -> float:
    """What Oolong (arXiv 2511.02817) gives: to a count 0.75 to the power of its distance, to a label 1 or 0."""
    if answer is None:
        return 0.0
    if is_count:
        return 0.75 ** abs(int(right) - int(answer)) if re.fullmatch("[0-9]{1,9}", answer) else 0.0
    return float(answer == right)


def _read(problem: str) -> re.Match[str]:
    found = _PROBLEM.fullmatch(problem)
    if found is None:
        raise InvalidProblemError(
            "a problem reads '5 examples; seed 7', with ', tested' before the seed where the texts are those of "
            f"tests, and ', gold' where labels stand in their place, or 'tested text 17': {problem!r}"
        )
    return found


def _drawn(rng: random.Random, texts: LabelledTexts, length: int, of_tests: bool, gold: bool) -> list[LabelledText]:
    """Texts whose labels are as frequent as chance has it, so that none is the most frequent in all problems."""
    by_label = texts.test if of_tests else texts.train
    weights = [rng.expovariate(1) * (label in by_label) for label in texts.labels]
    labels = rng.choices(texts.labels, weights, k=length)
    return [LabelledText(label if gold else rng.choice(by_label[label]), label) for label in labels]


def _examples(rng: random.Random, texts: Sequence[LabelledText]) -> list[Example]:
    users = rng.sample(range(1, LARGEST_USER + 1), min(max(2, len(texts) // 4), LARGEST_USER))
    often = users[: max(1, len(users) // 5)]
    drawn = [rng.choice(often if rng.random() < 0.8 else users) for _ in texts]
    return [Example(_day(rng), user, text, label) for user, (text, label) in zip(drawn, texts)]


def _day(rng: random.Random) -> str:
    return (_FIRST_DAY + timedelta(rng.randrange(_DAYS))).isoformat()
