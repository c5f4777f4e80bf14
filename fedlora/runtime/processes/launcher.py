"""Becomes a service: run by the supervisor in the new process, as a script, before the service.

``python -I -S launcher.py PARENT USER DESCRIPTOR COMMAND …`` becomes USER (``uid:gid``), sees to it
that the process dies with the process PARENT, moves the listening socket DESCRIPTOR to where
systemd's socket activation has it (sd_listen_fds(3)), and turns into COMMAND; ``-`` is for no user
and no socket. A hook between fork and exec could do the same, but Python does not promise that one
is safe.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the process gets when its parent dies. Exec keeps it."""
_FIRST_DESCRIPTOR = 3
"""Where sd_listen_fds(3) begins."""


def main(parent: str, user: str, descriptor: str, *command: str) -> None:
    """Turn this process into ``command``, whose first part is an absolute path.

    Nothing is imported after the change of user, who may not be allowed to read Python's library.
    """
    if user != "-":
        uid, gid = map(int, user.split(":"))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)  # this undoes what prctl does below, so it comes first
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):  # it died before the kernel knew what to do then
        sys.exit("The supervisor has gone.")
    if descriptor != "-":
        if int(descriptor) != _FIRST_DESCRIPTOR:
            os.dup2(int(descriptor), _FIRST_DESCRIPTOR)
            os.close(int(descriptor))
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    try:
        os.execv(command[0], command)  # noqa: S606 - a shell has no part in it
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(*sys.argv[1:])
