"""Attempts to get out of the sandbox of `bash`, or to outlive it: none succeeds, and the shell beside it goes on.

An attempt prints `escaped` where it got what it wanted, and `tried` once it came so far as to try.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from hf_toolssm.errors import SandboxUnavailableError
from hf_toolssm.tools.bash import Bash
from hf_toolssm.tools.seccomp import ARCHITECTURES, SYSTEM_CALLS

try:
    Bash().start("")
except SandboxUnavailableError as error:
    pytest.skip(f"no sandbox on this machine: {error}", allow_module_level=True)

SECRET = "a-secret-of-the-host-5309"
NAMESPACE = re.compile(r"pid:\[\d+\]")
LIMITS = {"memory": "256M", "processes": 32, "size": "16M", "output": "4K", "time_limit": 20}


def python(code):
    """A command that runs Python, which has everything imported that attempts need."""
    return "python3 - <<'END'\n" + PRELUDE + code.strip("\n") + "\nEND"


PRELUDE = """
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, struct, subprocess, sys, termios, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
MIB = 2**20
print("tried", flush=True)
"""

NETWORK = {
    "ipv4": python("socket.create_connection(('127.0.0.1', @PORT@), 2); print('escaped')"),
    "ipv6": python("socket.create_connection(('::1', @PORT@), 2); print('escaped')"),
    "an address of the host": python("socket.create_connection(('@ADDRESS@', @PORT@), 2); print('escaped')"),
    "by bash itself": "echo tried; echo > /dev/tcp/127.0.0.1/@PORT@ && echo escaped",
    "any route": python(
        """
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))
    print('escaped')
except OSError as error:
    assert error.errno == errno.ENETUNREACH
"""
    ),
    "an interface": python("print('escaped' if [*socket.if_nameindex()] != [(1, 'lo')] else '')"),
    "a unix socket": python("socket.socket(socket.AF_UNIX).connect('@FOLDER@/socket'); print('escaped')"),
    "an abstract socket": python("socket.socket(socket.AF_UNIX).connect('\\0@ABSTRACT@'); print('escaped')"),
    "the host of a virtual machine": python("socket.socket(40, socket.SOCK_STREAM); print('escaped')"),
    "a packet socket": python("socket.socket(17, socket.SOCK_RAW); print('escaped')"),
    "a raw socket": python("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print('escaped')"),
    "the kernel's ciphers": python("socket.socket(38, socket.SOCK_SEQPACKET); print('escaped')"),
    "a new interface": python(
        """
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
name = struct.pack('HH', 9, 3) + b'dummy'.ljust(12, b'\\0')[:5] + bytes(3)
body = struct.pack('BBHiII', 0, 0, 0, 0, 1, 1) + name
netlink.send(struct.pack('IHHII', 16 + len(body), 16, 0x605, 1, 0) + body)
answer = netlink.recv(4096)
print('escaped' if struct.unpack_from('i', answer, 16)[0] == 0 else '')
"""
    ),
}

FILES = {
    "by its path": "echo tried; grep @SECRET@ @FOLDER@/secret && echo escaped",
    "by a link": "ln -s @FOLDER@/secret s; echo tried; grep -r @SECRET@ s && echo escaped",
    "by process 1": "echo tried; cat /proc/1/root@FOLDER@/secret && echo escaped",
    "by its own root": "echo tried; cat /proc/self/root@FOLDER@/secret ../../../..@FOLDER@/secret && echo escaped",
    "by a descriptor": "echo tried; for f in /proc/[0-9]*/fd/*; do timeout 0.1 head -c 99 $f < /dev/null; done 2>&1"
    " | grep -a @SECRET@ && echo escaped",
    "by a folder that was open": "echo tried; ls /proc/self/fd/*/secret && echo escaped",
    "by the environment": "echo tried; (env; cat /proc/[0-9]*/environ) | grep -a @SECRET@ && echo escaped",
    "folders of the host": "echo tried; ls -d /root /home /var /opt /srv /boot /sys /mnt /run && echo escaped",
    "passwords": "echo tried; cat /etc/shadow /etc/ssh/* && echo escaped",
    "to /usr": "echo tried; touch /usr/bin/new || cp /usr/bin/id /usr/bin/true || chmod u+w /usr && echo escaped",
    "to the root": "echo tried; echo > /new && echo escaped; mkdir /newer && echo escaped",
    "to /etc": "echo tried; echo root::0:0::/:/bin/sh > /etc/passwd && echo escaped; touch /etc/x && echo escaped",
    "to /dev": "echo tried; echo > /dev/new && echo escaped; mkdir /dev/newer && echo escaped",
    "to what its shell reads": "echo tried; echo 'touch x' > /etc/entry && echo escaped; rm -f /etc/entry "
    "&& echo escaped",
    "remounted": "echo tried; mount -o remount,rw,bind /usr && echo escaped",
    "by a hard link": "echo tried; ln /usr/bin/id x && echo escaped; ln /etc/passwd x && echo escaped",
    "by a handle": python(
        """
