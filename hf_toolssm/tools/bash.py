"""A shell with files of its own, in a sandbox: bubblewrap, no network, and limits that hold.

    Bash(workdir="repo")                                    # a copy of the folder, which is never written
    Bash(workdir={"main.py": "print(1)"}, time_limit=5)
    Bash(workdir=files_of)                                  # a function of the problem's text: each row has its own

| the command | the observation |
|---|---|
| prints | stdout and stderr, in the order in which they were written |
| prints more than `output` | its begin and its end, and between them how much was left out |
| ends with another exit code than 0 | also that, in the last line |
| passes a limit of time, memory, files or output | what it printed, and which; the files are as before the command |
| leaves processes behind | they are killed with it |

Every command gets a fresh `bash -c`, an empty stdin, and the files and the working directory that the last one left.
Both are a value: a fork has its own, and a saved session holds them.
"""

import io
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hf_toolssm.errors import InvalidCommandError, InvalidWorkdirError, UnknownToolError
from hf_toolssm.tools.sandbox import EMPTY, WORK, Limits, Outcome, check_sandbox, longest_archive, run

Files = Mapping[str, str | bytes]
"""By path, from the working directory on."""

LONGEST_COMMAND = 2**17 - 1
"""Bytes, of which the system takes no more as one argument."""

GRACE = 15.0
"""Seconds beyond a command's time limit that the generation loop waits, so that it is the shell that ends it."""


