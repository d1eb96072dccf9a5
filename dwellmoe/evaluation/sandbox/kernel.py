"""Linux system calls that confine a process and that Python does not offer.

Standard library only: it runs in a bare interpreter. Every function raises OSError where the kernel refuses.
"""

import ctypes
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USERS, NEW_NETWORK = 0x00020000, 0x10000000, 0x40000000
NEW_IPC, NEW_HOSTNAME = 0x08000000, 0x04000000
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000
READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXEC = 0x1, 0x2, 0x4, 0x8
_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS, _SECCOMP = 1, 4, 38, 22
_CAPABILITY_VERSION = 0x20080522
# Numbers above 423 are the same on every architecture.
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _call(number: int, what: str, *arguments) -> int:
    """A raw system call; whole numbers go in full registers."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in (number, *arguments)]
    return _check(LIBC.syscall(*wide), what)


def _set(what: str, *values: int) -> None:
    _check(LIBC.prctl(*(ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:5])), what)


def _text(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def unshare(flags: int) -> None:
    """New namespaces for this process."""
    _check(LIBC.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    arguments = (_text(source), _text(target), _text(kind), ctypes.c_ulong(flags), _text(data))
    _check(LIBC.mount(*arguments), f"mount {target}")


def make_read_only(path: str) -> None:
    """Everything mounted at a path, below it too, is read-only and honours no set-user-id bit."""
    attributes = struct.pack("=QQQQ", READ_ONLY | NO_SETUID | NO_DEVICES, 0, 0, 0)
    arguments = (_AT_FDCWD, _text(path), _AT_RECURSIVE, attributes, len(attributes))
    _call(_MOUNT_SETATTR, "read-only root", *arguments)


def change_root(path: str) -> None:
    """`path` (a mount point) becomes `/`; the old tree is gone."""
    os.chdir(path)
    _call(_PIVOT_ROOT.get(os.uname().machine, -1), "pivot_root", b".", b".")
    _check(LIBC.umount2(b".", _DETACH), "umount")
    os.chdir("/")


def die_with_parent(signal_number: int) -> None:
    """Has this signal sent to this process when its parent ends."""
    _set("prctl", _PDEATHSIG, signal_number)


def never_gain_privileges() -> None:
    """No program started here has more rights than this process, whose memory others cannot read."""
    _set("no_new_privs", _NO_NEW_PRIVS, 1)
    _set("dumpable", _DUMPABLE, 0)


def drop_capabilities() -> None:
    """A root process stays root by name and loses all its capabilities."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _check(LIBC.capset(header, bytes(24)), "capset")


def install_filter(program: bytes) -> None:
    """A seccomp filter, for good; `program` is its classic BPF code."""
    code = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    _set("seccomp", _SECCOMP, 2, ctypes.addressof(header))


def landlock_version() -> int:
    """Version of Landlock the kernel offers. Raises OSError where it has none."""
    return _call(_LANDLOCK_CREATE, "landlock", None, 0, 1)


def restrict_files(handled: int, allowed: dict[str, int]) -> None:
    """Landlock: of the `handled` rights only those of `allowed` (path -> rights, below it too) remain."""
    rules = struct.pack("=Q", handled)
    ruleset = _call(_LANDLOCK_CREATE, "landlock", rules, len(rules), 0)
    for path, rights in allowed.items():
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, folder)
        _call(_LANDLOCK_ADD, f"landlock {path}", ruleset, 1, rule, 0)
        os.close(folder)
    _call(_LANDLOCK_RESTRICT, "landlock", ruleset, 0)
    os.close(ruleset)
