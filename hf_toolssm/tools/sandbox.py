"""One shell command in bubblewrap, with files that come and go through pipes. Nothing is written to the host's disk.

Process 1 of the sandbox is a script of ours. It unpacks the files, runs the command, kills all that is left of it, and
packs the files. The command cannot stop it, because inside a process namespace no signal reaches process 1. It can
neither read nor forge what it sends, because it lacks the one capability that process 1 has, and so may not look into
it. That capability is over files of the sandbox's own user: it also packs those that the command made unreadable.

What limits of processes cannot bound, the calling thread watches: time, and the memory of all processes and files.
"""

import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil

from hf_toolssm.errors import SandboxUnavailableError
from hf_toolssm.tools.seccomp import seccomp_filter

WORK = "/work"
"""Where the files are inside."""

SCRIPT = r"""
work=$1 directory=$2 entry=$3 memory=$4 processes=$5 size=$6 archive=$7 command=$8
[ $$ = 1 ] && inside=1 && drop='setpriv --ambient-caps=-all --inh-caps=-all' && ulimit -u "$processes"
ulimit -c 0 -d "$memory" -f "$size" -n 256 -q 0 -i 256 -l 64
tar -xp -C "$work" || exit
exec </dev/null
cd -- "$work"
cd -- "$directory" 2>&-
printf '\0' >&2
BASH_ENV=$entry $drop bash -c -- "$command" {archive}>&- 9>&2 2>&1
code=$?
if [ "$inside" ]; then
    kill -9 -1 2>&-
    while kill -0 -1 2>&-; do :; done
else
    chmod -R u+rwX "$work"
fi
printf '\0' >&2
tar -cS -C "$work" --sort=name --format=posix --owner=0 --group=0 --numeric-owner \
    --pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f . >&$archive && printf %s $code >&$archive
"""
"""The exit code follows the archive, whose length is a multiple of 512: where it lacks, not all files were packed.
Modification times are packed to the nanosecond, because `make` and others compare them. Among the errors, what the
command's shell says of its directory stands between two NUL."""

ENTRY = "unset BASH_ENV; trap '{ pwd -P >&9; } 2>/dev/null' EXIT\n"
"""What the command's shell reads first: where it ends is where the next one begins."""

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": WORK,
    "USER": "user",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    # Python would take the .pyc of before for a file that was edited within a second to the same size.
    "PYTHONDONTWRITEBYTECODE": "1",
}

_WRITTEN = {"entry": ENTRY, "passwd": f"user:x:1000:1000::{WORK}:/bin/bash\n", "group": "user:x:1000:\n"}

TICK = 0.05
"""Seconds between two looks at the memory."""

MOST_LEFT = 32
"""Reads of 64 KiB, after which a pipe whose writers have ended is empty."""


@dataclass(frozen=True)
class Limits:
    """What a command may take.

    Attributes:
        time: seconds.
        memory: bytes, of a process, and of all processes and files together.
        processes: at one time.
        size: bytes of files, and of output.
        output: bytes of output that are kept, of its begin and its end.
        network: whether it has the host's network.
    """

    time: float
    memory: int
    processes: int
    size: int
    output: int
    network: bool


@dataclass
class Outcome:
    """What came of a command.

    Attributes:
        head, tail: the output's begin and end.
        dropped: bytes of output between them that were not kept.
        ended: what ended it before its end; "" if nothing did.
        is_late: whether that was its time limit.
        code: the exit code.
        files: a tar archive; of no meaning where it was ended.
        directory: where its shell was at its end, from `WORK` on; "" if it did not say.
    """

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    dropped: int = 0
    ended: str = ""
    is_late: bool = False
    code: int = 0
    files: bytes = b""
    directory: str = ""


def longest_archive(size: int) -> int:
    """Bytes that an archive of files of a size may have, with what tar says of each."""
    return 2 * size + 2**20


