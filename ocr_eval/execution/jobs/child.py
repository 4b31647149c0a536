"""Run as a script: makes this process die with its parent (on Linux), then becomes a command.

Arguments: the parent's process id and the command.
"""

import ctypes
import os
import signal
import sys

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2), kept by exec

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before prctl
            os.kill(os.getpid(), signal.SIGKILL)
    os.execvp(command[0], command)