handle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0) + bytes(128))
call(@NR:name_to_handle_at@, -100, b'/usr', handle, ctypes.byref(ctypes.c_int()), 0)
print('escaped')
"""
    ),
    "the kernel's memory": "echo tried; head -c 9 /proc/kcore && echo escaped; head -c 9 /dev/mem && echo escaped",
    "the kernel's log": "echo tried; timeout 1 head -c 9 /proc/kmsg && echo escaped; dmesg && echo escaped",
    "a restart": "echo tried; echo b > /proc/sysrq-trigger && echo escaped",
    "settings of the kernel": "echo tried; for f in kernel/core_pattern kernel/hostname vm/overcommit_memory "
    "user/max_user_namespaces net/ipv4/ip_forward; do (echo 1 > /proc/sys/$f) && echo escaped; done",
    "a device file": "echo tried; mknod x b 8 0 && echo escaped; mknod y c 1 1 && echo escaped",
    "disks": "echo tried; ls /dev/*da* /dev/nvme* /dev/loop* /dev/zero /dev/tty && echo escaped",
}

PROCESSES = {
    "a process of the host by its number": "echo tried; kill -9 @PID@ && echo escaped",
    "all processes": "echo tried; kill -9 -1; kill -STOP -1; kill -TERM -1",
    "all processes of its group": "echo tried; kill -9 0",
    "process 1 by every signal": "echo tried; for n in $(seq 1 64); do kill -$n 1; done; kill -9 1; kill -STOP 1",
    "a look at other processes": "echo tried; grep -al '@SECRET@[0-9]' /proc/[0-9]*/cmdline && echo escaped",
    "the memory of process 1": python("open('/proc/1/mem', 'r+b'); print('escaped')"),
    "what process 1 holds": "echo tried; cat /proc/1/environ && echo escaped; ls -l /proc/1/fd 2>&- | grep pipe && "
    "echo escaped; cat /proc/1/maps | grep bash && echo escaped",
    "the pipes of process 1": "echo tried; for f in /proc/1/fd/*; do (echo forged > $f) && echo escaped; done",
    "a copy of a descriptor of process 1": python("call(438, call(434, 1, 0), 1, 0); print('escaped')"),
    "limits of process 1": "prlimit --pid 1 --nofile=3:3 --fsize=0:0 --data=0:0 --cpu=1:1; echo tried",
    "priority of process 1": "echo tried; renice -n 19 1; chrt -i -p 0 1; echo 1000 > /proc/1/oom_score_adj",
    "ptrace of process 1": python("call(@NR:ptrace@, 16, 1, 0, 0); print('escaped')"),
    "ptrace of a child": python("call(@NR:ptrace@, 16, subprocess.Popen(['sleep', '9']).pid, 0, 0); print('escaped')"),
    "the memory of another process": python(
        """
