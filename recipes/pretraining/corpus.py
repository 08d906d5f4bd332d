"""Texts of pinned archives of the Python package index: sources, documentation, descriptions of interfaces.

    python recipes/pretraining/corpus.py --output outputs/corpus

`archives.txt` names them with their hashes, which pip checks. Of every archive the texts are taken that people wrote:
Python and its docstrings, reStructuredText, Markdown, plain text, and what the service descriptions of botocore say in
prose. A text that is there twice is taken once. The archives under "held out" are in no training row.

The output is a dataset of `text` and `source` with the splits `train` and `validation`.
"""

import gzip
import hashlib
import html
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import Dataset
from tqdm import tqdm
from transformers import HfArgumentParser

from hf_toolssm.errors import ToolSSMError
from hf_toolssm.files import escape_unprintable, write_atomically

ARCHIVES = Path(__file__).with_name("archives.txt")
HELD_OUT = "# held out"
"""The line of `archives.txt` from which on archives are held out."""

ENDINGS = {".py", ".pyi", ".rst", ".md", ".txt", ".tmpl"}
LONGEST = 500_000
"""Bytes; longer files are tables that a program wrote."""

TABLES = re.compile("docutils/(parsers/rst/)?(include|languages)/|unichar")
"""Files of docutils that are tables of characters and of words in many languages."""

SHORTEST = 64

MOST_OF_A_SERVICE = 60_000
"""Characters of one service's description: the largest say the same in many places."""

SERVICE = re.compile(r"botocore/data/.+/service-2\.json\.gz$")
_TAG = re.compile(r"<[^<>]*>")


class CorpusError(ToolSSMError):
    """Archives that cannot be had, or are others than those that are pinned."""


@dataclass
class CorpusArguments:
    output: Path = field(metadata={"help": "folder of the dataset"})
    archives: Path = field(default=ARCHIVES, metadata={"help": "a requirements file with hashes"})
    downloads: Path = field(default=Path("outputs/archives"), metadata={"help": "where archives are kept"})


def main() -> None:
    escape_unprintable()
    (options,) = HfArgumentParser(CorpusArguments).parse_args_into_dataclasses()
    download(options.archives, options.downloads)
    names = archive_names(options.archives)
    seen: set[bytes] = set()
    told = {}
    options.output.mkdir(parents=True, exist_ok=True)
    for split, wanted in (("validation", names[1]), ("train", names[0])):  # what is held out is in no training row
        rows = [row for name in wanted for row in texts_of(find(options.downloads, name), seen)]
        unfinished = options.output / f"{split}.incomplete"
        Dataset.from_list(rows).to_parquet(unfinished)
        os.replace(unfinished, options.output / f"{split}.parquet")
        told[split] = {"texts": len(rows), "bytes": sum(len(row["text"].encode()) for row in rows), "archives": wanted}
        print(f"{split}: {told[split]['texts']:,} texts, {told[split]['bytes'] / 1e6:.1f} MB")
    write_atomically(options.output / "corpus.json", json.dumps(told, indent=1) + "\n")


def download(archives: Path, folder: Path) -> None:
    """Has pip get the archives that are not there yet, and check all hashes.

    Raises:
        CorpusError: one cannot be had, or is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", folder, "--find-links", folder]
    command = [sys.executable, "-m", "pip", "download", *words, "--requirement", archives]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise CorpusError(
            f"pip could not get the archives of {archives}, for the reason above: if it was the network, run the "
            "command again; what came before is kept"
        )


def archive_names(archives: Path) -> tuple[list[str], list[str]]:
    """The archives that are trained on, and those that are held out, each as name and version.

    Raises:
        CorpusError: the file does not say which are held out.
    """
    parts = archives.read_text(encoding="utf-8").split(HELD_OUT)
    if len(parts) != 2:
        raise CorpusError(f"{archives} has no line {HELD_OUT!r}, behind which stand the archives to measure with")
    trained, held_out = (re.findall(r"^(\S+==\S+)", part, re.MULTILINE) for part in parts)
    return trained, held_out


def find(folder: Path, name: str) -> Path:
    """The file of an archive."""
    project, version = name.split("==")
    beginning = f"{re.sub('[-_.]+', '_', project).lower()}-{version}-"
    found = [path for path in sorted(folder.glob("*.whl")) if path.name.lower().startswith(beginning)]
    if not found:
        raise CorpusError(f"{name} is not in {folder}")
    return found[0]


def texts_of(archive: Path, seen: set[bytes]) -> Iterator[dict[str, Any]]:
    """The texts of an archive that were not seen before, in the order of their names."""
    with zipfile.ZipFile(archive) as files:
        for info in tqdm(sorted(files.infolist(), key=lambda each: each.filename), desc=archive.name, leave=False):
            name = info.filename
            if SERVICE.search(name):
                text = service_text(json.loads(gzip.decompress(files.read(info))))
            elif PurePosixPath(name).suffix in ENDINGS and info.file_size <= LONGEST and not TABLES.search(name):
                text = files.read(info).decode("utf-8", errors="replace")
            else:
                continue
            known = hashlib.sha256(text.encode()).digest()
            if len(text) >= SHORTEST and "\ufffd" not in text and known not in seen:
                seen.add(known)
                yield {"text": text, "source": f"{archive.name}/{name}"}


def service_text(service: dict[str, Any]) -> str:
    """What a service description of botocore says in prose: its operations and what they take."""
    shapes = service["shapes"]
    lines = [f"# {service['metadata']['serviceFullName']}", "", plain(service.get("documentation", "")), ""]
    for name, operation in sorted(service["operations"].items()):
        lines += [f"## {name}", "", plain(operation.get("documentation", "")), ""]
        members = shapes.get(operation.get("input", {}).get("shape"), {}).get("members", {})
        for parameter, member in members.items():
            lines.append(
                f"- {parameter} ({shapes[member['shape']]['type']}): {plain(member.get('documentation', ''))}"
            )
        lines.append("")
        if sum(map(len, lines)) > MOST_OF_A_SERVICE:
            break
    return "\n".join(lines)


def plain(written: str) -> str:
    """HTML as text."""
    return " ".join(html.unescape(_TAG.sub(" ", written)).split())


if __name__ == "__main__":
    main()