class Bash:
    """A shell; see the module's text.

    Args:
        workdir: a folder, which is copied when the tool is made, its symbolic links as they are; or files; or a
            function that gives the files of a problem's text; None for nothing.
        network: whether commands have the network of this machine, its loopback included.
        time_limit: seconds of a command.
        memory: bytes of a command's processes and files together; one process alone is refused more. What the kernel
            keeps of their mappings is not counted, 14 MiB for a process that makes as many as it may; nor, with the
            network, what waits in sockets.
        processes: of a command at one time.
        output: bytes of what was printed that an observation shows.
        size: bytes of the files, and of all that a command prints.
        sandbox: False runs commands on this machine with the rights of this process, in a temporary folder. Nothing
            else is protected then; `processes` does not hold, `memory` only of each single process, and a process
            that leaves the command's session lives on.

    A number of bytes is also written "32K", "512M" or "2G".

    Raises:
        UnknownToolError: an option is none.
        InvalidWorkdirError: the files cannot be those of a shell.
    """

    name = "bash"
    parameter = "command"
    fork = "copy"
    has_side_effects = True
    not_in_specs = ("sandbox", "network", "workdir")

    def __init__(
        self,
        workdir: str | os.PathLike[str] | Files | Callable[[str], Files] | None = None,
        network: bool = False,
        time_limit: float = 30.0,
        memory: int | str = "512M",
        processes: int = 64,
        output: int | str = "32K",
        size: int | str = "64M",
        sandbox: bool = True,
    ) -> None:
        for name, number in {"time_limit": time_limit, "processes": processes}.items():
            if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number < 1e5:
                raise UnknownToolError(f"bash: {name} is a number above 0, and not {number!r}")
        if not isinstance(processes, int) or not isinstance(network, bool) or not isinstance(sandbox, bool):
            raise UnknownToolError("bash: processes is a whole number, and network and sandbox are true or false")
        self.limits = Limits(
            time_limit, _bytes(memory, "memory"), processes, _bytes(size, "size"), _bytes(output, "output"), network
        )
        self.sandbox = sandbox
        self.time_limit = time_limit + GRACE
        self._late: list[None] = []  # to which several rows' threads may append at once
        self._files_of = workdir if callable(workdir) else None
        self._files = EMPTY if callable(workdir) or workdir is None else self._packed(workdir)

    @property
    def late_calls(self) -> int:
        """How many commands of all its shells its time limit has ended."""
        return len(self._late)

    def count_late(self) -> None:
        """Counts one more."""
        self._late.append(None)

    @property
    def description(self) -> str:
        """What a model is told."""
        limits = self.limits
        return (
            "Runs a command in bash and returns what it prints, and its exit code where that is not 0. Every command "
            "has a fresh shell, which begins in the directory in which the last one ended; the files under "
            f"{WORK if self.sandbox else 'the first of them'} are kept, and nothing else is. It has "
            f"{limits.time:g} seconds, "
            f"{limits.memory / 2**20:.0f} MiB of memory, {limits.size / 2**20:.0f} MiB of files and "
            f"{'the' if limits.network else 'no'} network, and ends with all its processes; a command that passes a "
            "limit leaves the files as they were. Of long output only the begin and the end are shown."
        )

    def start(self, problem: str) -> "Shell":
        """A shell with the files of a problem.

        Raises:
            SandboxUnavailableError: there is no sandbox on this machine.
            InvalidWorkdirError: the function gives no files.
        """
        if self.sandbox:
            check_sandbox()
        return Shell(self, self._packed(self._files_of(problem)) if self._files_of else self._files, ".")

    def restore(self, state: Mapping[str, Any]) -> "Shell":
        """The shell that had that state.

        Raises:
            SandboxUnavailableError: there is no sandbox on this machine.
            InvalidWorkdirError: the files are larger than the tool's `size`.
        """
        if self.sandbox:
            check_sandbox()
        unpacker = zlib.decompressobj()
        files = unpacker.decompress(state["files"].tobytes(), longest_archive(self.limits.size))
        if not unpacker.eof:
            raise InvalidWorkdirError("the saved files of bash are larger than its size: make it with the size it had")
        return Shell(self, files, state["directory"])

    def _packed(self, workdir: Any) -> bytes:
        """Files as a tar archive."""
        buffer, total = io.BytesIO(), 0

        def take(size: int) -> None:
            nonlocal total
            total += -(-size // BLOCK) * BLOCK
            if total > self.limits.size:
                raise InvalidWorkdirError(
                    f"the files of bash take {total:,} bytes or more, in blocks of {BLOCK:,}, and its size is "
                    f"{self.limits.size:,}: give fewer, or a larger size"
                )

        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            if isinstance(workdir, Mapping):
                for path in workdir:
                    take(_add_file(archive, workdir, path))
            else:
                _add_folder(archive, workdir, take)
        return buffer.getvalue()


class Shell:
    """A shell at work on one problem. Its files and its working directory are a value."""

    def __init__(self, tool: Bash, files: bytes, directory: str) -> None:
        self._tool, self._files, self._directory = tool, files, directory

    def call(self, name: str, command: str) -> str:
        """Runs a command and returns what a model reads of it; see the module's text.

        Raises:
            InvalidCommandError: no shell can be given it.
        """
        try:
            length = len(command.encode())
        except UnicodeEncodeError as error:
            raise InvalidCommandError("a command is text, and this one has half a character in it") from error
        if "\0" in command or length > LONGEST_COMMAND:
            raise InvalidCommandError(
                f"a command has no NUL and at most {LONGEST_COMMAND:,} bytes, and this one has {length:,}: write long "
                "files in parts"
            )
        outcome = run(command, self._directory, self._files, self._tool.limits, self._tool.sandbox)
        if outcome.is_late:
            self._tool.count_late()
        if not outcome.ended:
            self._files, self._directory = outcome.files, outcome.directory or self._directory
        return _observation(outcome)

    def clone(self) -> "Shell":
        """Another with the same files, in constant time."""
        return Shell(self._tool, self._files, self._directory)

    def state(self) -> Mapping[str, Any]:
        """The files, compressed, and the working directory."""
        return {"files": np.frombuffer(zlib.compress(self._files, 1), np.uint8), "directory": self._directory}

    def files(self) -> dict[str, bytes]:
        """The content of every regular file by its path.

        Raises:
            InvalidWorkdirError: they are larger than the tool's `size`, as sparse files can be.
        """
        found: dict[str, bytes] = {}
        with self._archive() as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    found[_path_of(member)] = content.read()
                elif member.islnk() and (target := member.linkname.removeprefix("./")) in found:
                    found[_path_of(member)] = found[target]  # once in memory, however many names it has
        return found

    def put(self, path: str, content: str | bytes) -> None:
        """Writes a file, in the place of one that is there.

        Raises:
            InvalidWorkdirError: the path leads out of the files, through a link or through a file.
        """
        with self._archive() as archive:
            kinds = {_path_of(member): member.isdir() for member in archive}
        if kinds.get(path) or not all(kinds.get(str(parent), True) for parent in PurePosixPath(path).parents):
            raise InvalidWorkdirError(f"{path!r} is a directory, or stands below something that is none")
        buffer = io.BytesIO(self._files)
        with tarfile.open(fileobj=buffer, mode="a", format=tarfile.PAX_FORMAT) as archive:
            _add_file(archive, {path: content}, path)
        self._files = buffer.getvalue()

    def copy_to(self, folder: str | os.PathLike[str]) -> None:
        """Writes everything into a folder on this machine, in the place of files of the same names.

        Raises:
            InvalidWorkdirError: a link leads out of the files, or something is no file: `files` leaves those out; or
                the folder cannot take them.
        """

        def alone(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo:
            safe = tarfile.data_filter(member, into)
            place = Path(into, safe.name)
            if place.is_symlink() or place.is_file():
                place.unlink()  # else what it is linked with would be written
            return safe

        with self._archive() as archive:
            try:
                archive.extractall(folder, filter=alone)
            except tarfile.FilterError as error:
                raise InvalidWorkdirError(f"{error}: remove it, or take files()") from error
            except OSError as error:
                raise InvalidWorkdirError(f"{str(folder)!r} cannot take the files of bash: {error}") from error

    def _archive(self) -> tarfile.TarFile:
        """The files, if they are not larger than they may be."""
        archive = tarfile.TarFile(fileobj=io.BytesIO(self._files))
        total = sum(member.size for member in archive)
        if total > self._tool.limits.size:
            raise InvalidWorkdirError(f"the files of bash are {total:,} bytes long, more than its size: remove some")
        return archive


def _observation(outcome: Outcome) -> str:
    """What a model reads of a command."""
    text = outcome.head.decode("utf-8", "replace")
    if outcome.dropped:
        text += f"\n[... {outcome.dropped:,} bytes left out ...]\n" + outcome.tail.decode("utf-8", "replace")
    else:
        text = (outcome.head + outcome.tail).decode("utf-8", "replace")
    if outcome.ended:
        note = f"[ended by {outcome.ended}; the files are as before the command]"
    else:
        note = f"[exit code {outcome.code}]" if outcome.code else ""
    return text + ("\n" if note and text and not text.endswith("\n") else "") + note


BLOCK = 4096
"""Bytes, of which files take whole multiples."""

_MADE = 946_684_800
"""Seconds since 1970, when files that are given as texts were last changed: the same in every run."""


def _add_file(archive: tarfile.TarFile, files: Files, path: Any) -> int:
    """Adds a file, and returns its length."""
    whole = PurePosixPath(path) if isinstance(path, str) and _PATH.fullmatch(path) else None
    if whole is None or any(str(parent) in files for parent in whole.parents):
        raise InvalidWorkdirError(
            f"a file of bash has a relative path without empty parts, . and .., below no other file, and not {path!r}"
        )
    content = files[path]
    if not isinstance(content, str | bytes):
        raise InvalidWorkdirError(f"the file {path!r} of bash is text or bytes, and not {type(content).__name__}")
    try:
        content = content.encode() if isinstance(content, str) else content
        longest = max(len(part.encode()) for part in whole.parts)
    except UnicodeEncodeError as error:
        raise InvalidWorkdirError(f"the file {path!r} of bash has half a character in its path or its text") from error
    if longest > 255:
        raise InvalidWorkdirError(f"a name in {path!r:.100} has {longest} bytes, and a file's may have 255")
    member = tarfile.TarInfo(path)
    member.size, member.mtime = len(content), _MADE
    archive.addfile(member, io.BytesIO(content))
    return len(content)


_PATH = re.compile(r"(?!(.*/)?\.{0,2}(/|$))[^\0]+", re.DOTALL)


def _add_folder(archive: tarfile.TarFile, folder: Any, take: Callable[[int], None]) -> None:
    """Adds what is in a folder; `take` hears the length of each file before it is read."""

    def of_nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise InvalidWorkdirError(f"{member.name!r} in {str(folder)!r} is a pipe, a device or the like: remove it")
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mode &= 0o777
        take(member.size)
        return member

    try:
        if not os.path.isdir(folder):
            raise InvalidWorkdirError(f"bash has no folder {str(folder)!r} on this machine to copy its files from")
        for name in sorted(os.listdir(folder)):
            archive.add(Path(folder, name), name, filter=of_nobody)
    except (OSError, TypeError) as error:
        raise InvalidWorkdirError(f"the folder {folder!r} of bash cannot be read: {error}") from error


def _path_of(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./")


def _bytes(given: Any, option: str) -> int:
    """A number of bytes, also as in "32K"."""
    match = re.fullmatch(r"([1-9]\d{0,8})([KMG])", given) if isinstance(given, str) else None
    number = int(match[1]) * 1024 ** ("KMG".index(match[2]) + 1) if match else given
    if not isinstance(number, int) or isinstance(number, bool) or not 1024 <= number < 2**40:
        raise UnknownToolError(f"bash: {option} is a number of bytes from 1,024 on, as in '32K', and not {given!r}")
    return number