vector = struct.pack('QQ', 0, 8)
call(@NR:process_vm_readv@, 1, vector, 1, vector, 1, 0)
print('escaped')
"""
    ),
    "a user namespace": "echo tried; unshare -U true && echo escaped; unshare -Ur id && echo escaped",
    "other namespaces": "echo tried; for n in m u i n p C; do unshare -$n true && echo escaped; done",
    "a user namespace by clone": python(
        "print('escaped' if call({'x86_64': 56, 'aarch64': 220}[os.uname().machine], 0x10000011, 0, 0, 0, 0) else '')"
    ),
    "a user namespace by clone3": python(
        """
arguments = struct.pack('8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0)
print('escaped' if call(435, arguments, len(arguments)) else '')
"""
    ),
    "namespaces of process 1": python(
        """
for name in os.listdir('/proc/1/ns'):
    try:
        call(@NR:setns@, os.open('/proc/1/ns/' + name, os.O_RDONLY), 0)
        print('escaped')
    except OSError:
        pass
"""
    ),
    "another root": "echo tried; chroot /work true && echo escaped; chroot /proc/1/root true && echo escaped",
    "a mount": "echo tried; mount -t tmpfs none /tmp && echo escaped; mount --bind /usr /work && echo escaped",
    "the new calls of mount": python("call(@NR:fsopen@, b'tmpfs', 0); print('escaped')"),
    "a mount less": "echo tried; umount /usr && echo escaped; umount -l / && echo escaped",
    "to be root": python("os.setuid(0); print('escaped')"),
    "to be root by a file": "cp /usr/bin/id .; chmod u+s,g+s id; echo tried; ./id | grep -v 'uid=1000.*gid=1000' && "
    "echo escaped",
    "to be root by su": "echo tried; echo | timeout 2 su -c 'echo got in' | grep got && echo escaped",
    "capabilities": "echo tried; setpriv --inh-caps=+all --ambient-caps=+all true && echo escaped; "
    "grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status | grep -v 0000000000000000 && echo escaped",
    "key rings": python("call(@NR:add_key@, b'user', b'name', b'x', 1, -4); print('escaped')"),
    "key rings of others": python("call(@NR:keyctl@, 0, -4, 1); print('escaped')"),
    "a program in the kernel": python("call(@NR:bpf@, 0, bytes(128), 128); print('escaped')"),
    "counters of the processor": python("call(@NR:perf_event_open@, bytes(128), 0, -1, -1, 0); print('escaped')"),
    "a ring of calls": python("call(@NR:io_uring_setup@, 8, bytes(128)); print('escaped')"),
    "faults of its own": python("call(@NR:userfaultfd@, 1); print('escaped')"),
    "calls by other numbers": python(
        "print('escaped' if os.uname().machine == 'x86_64' and call(0x40000000 + 39) else '')"
    ),
    "calls of 32 bits": python(
        """
if os.uname().machine == 'x86_64' and os.fork() == 0:
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
    page.write(bytes.fromhex('b814000000cd80c3'))  # getpid by interrupt 0x80
    where = ctypes.addressof(ctypes.c_char.from_buffer(page))
    print('escaped' if ctypes.CFUNCTYPE(ctypes.c_int)(where)() > 0 else '')
time.sleep(0.1)
"""
    ),
    "characters for a terminal": python(
        """
for end in (0, 1, 2, *range(3, 12)):
    try:
        fcntl.ioctl(end, termios.TIOCSTI, b'x')
        print('escaped')
    except OSError:
        pass
os.open('/dev/tty', os.O_RDWR)
print('escaped')
"""
    ),
    "a dump of memory": "echo tried; ulimit -c unlimited && echo escaped; sleep 9 & kill -SEGV $!; wait; ls core* "
    "&& echo escaped",
    "higher limits": python("resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999)); print('escaped')"),
    "priority": "echo tried; nice -n -5 true 2>&1 | grep -q . || echo escaped; chrt -f 1 true && echo escaped",
}

SURVIVAL = {
    "in the background": "echo tried; sleep 600 & nohup sleep 600 & disown -a",
    "in a session of its own": "echo tried; setsid -f sleep 600; (setsid nohup sleep 600 > /dev/null 2>&1 &)",
    "forked twice, without descriptors": python(
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 256)
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        time.sleep(600)
    os._exit(0)
"""
    ),
    "as a chain of forks": python(
        """
if os.fork() == 0:
    while True:
        if os.fork():
            os._exit(0)
"""
    ),
    "while it writes files": "echo tried; (while :; do echo x >> log; echo y > log.$RANDOM; done) & sleep 0.2",
    "as another program": "echo tried; exec setsid sleep 0.1",
}