def run(command: str, directory: str, files: bytes, limits: Limits, is_sandboxed: bool) -> Outcome:
    """Runs a command.

    Args:
        command: what `bash -c` gets; it has no NUL and at most 131,071 bytes.
        directory: where it begins, from `WORK` on; `WORK` if there is no such.
        files: a tar archive of `WORK`.
        limits: of the command.
        is_sandboxed: else it runs on the host, in a temporary folder that is removed afterwards.

    Raises:
        OSError: it cannot be started.
    """
    with ExitStack() as stack:
        archive, archive_inside = os.pipe()
        stack.callback(os.close, archive)
        with ExitStack() as theirs:  # ends of pipes, which are closed here once the process has them
            given = [archive_inside]
            theirs.callback(os.close, archive_inside)
            if is_sandboxed:
                given.append(_filled(seccomp_filter(limits.network), theirs))
                work, entry, start = WORK, "/etc/entry", _bubblewrap(limits.size, limits.network)
                start += ["--seccomp", str(given[-1])]
                for name, text in _WRITTEN.items():
                    given.append(_filled(text.encode(), theirs))
                    start += ["--perms", "0444", "--file", str(given[-1]), f"/etc/{name}"]
                start += ["--remount-ro", "/", "--"]
            else:
                folder = tempfile.TemporaryDirectory(prefix="hf_toolssm_", ignore_cleanup_errors=True)
                root = os.path.realpath(stack.enter_context(folder))
                work, entry = os.path.join(root, "work"), os.path.join(root, "entry")
                os.mkdir(work)
                Path(entry).write_text(ENTRY, encoding="utf-8")
                start = ["env", "-i", *(f"{name}={value}" for name, value in (ENVIRONMENT | {"HOME": work}).items())]
            numbers = (limits.memory // 1024, limits.processes, limits.size // 1024, archive_inside)
            words: list[str | bytes] = [*start, "/usr/bin/bash", "-c", SCRIPT, "bash", work]
            words += [directory.encode("utf-8", "surrogateescape"), entry, *map(str, numbers), command.encode()]
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=given,
                start_new_session=True,
                bufsize=0,
            )
            stack.enter_context(process)
        running = _Running(process, archive, limits, is_sandboxed)
        try:
            running.serve(files)
        finally:
            running.end()
        return running.outcome(work)


class _Running:
    """A process that runs a command, and what it has sent so far."""

    def __init__(self, process: subprocess.Popen[bytes], archive: int, limits: Limits, is_sandboxed: bool) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._limits, self._is_sandboxed = process, limits, is_sandboxed
        self._outcome, self._archive, self._errors = Outcome(), bytearray(), bytearray()
        self._archive_end = archive
        self._process_1: psutil.Process | None = None
        self._takers: dict[int, Callable[[bytes], None]] = {
            process.stdout.fileno(): self._take_output,
            process.stderr.fileno(): self._take_error,
            archive: self._take_archive,
        }
        for end in (process.stdin.fileno(), *self._takers):
            os.set_blocking(end, False)

    def serve(self, files: bytes) -> None:
        """Serves the pipes until all files have come, or a limit is passed."""
        assert self._process.stdin
        deadline, look, left = time.monotonic() + self._limits.time, time.monotonic() + TICK, memoryview(files)
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdin, selectors.EVENT_WRITE)
            for end in self._takers:
                selector.register(end, selectors.EVENT_READ)
            while self._archive_end in self._takers and not self._outcome.ended:
                for key, _ in selector.select(max(0.0, min(deadline, look) - time.monotonic())):
                    if key.fd in self._takers:
                        if self._read(key.fd) == b"":
                            selector.unregister(key.fd)
                            del self._takers[key.fd]
                    else:
                        with suppress(BrokenPipeError):  # then it has ended, and the archive's pipe says so
                            left = left[os.write(key.fd, left[: 2**16]) :]
                            if left:
                                continue
                        selector.unregister(key.fd)
                        self._process.stdin.close()
                if time.monotonic() >= deadline:
                    self._outcome.is_late = True
                    self._outcome.ended = f"its time limit of {self._limits.time:g} seconds"
                elif time.monotonic() >= look:
                    if self._memory() > self._limits.memory:
                        self._outcome.ended = f"its limit of {self._limits.memory:,} bytes of memory"
                    look = time.monotonic() + TICK

    def end(self) -> None:
        """Ends what still runs, waits for that, and reads what is left in the pipes."""
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if not self._is_sandboxed:
                os.killpg(self._process.pid, signal.SIGKILL)
            elif self._archive_end in self._takers:
                (self._first() or self._process).kill()  # with process 1 all others end, before it is waited for
        self._process.wait()
        for end in [*self._takers]:
            for _ in range(MOST_LEFT):
                if not self._read(end):
                    break

    def outcome(self, work: str) -> Outcome:
        """What has come of the command, once it has ended."""
        outcome = self._outcome
        said = self._errors.decode("utf-8", "surrogateescape").split("\0")
        whole = len(self._archive) // 512 * 512
        if not outcome.ended and whole < len(self._archive):
            outcome.code, outcome.files = int(self._archive[whole:]), bytes(self._archive[:whole])
            directory = said[1].removesuffix("\n")
            if directory.startswith("/"):
                outcome.directory = os.path.relpath(directory, work) if directory.startswith(work) else directory
        elif not outcome.ended:
            outcome.ended = f"an error: {said[-1].strip()[-500:]}"
        return outcome

    def _first(self) -> psutil.Process | None:
        """Process 1 of the sandbox, once there is one."""
        with suppress(psutil.NoSuchProcess):
            return next(iter(psutil.Process(self._process.pid).children()), None)
        return None

    def _read(self, end: int) -> bytes | None:
        """What there is to be read: None if there is nothing yet, and b"" if there will be nothing any more."""
        with suppress(BlockingIOError):
            data = os.read(end, 2**16)
            self._takers[end](data)
            return data
        return None

    def _take_output(self, data: bytes) -> None:
        outcome, half = self._outcome, self._limits.output // 2
        room = half - len(outcome.head)
        outcome.head += data[:room] if room > 0 else b""
        outcome.tail += data[room:] if room > 0 else data
        over = len(outcome.tail) - half
        if over > 0:
            del outcome.tail[:over]
            outcome.dropped += over
        if outcome.dropped > self._limits.size:
            outcome.ended = f"its limit of {self._limits.size:,} bytes of output"

    def _take_error(self, data: bytes) -> None:
        self._errors += data[: 2**16 - len(self._errors)]

    def _take_archive(self, data: bytes) -> None:
        self._archive += data
        if len(self._archive) > longest_archive(self._limits.size):
            self._outcome.ended = f"its limit of {self._limits.size:,} bytes of files"

    def _memory(self) -> int:
        """Bytes that its processes, files and sockets take."""
        self._process_1 = self._process_1 or (self._first() if self._is_sandboxed else None)
        if self._process_1 is None:
            return 0
        root = f"/proc/{self._process_1.pid}/root"
        with suppress(OSError):  # it has ended, or its files are not mounted yet
            if os.path.samefile(root, "/"):
                return 0
            total = sum(map(_memory_of, Path(root, "proc").glob("[0-9]*")))
            for place in (WORK, "/tmp", "/dev/shm"):
                taken = os.statvfs(root + place)
                total += (taken.f_blocks - taken.f_bfree) * taken.f_frsize + (taken.f_files - taken.f_ffree) * INODE
            if not self._limits.network:
                sockets = Path(root, "proc/1/net/sockstat").read_text(encoding="utf-8")
                total += int(sockets.split()[2]) * SOCKET
            return total
        return 0


