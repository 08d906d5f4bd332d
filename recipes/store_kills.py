"""Writes pairs into a store in a file, kills the writer at random moments, and looks for what was acknowledged.

    python recipes/store_kills.py --folder outputs/store --puts 1000000 --kills 10

Each writer goes on where the one before it was killed, and says every number once its put has returned. Behind every
kill all that were said must be there with their values, and nothing else but the one that may have been under way; at
the end also every pair of all writers, its words, and what SQLite itself checks. Exits 1 where that does not hold.
"""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm
from transformers import HfArgumentParser

from hf_toolssm.files import escape_unprintable
from hf_toolssm.tools.key_value import KeyValue

_FILE = "store.sqlite"
_WRITER = """
import sys
from hf_toolssm.tools.key_value import KeyValue
path, begin, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = KeyValue(path).start("")
for number in range(begin, end):
    store.call("put", {"key": f"{number:09d}", "value": f"value {number}"})
    print(number, flush=True)
"""


@dataclass
class KillArguments:
    folder: Path = field(metadata={"help": "Gets the file; there must be none yet."})
    puts: int = field(default=1_000_000, metadata={"help": "How many, all writers together."})
    kills: int = field(
        default=10, metadata={"help": "Writers that are killed, at random moments; less than half of the puts."}
    )
    seed: int = field(default=0, metadata={"help": "Of those moments."})


def main() -> None:
    escape_unprintable()
    parser = HfArgumentParser(KillArguments)
    (options,) = parser.parse_args_into_dataclasses()
    if not 0 <= options.kills < options.puts // 2:
        parser.error(f"--kills is at least 0 and less than half of --puts, not {options.kills}")
    path = options.folder / _FILE
    options.folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        sys.exit(f"{path} is there already: name another folder, or remove it")
    rng, begin, seconds = random.Random(options.seed), 0, 0.0
    moments = sorted(rng.sample(range(1, options.puts * 9 // 10), options.kills))
    with tqdm(total=options.puts, desc="putting", unit="put") as progress:
        for moment in [*moments, options.puts]:
            started = time.monotonic()
            is_last = moment == options.puts
            said = _written(path, begin, max(moment, begin + 1), is_last, progress)
            seconds += time.monotonic() - started
            begin = check(path, begin, said)
            tqdm.write(f"{'ended' if is_last else 'killed'} behind put {said:,}: {begin:,} are there")
    check(path, 0, begin)
    check_file(path, begin)
    print(f"{begin:,} puts in {seconds:.0f} s, {begin / seconds:,.0f} a second, {len(moments)} kills")


def _written(path: Path, begin: int, moment: int, is_last: bool, progress: tqdm) -> int:
    """Lets a writer write from `begin` on, and kills it behind `moment`, or lets it end there; returns how many puts
    it has said."""
    words = [sys.executable, "-c", _WRITER, str(path), str(begin), str(moment if is_last else sys.maxsize)]
    said = begin
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout
        for line in process.stdout:
            said = int(line) + 1
            progress.update()
            if said == moment and not is_last:
                process.kill()  # it has written on meanwhile, and what it said of that is still to be read
    if process.returncode != (0 if is_last else -signal.SIGKILL):
        sys.exit(f"the writer ended with {process.returncode} behind put {said:,}")
    return said


def check(path: Path, begin: int, said: int) -> int:
    """Looks for the pairs from `begin` on; returns how many there are in all.

    Raises:
        SystemExit: one is missing that was said, or has another value, or one too many is there.
    """
    tool = KeyValue(path, most=said - begin + 2)
    store = tool.start("")
    after = f"{begin - 1:09d}" if begin else ""
    keys = store.call("list", {"prefix": "", "after": after}).splitlines()
    found = begin + len(keys)
    if keys != [f'"{number:09d}"' for number in range(begin, found)] or not said <= found <= said + 1:
        sys.exit(f"{path}: {said:,} puts were acknowledged, and {found:,} are there")
    for number in range(begin, found):
        if store.call("get", {"key": f"{number:09d}"}) != f"found: value {number}":
            sys.exit(f"{path}: put {number:,} has another value")
    tool.close()
    return found


def check_file(path: Path, puts: int) -> None:
    """Looks for damage, and for a pair or its words too many or too few.

    Raises:
        SystemExit: there is some.
    """
    with closing(sqlite3.connect(path)) as file:
        (sound,) = file.execute("PRAGMA integrity_check").fetchone()
        file.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")  # raises where they differ
        (pairs,) = file.execute("SELECT count(*) FROM pairs").fetchone()
        (words,) = file.execute("SELECT count(*) FROM words WHERE words MATCH 'value'").fetchone()
    if (sound, pairs, words) != ("ok", puts, puts):
        sys.exit(f"{path}: {sound}; {pairs:,} pairs, {words:,} with words, of {puts:,}")


if __name__ == "__main__":
    main()