PAST_THE_LIMIT = {
    "asleep": "echo tried; sleep 600",
    "deaf to signals": "echo tried; trap '' TERM INT HUP QUIT ALRM; while :; do sleep 1; done",
    "stopped": "echo tried; kill -STOP $$",
    "forked twice": "echo tried; setsid -f sleep 600; sleep 600",
    "on a pipe": "mkfifo p; echo tried; cat p",
    "with its output closed": "echo tried; exec >&- 2>&- 9>&-; sleep 600",
    "busy": "echo tried; for i in 1 2 3 4; do (while :; do :; done) & done; wait",
}

FILL = "echo tried; cd {}; for i in 1 2 3 4 5; do head -c 5M /dev/urandom > $i || exit; done; echo escaped"

BOMBS = {
    "forks": "echo tried; f() { f | f & }; f; sleep 1",
    "processes": python(
        """
pids = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        pids.append(pid)
except OSError:
    print('escaped' if len(pids) > 32 else '')
"""
    ),
    "threads": python(
        """
count = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        count += 1
except RuntimeError:
    print('escaped' if count > 32 else '', flush=True)
    os._exit(0)
"""
    ),
    "memory of a process": python("held = bytearray(300 * MIB); print('escaped')"),
    "memory of several": python(
        """
for _ in range(4):
    if os.fork() == 0:
        held = b'1' * (100 * MIB)
        time.sleep(600)
time.sleep(15)
print('escaped')
"""
    ),
    "memory of a chain of forks": python(
        """
held = b'1' * (100 * MIB)
for _ in range(3):
    if os.fork() == 0:
        more = b'2' * (100 * MIB)
        until = time.time() + 15
        while time.time() < until:
            if os.fork():
                os._exit(0)
        print('escaped')
time.sleep(15)
"""
    ),
    "a memory file": python("call(@NR:memfd_create@, b'x', 0); print('escaped')"),
    "System V memory": python("call(@NR:shmget@, 0, 300 * MIB, 0o1600); print('escaped')"),
    "System V messages": python("call(@NR:msgget@, 0, 0o1600); print('escaped')"),
    "System V semaphores": python("call(@NR:semget@, 0, 9, 0o1600); print('escaped')"),
    "POSIX messages": python(
        """
number = {'x86_64': 240, 'aarch64': 180}[os.uname().machine]
call(number, b'x', os.O_CREAT | os.O_RDWR, 0o600, 0)
print('escaped')
"""
    ),
    "huge pages": python(
        """
try:
    mmap.mmap(-1, 2 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
    print('escaped')
except OSError as error:
    print('escaped' if error.errno != errno.EPERM else '')
"""
    ),
    "slots for asynchronous files": python(
        "call(@NR:io_setup@, 60_000, ctypes.byref(ctypes.c_ulong())); print('escaped')"
    ),
    "shared memory of no file": python("mmap.mmap(-1, 300 * MIB); print('escaped')"),
    "shared memory of /dev/zero": "echo tried; cat /dev/zero > /dev/null && echo escaped",
    "pages in pipes": python(
        """
reading, writing = os.pipe()
page = ctypes.create_string_buffer(4096)
call(@NR:vmsplice@, writing, struct.pack('QQ', ctypes.addressof(page), 4096), 1, 0)
print('escaped')
"""
    ),
    "locked memory": python(
        """
page = ctypes.create_string_buffer(MIB)
if libc.mlock(page, MIB) == 0:
    print('escaped')
"""
    ),
    "tables of pages": python(
        """
size = 1 << 39
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_size_t]
start = libc.mmap(None, size, 1, 0x4022, -1, 0)
assert start not in (None, 2**64 - 1)
for at in range(start, start + size, 2 * MIB):
    ctypes.string_at(at, 1)
print('escaped')
"""
    ),
    "sockets": python(
        """
for _ in range(8):
    if os.fork() == 0:
        pairs = []
        try:
            while True:
                pairs.append(socket.socketpair())
                pairs[-1][0].setblocking(False)
                try:
                    while True:
                        pairs[-1][0].send(bytes(2**15))
                except BlockingIOError:
                    pass
        except OSError:
            time.sleep(600)
time.sleep(15)
print('escaped')
"""
    ),
    "descriptors": python(
        """
try:
    for count in range(10_000):
        os.dup(1)
    print('escaped')
except OSError:
    print('escaped' if count > 256 else '')
"""
    ),
    "files in /work": python("open('x', 'wb').write(bytes(17 * MIB)); print('escaped')"),
    **{f"many files in {place}": FILL.format(place) for place in ("/work", "/tmp", "/dev/shm")},
    "a sparse file": "echo tried; truncate -s 1T x && echo escaped",
    "sparse files": "echo tried; for i in $(seq 100); do truncate -s 16M $i; done",
    "names": python(
        """
for number in range(10**6):
    open(f'/tmp/{number}', 'w').close()
print('escaped')
"""
    ),
    "links": python(
        """
open('x', 'w').close()
for number in range(10**6):
    os.link('x', f'y{number}')
print('escaped')
"""
    ),
    "folders in folders": python(
        """
for number in range(10**6):
    os.mkdir('d' * 200)
    os.chdir('d' * 200)
print('escaped')
"""
    ),
    "output": "echo tried; yes",
    "errors": "echo tried; yes >&2",
    "output of many": "echo tried; for i in 1 2 3 4; do yes & done; wait",
    "a directory without end": "echo tried; yes >&9 & sleep 0.5; kill $!",
    "one line": "echo tried; head -c 12M /dev/urandom | tr -d '\\n'",
}

