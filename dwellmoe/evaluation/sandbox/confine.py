"""Confines the current process, for good: it gives up all rights that a computing program does not need.

Two backends confine its files. `namespaces`: a root folder of its own with a read-only standard library and a
small working folder in memory, and no network. `landlock`, where the kernel grants no user namespace: the
same library read-only and a working folder on disk. System calls are restricted with both (system_calls.py).
A third backend, `unconfined`, leaves all files accessible; it is used only where it is named.
"""

import os
import resource
import sys
import sysconfig

from dwellmoe.evaluation.sandbox import kernel
from dwellmoe.evaluation.sandbox.system_calls import filter_for

BACKENDS = ("namespaces", "landlock")
UNCONFINED = "unconfined"
OPEN_FILES = 32
FILE_SHARE = 8
"""One file may have 1/8 of all bytes, so that open files without a name cannot hold much more."""
WORK = "/work"
_EXECUTE, _READ_FILE, _READ_FOLDER = 1, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER
_LEAST_LANDLOCK = 3
"""The first version that can refuse to truncate a file."""
_ALL_RIGHTS = {3: (1 << 15) - 1, 5: (1 << 16) - 1}


def confine_files(backends: list[str], folder: str, file_bytes: int) -> str:
    """Leaves only the standard library (to read) and one folder (to write), made the current one.

    Returns the backend used: the first of `backends` that the kernel grants. Raises OSError with all reasons.
    """
    confine = {"namespaces": _own_root, "landlock": _landlock, UNCONFINED: _unconfined}
    reasons = []
    for backend in backends:
        try:
            confine[backend](folder, file_bytes)
            return backend
        except OSError as error:
            reasons.append(f"{backend}: {error.strerror or error}")
    raise OSError(0, "; ".join(reasons) or "no backend to confine files was allowed")


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


def confine_calls() -> None:
    """Drops capabilities and refuses system calls, for good. Raises OSError."""
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


def _unconfined(folder: str, file_bytes: int) -> None:
    os.chdir(folder)
