"""Knows how a process gives up all it does not need, for good; does not know what it will run.

Files are fenced in one of two backends: `namespaces` (a root of its own: read-only standard library, a small
working folder in memory, no network, nothing else) or `landlock` (where no user namespace is to be had: the
same library read-only and a working folder on disk). System calls are fenced in both (system_calls.py).
A third way, `unfenced`, leaves files open and is there for those who ask for it by name.
"""

import os
import resource
import sys
import sysconfig

from dwellmoe.evaluation.sandbox import kernel
from dwellmoe.evaluation.sandbox.system_calls import filter_for

BACKENDS = ("namespaces", "landlock")
UNCONFINED = "unfenced"
OPEN_FILES = 32
FILE_SHARE = 8
"""One file may have this part of all bytes, so that open files without a name cannot hold much more."""
WORK = "/work"
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER
_LEAST_LANDLOCK = 3
"""Before it, truncating a file was nobody's right to refuse."""
_ALL_RIGHTS = {3: (1 << 15) - 1, 5: (1 << 16) - 1}


def fence_files(backends: list[str], folder: str, file_bytes: int) -> str:
    """Leaves only the standard library (to read) and one folder (to write), made the current one.

    Gives the way that held, the first of `backends` that the kernel grants. Raises OSError with all reasons.
    """
    reasons = []
    for way in backends:
        try:
            {"namespaces": _own_root, "landlock": _landlock, UNCONFINED: _unfenced}[way](folder, file_bytes)
            return way
        except OSError as error:
            reasons.append(f"{way}: {error.strerror or error}")
    raise OSError(0, "; ".join(reasons) or "no way to fence files was allowed")


def limit_resources(memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    """Hard limits of this process, which it cannot raise again."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: file_bytes // FILE_SHARE,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 1,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def fence_calls() -> None:
    """Drops capabilities and refuses system calls; nothing after this can be undone. Raises OSError."""
    kernel.drop_capabilities()
    kernel.never_gain_privileges()
    kernel.install_filter(filter_for(os.uname().machine))


def library_folders() -> list[str]:
    """Folders that the standard library and its compiled modules are loaded from."""
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *sys.path]
    paths += [sysconfig.get_config_var("LIBDIR"), "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    folders = sorted({os.path.realpath(path) for path in paths if path and os.path.isdir(path)})
    return [path for path in folders if not any(path.startswith(f"{other}/") for other in folders)]


def _own_root(folder: str, file_bytes: int) -> None:
    user, group = os.geteuid(), os.getegid()
    flags = kernel.NEW_USERS | kernel.NEW_MOUNTS | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_HOSTNAME
    kernel.unshare(flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    kernel.mount(None, "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    safe = kernel.NO_SETUID | kernel.NO_DEVICES
    kernel.mount("none", folder, "tmpfs", safe, "size=1m,mode=755")
    for path in library_folders():
        os.makedirs(folder + path, exist_ok=True)
        kernel.mount(path, folder + path, None, kernel.BIND | kernel.RECURSIVE)
    for link in ("/lib", "/lib64"):
        if os.path.islink(link):
            os.symlink(os.readlink(link), folder + link)
    os.mkdir(folder + WORK)
    kernel.make_read_only(folder)
    work = f"size={file_bytes},nr_inodes=1024,mode=755"
    kernel.mount("none", folder + WORK, "tmpfs", safe | kernel.NO_EXEC, work)
    kernel.change_root(folder)
    os.chdir(WORK)


def _landlock(folder: str, file_bytes: int) -> None:
    version = kernel.landlock_version()
    if version < _LEAST_LANDLOCK:
        raise OSError(0, f"landlock version {version}, at least {_LEAST_LANDLOCK} is needed")
    every = _ALL_RIGHTS[5 if version >= 5 else 3]
    kernel.never_gain_privileges()
    allowed = dict.fromkeys(library_folders(), _READ) | {folder: every & ~_EXECUTE}
    kernel.restrict_files(every, allowed)
    os.chdir(folder)


def _unfenced(folder: str, file_bytes: int) -> None:
    os.chdir(folder)