ATTEMPTS = {
    f"{kind}: {name}": command
    for kind, attempts in {
        "network": NETWORK,
        "files": FILES,
        "processes": PROCESSES,
        "survival": SURVIVAL,
        "past the limit": PAST_THE_LIMIT,
        "bomb": BOMBS,
    }.items()
    for name, command in attempts.items()
}

ENDED = {"memory of several", "sockets", "output", "errors", "output of many"}
ENDED |= {"tables of pages", "names", "links", "folders in folders"}
"""Bombs that a limit ends, and with them the command."""


class Host:
    """What there is to be reached, killed or read on the host."""

    def __init__(self, stack):
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (self.folder / "secret").write_text(SECRET, encoding="utf-8")
        self.canary = subprocess.Popen([f"{SECRET}0", "600"], executable=shutil.which("sleep"), env={"SECRET": SECRET})
        stack.callback(self.canary.wait)
        stack.callback(self.canary.kill)
        opened = os.open(self.folder, os.O_RDONLY), os.open(self.folder / "secret", os.O_RDONLY)
        for end in opened:
            os.set_inheritable(end, True)
            stack.callback(os.close, end)
        os.environ["HOST_SECRET"] = SECRET
        stack.callback(os.environ.pop, "HOST_SECRET")
        has_both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if has_both else socket.AF_INET
        both = socket.create_server(("", 0), family=family, dualstack_ipv6=has_both)
        self.reached = []
        abstract = f"hf_toolssm {os.getpid()} {os.urandom(4).hex()}"
        for address, server in (
            (None, both),
            (str(self.folder / "socket"), socket.socket(socket.AF_UNIX)),
            (f"\0{abstract}", socket.socket(socket.AF_UNIX)),
        ):
            if address is not None:
                server.bind(address)
                server.listen()
            stack.callback(server.close)
            threading.Thread(target=self._accept, args=(server,), daemon=True).start()
        self.words = {
            "PORT": both.getsockname()[1],
            "ADDRESS": own_address(),
            "FOLDER": self.folder,
            "ABSTRACT": abstract,
            "SECRET": SECRET,
            "PID": self.canary.pid,
        }
        self.neighbour = Bash(workdir={"alive": "alive"}).start("")
        self.mounts = mounts()

    def _accept(self, server):
        while True:
            try:
                self.reached.append(server.accept())
            except OSError:
                return

    def command(self, attempt):
        """An attempt's command, for this host."""
        column, _ = ARCHITECTURES[os.uname().machine]
        command = re.sub("@NR:(.*?)@", lambda match: str(SYSTEM_CALLS[match[1]][column]), ATTEMPTS[attempt])
        for word, value in self.words.items():
            command = command.replace(f"@{word}@", str(value))
        return f"readlink /proc/self/ns/pid\n{command}"

    def check(self, attempt):
        """Makes an attempt and finds that it did not succeed."""
        limits = LIMITS | ({"time_limit": 2} if attempt.startswith("past the limit") else {})
        shell = Bash({"kept": "kept"}, **limits).start("")
        with ThreadPoolExecutor(1) as beside:
            neighbour = beside.submit(self.neighbour.call, "bash", "sleep 0.1; cat alive")
            observation = shell.call("bash", self.command(attempt))
            alive = alive_in(NAMESPACE.match(observation)[0], ticks())
        assert "\ntried" in observation, observation
        assert "escaped" not in observation, observation
        assert len(observation) < 5000
        ended = "[ended by its " in observation
        if attempt.startswith("past the limit"):
            assert "[ended by its time limit of 2 seconds; the files are as before the command]" in observation
        elif attempt.partition(": ")[2] in ENDED:
            assert ended, observation
        if ended:
            assert shell.files() == {"kept": b"kept"}
        assert neighbour.result() == "alive"
        assert not alive
        assert self.canary.poll() is None
        assert not self.reached
        assert mounts() == self.mounts
        assert sorted(path.name for path in self.folder.iterdir()) == ["secret", "socket"]
        assert (self.folder / "secret").read_text(encoding="utf-8") == SECRET
        # The shell itself goes on, with files that it can have.
        assert shell.call("bash", "cd /work; cat kept") == "kept"


