"""A seccomp filter that allows the system calls a computing Python program needs and refuses all others.

What is refused fails with EPERM: starting a process or thread, another program, sockets, signals (also those
that fcntl can have sent), folders, links, modes, owners, mounts, and whatever a future kernel adds. So a
program stays one process of one thread, and what it writes lies flat in one folder.
"""

import errno
import struct
from collections.abc import Sequence

CALLS = """
read 0 63, write 1 64, close 3 57, lseek 8 62, fstat 5 80, pread64 17 67, pwrite64 18 68, readv 19 65,
writev 20 66, open 2 -, openat 257 56, stat 4 -, lstat 6 -, newfstatat 262 79, statx 332 291,
statfs 137 43, fstatfs 138 44, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -,
readlinkat 267 78, getdents64 217 61, getcwd 79 17, umask 95 166, unlink 87 -, unlinkat 263 35,
rename 82 -, renameat 264 38, renameat2 316 276, ftruncate 77 46, fsync 74 82, fdatasync 75 83,
dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, brk 12 214,
msync 26 227, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132,
restart_syscall 219 128, alarm 37 -, setitimer 38 103, getitimer 36 102, getpid 39 172, gettid 186 178,
getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, uname 63 160,
futex 202 98, sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168, rseq 334 293,
set_robust_list 273 99, sysinfo 99 179, clock_gettime 228 113, clock_getres 229 114,
clock_nanosleep 230 115, nanosleep 35 101, gettimeofday 96 169, time 201 -, times 100 153,
getrusage 98 165, getrlimit 97 163, getrandom 318 278, exit 60 93, exit_group 231 94
"""
"""Name, number on x86_64, number on aarch64 (-: it has none)."""
FCNTL = (72, 25)
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
"""Duplicate, get and set flags. F_SETOWN and F_SETSIG would let the kernel send any signal to any process."""
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine -> its audit number and its column in the table above."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24
_KILL_PROCESS, _ALLOW, _FAIL = 0x80000000, 0x7FFF0000, 0x00050000
Code = list[tuple[int, int, int, int]]


def filter_for(machine: str) -> bytes:
    """Classic BPF code for prctl(PR_SET_SECCOMP). Raises OSError for a machine that is not in the table."""
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    audit_number, column = ARCHITECTURES[machine]
    fcntl = [(_LOAD, 0, 0, _SECOND_ARGUMENT), *_one_of(FCNTL_COMMANDS)]
    code = [
        *((_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, audit_number), (_RETURN, 0, 0, _KILL_PROCESS)),
        *((_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, len(fcntl), FCNTL[column])),
        *fcntl,
        *_one_of(allowed_numbers(column)),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def allowed_numbers(column: int) -> list[int]:
    """Numbers of the allowed system calls in one column of the table."""
    rows = [entry.split()[1:] for entry in CALLS.split(",")]
    return sorted(int(numbers[column]) for numbers in rows if numbers[column] != "-")


def _one_of(values: Sequence[int]) -> Code:
    """Code that allows these values only; each comparison that holds jumps over the rest and the refusal."""
    code = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*code, (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
