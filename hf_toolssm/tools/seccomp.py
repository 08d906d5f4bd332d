"""The system calls that a sandbox refuses, as the program of the kernel's filter (seccomp).

Refused are those that

- keep memory which no process has mapped and no file system counts, so that nothing would limit it: memory files,
  System V memory and messages, io_uring, key rings, pages given to pipes, and shared anonymous mappings (what was
  written to one stays when a process gives its pages back);
- take what the whole machine has few of: huge pages, and slots for asynchronous files;
- look into other processes, make namespaces or mounts, or have had holes in the kernel: ptrace, bpf, userfaultfd;
- speak to anything but the Internet and the sandbox itself. Sockets of a virtual machine's host know no network
  namespace, and with the host's network abstract Unix sockets would reach its programs;
- put characters into a terminal's input.

They fail with EPERM, and programs go on without them.
"""

import platform
import struct

SYSTEM_CALLS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "fanotify_init": (300, 262),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "io_setup": (206, 0),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mmap": (9, 222),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "socket": (41, 198),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vmsplice": (278, 75),
}
"""Their numbers on x86_64 and on aarch64."""

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Which of the numbers is a machine's, and what the kernel calls it."""

_X32 = 0x40000000
"""From here on x86_64 has the same calls once more, with other numbers."""

_SHARED_ANONYMOUS, _HUGE_PAGES = 0x21, 0x40000
_TERMINAL_INPUT = (0x5412, 0x541C)
_UNIX, _INTERNET = 1, (2, 10, 16)
"""Families of sockets: IPv4, IPv6, and netlink, by which programs ask for their own addresses."""

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_NUMBER, _ARCHITECTURE = 0, 4


def seccomp_filter(network: bool) -> bytes:
    """The program.

    Args:
        network: whether the sandbox has the host's network, whose Unix sockets it then must not reach.

    Raises:
        OSError: the system calls of this machine are not known here.
    """
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURES:
        raise OSError(
            f"of {platform.system()} on {platform.machine()} the system calls are not known, only of Linux on "
            f"{' and '.join(ARCHITECTURES)}"
        )
    column, architecture = ARCHITECTURES[platform.machine()]
    number = {name: numbers[column] for name, numbers in SYSTEM_CALLS.items()}
    program = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        *(_when(_AT_LEAST, _X32, _REFUSE) if column == 0 else []),
    ]
    arguments = {
        "mmap": [
            step
            for flags in (_SHARED_ANONYMOUS, _HUGE_PAGES)
            for step in (_argument(3), _step(_AND, flags), *_when(_EQUAL, flags, _REFUSE))
        ],
        "ioctl": [_argument(1), *(each for code in _TERMINAL_INPUT for each in _when(_EQUAL, code, _REFUSE))],
        "socket": [
            _argument(0),
            *(each for family in _families(network) for each in _when(_EQUAL, family, _ALLOW)),
            _step(_RETURN, _REFUSE),
        ],
    }
    for name, checks in arguments.items():
        program += [_step(_EQUAL, number.pop(name), 0, len(checks) + 1), *checks, _step(_RETURN, _ALLOW)]
    for refused in number.values():
        program += _when(_EQUAL, refused, _REFUSE)
    return b"".join([*program, _step(_RETURN, _ALLOW)])


def _families(network: bool) -> tuple[int, ...]:
    return _INTERNET if network else (_UNIX, *_INTERNET)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the last two are how many are skipped after a comparison."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _when(comparison: int, value: int, verdict: int) -> list[bytes]:
    """A verdict, if what was loaded last compares so with a value."""
    return [_step(comparison, value, 0, 1), _step(_RETURN, verdict)]


def _argument(index: int) -> bytes:
    """Loads the lower half of a system call's argument; both machines are little-endian."""
    return _step(_LOAD, 16 + 8 * index)