def _memory_of(process: Path) -> int:
    """Bytes of a process: its share of what it has mapped, and the tables of its mappings."""
    with suppress(OSError):
        said = (process / "smaps_rollup").read_bytes() + (process / "status").read_bytes()
        return sum(map(int, _COUNTED.findall(said))) * 1024
    return 0


_COUNTED = re.compile(rb"^(?:Pss|SwapPss|VmPTE):\s+(\d+)", re.MULTILINE)

INODE = 1024
"""Bytes that an empty file takes in the kernel."""

SOCKET = 2**20
"""Bytes that may wait in a socket."""


@cache
def check_sandbox() -> None:
    """Runs a command in a sandbox, once in a process.

    Raises:
        SandboxUnavailableError: it does not run.
    """
    try:
        reason = run("true", ".", EMPTY, _PROBE, True).ended
    except OSError as error:
        reason = str(error)
    if reason:
        raise SandboxUnavailableError(
            f"no shell runs in a sandbox here ({reason}): install bubblewrap 0.8 or newer, on Debian by `apt install "
            "bubblewrap`, and let the system allow user namespaces (Ubuntu 24.04: an AppArmor profile for bwrap); or "
            "say sandbox=False, and commands run on this machine with your rights"
        )


_PROBE = Limits(time=30.0, memory=2**29, processes=64, size=2**20, output=2**10, network=False)

EMPTY = bytes(10240)
"""A tar archive of nothing."""


def _bubblewrap(size: int, network: bool) -> list[str]:
    """The command that makes a sandbox, up to the files of /etc."""
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    words += ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    words += ["--as-pid-1", "--clearenv", "--cap-drop", "ALL", "--cap-add", "CAP_DAC_OVERRIDE"]
    words += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--proc", "/proc"]
    words += ["--share-net"] if network else []
    for path in ("/bin", "/sbin", "/lib", "/lib64"):
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            words += ["--ro-bind", path, path]
    bound = ["/etc/ld.so.cache", "/etc/alternatives"]
    bound += ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl"] if network else []
    for path in ("/usr", *filter(os.path.exists, bound)):
        words += ["--ro-bind", os.path.realpath(path), path]
    # No /dev/zero: memory that is mapped from it, shared, is nobody's once it is unmapped.
    for name in ("null", "random", "urandom"):
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        words += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    for path in (WORK, "/tmp", "/dev/shm"):
        words += ["--size", str(size), "--tmpfs", path]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    return words


def _filled(content: bytes, stack: ExitStack) -> int:
    """The end for reading of a pipe with a short content, which the stack closes."""
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    with open(writing, "wb") as opened:
        opened.write(content)
    return reading


@cache
def interpreter() -> str:
    """What the sandbox's `python3` says that it is, as in "Python 3.11.2", for a card."""
    check_sandbox()
    return run("python3 --version", ".", EMPTY, _PROBE, True).head.decode("utf-8", "replace").strip()
