"""What an engine process gives up before it opens a file: its parent's life beyond its own, the network, core dumps, new privileges.

Each is done as far as the system knows it; `leave_network` says whether it could be done. All of it must come before the first thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def give_up() -> bool:
    """All of it; gives whether the process can still reach a network."""
    os.umask(0o077)
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    network = not leave_network()
    # Behind the change of namespaces, which makes the kernel forget it.
    die_with_parent()
    _control(_PR_SET_NO_NEW_PRIVS, 1)
    return network


def leave_network() -> bool:
    """Move into a network namespace of its own, which has not even a loopback that is up; False where the system does not allow it."""
    if not sys.platform.startswith("linux"):
        return False
    user, group = os.getuid(), os.getgid()
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if unshare(_CLONE_NEWNET) == 0:
        return True
    if unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with suppress(OSError):
        # The same names inside as outside, so that files belong to whom they belonged.
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends; other systems have the end of the socket only."""
    _control(_PR_SET_PDEATHSIG, signal.SIGKILL if sys.platform != "win32" else 9)


def _control(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