def own_address():
    """This machine's address, if it has another than the loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


def alive_in(namespace, now):
    """The processes of a process namespace, dead ones that nobody has waited for included. A namespace that has begun
    since may have its name; `now` is in ticks since the machine started, because a date is right to a second only."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.NoSuchProcess):
            if os.readlink(f"/proc/{process.pid}/ns/pid") == namespace:
                fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                if int(fields[19]) < now:  # its start
                    found.append(process)
    return found


def ticks():
    """Since the machine started."""
    seconds = Path("/proc/uptime").read_text(encoding="utf-8").split()[0]
    return round(float(seconds) * os.sysconf("SC_CLK_TCK"))


def mounts():
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8")


@contextmanager
def a_host():
    with ExitStack() as stack:
        yield Host(stack)


@pytest.fixture(scope="module")
def host():
    with a_host() as host:
        yield host


SLOW = {"bomb: names", "bomb: links", "bomb: folders in folders"}


@pytest.mark.parametrize(
    "attempt", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ATTEMPTS]
)
def test_no_attempt_to_escape_succeeds(host, attempt):
    host.check(attempt)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="all attempts have already been made by a user without privileges")
def test_no_attempt_of_a_user_without_privileges_succeeds():
    code = f"import test_bash_escapes as attempts; attempts.as_user({NOBODY})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [str(NOBODY), str(len(ATTEMPTS))]


NOBODY = 65534


def as_user(number):
    """Makes all attempts in this process, as a user."""
    Bash().start("").call("bash", "sleep 0.2")  # which imports what that user may not be allowed to read
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
    with a_host() as host:
        for attempt in ATTEMPTS:
            host.check(attempt)
    sys.stdout.write(f"{os.getuid()} {len(ATTEMPTS)}")
