"""Labelled texts for tasks over real text: where they come from, and which of them may be trained on.

The variable `LABELLED_TEXTS` names them:

- a folder with the files `train.txt` and `test.txt` as TREC's questions have them, a line of a label, a colon, a finer
  label and the question (Li & Roth, 2002), in Latin-1;
- or a dataset of the Hub, or a folder that `load_dataset` opens, with the splits `train` and `test`, a column of class
  labels, named `label` where there are several, and one of strings, named `text` where there are several. Rows without
  a text, or without a label (-1), are left out.

A text that is in the test split, letter by letter, is not in the training split.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hf_toolssm.errors import LabelledTextsError

VARIABLE = "LABELLED_TEXTS"

_STRINGS = ("string", "large_string")

_OF_TREC = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}


class LabelledText(NamedTuple):
    """A text of one line, and its label."""

    text: str
    label: str


class LabelledTexts(NamedTuple):
    """Both splits.

    Attributes:
        labels: sorted.
        train, test: the texts of each label, in their order.
        tested: all texts of the test split, in theirs.
        about: how many there are, and a digest of them.
    """

    labels: Sequence[str]
    train: Mapping[str, Sequence[str]]
    test: Mapping[str, Sequence[str]]
    tested: Sequence[LabelledText]
    about: str


def labelled_texts() -> LabelledTexts:
    """Those that the variable names.

    Raises:
        LabelledTextsError: it names none, or what it names cannot be read.
    """
    named = os.environ.get(VARIABLE, "")
    if not named:
        raise LabelledTextsError(
            f"set {VARIABLE} to a folder with TREC's train.txt and test.txt, or to the name of a dataset with a column"
            " of class labels and one of text"
        )
    return _read(named)


@cache
def _read(named: str) -> LabelledTexts:
    files = [Path(named, f"{split}.txt") for split in ("train", "test")]
    train, test = map(_of_trec, files) if all(map(Path.is_file, files)) else _of_dataset(named)
    texts = {text for text, _ in test}
    train = [each for each in train if each.text not in texts]
    labels = sorted({label for _, label in train})
    unknown = sorted({label for _, label in test} - set(labels))
    if unknown or len(labels) < 2 or not test:
        raise LabelledTextsError(
            f"{named} has {len(test):,} labelled texts in the tests, the labels {labels} in training, and in the tests"
            f" {unknown} besides: there are at least one text and two labels, and none in the tests alone"
        )
    digest = hashlib.sha256(repr((train, test)).encode("utf-8", "surrogatepass")).hexdigest()
    about = f"{len(train):,} and {len(test):,} labelled texts, SHA-256 {digest[:16]}"
    return LabelledTexts(labels, _by_label(train), _by_label(test), test, about)


def _by_label(texts: Sequence[LabelledText]) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for text, label in texts:
        found[label].append(text)
    return dict(found)


def _of_trec(path: Path) -> list[LabelledText]:
    found = []
    for number, line in enumerate(path.read_text(encoding="latin-1").removesuffix("\n").split("\n"), 1):
        coarse, colon, rest = line.partition(":")
        text = " ".join(rest.split()[1:])
        if coarse not in _OF_TREC or not colon or not text:
            raise LabelledTextsError(f"{path}, line {number}: write 'LOC:city What ... ?', and not {line[:60]!r}")
        found.append(LabelledText(text, _OF_TREC[coarse]))
    return found


def _of_dataset(named: str) -> tuple[list[LabelledText], list[LabelledText]]:
    from datasets import ClassLabel, Value, load_dataset  # a second that no other task needs

    try:
        splits = load_dataset(named)
    except Exception as error:  # of many kinds, by where it is
        raise LabelledTextsError(f"{VARIABLE} is {named!r}, and no dataset opens by that name: {error}") from error
    if not {"train", "test"} <= splits.keys():
        raise LabelledTextsError(f"{named} has the splits {', '.join(splits)}: it needs train and test")
    features = splits["train"].features
    label = _column(named, "label", [name for name, each in features.items() if isinstance(each, ClassLabel)])
    text = _column(named, "text", [name for name, each in features.items() if each in map(Value, _STRINGS)])
    names = [" ".join(each.split()) for each in features[label].names]
    if len(set(names)) < len(names) or not all(names):
        raise LabelledTextsError(f"{named} has the labels {names}: each needs a name of its own")
    train, test = (
        [
            LabelledText(" ".join(row[text].split()), names[row[label]])
            for row in splits[split].select_columns([text, label])
            if row[label] not in (None, -1) and (row[text] or "").split()
        ]
        for split in ("train", "test")
    )
    return train, test


def _column(named: str, usual: str, found: list[str]) -> str:
    if len(found) == 1 or usual in found:
        return usual if usual in found else found[0]
    raise LabelledTextsError(
        f"{named} has the columns {found} for the {usual}s: it needs one, or one named {usual!r} among them"
    )
