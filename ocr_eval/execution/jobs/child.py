"""Run as a script: ties this process to its parent's life (on Linux), ignores signals, and becomes a command.

Arguments: the parent's process number, the signals' numbers with commas between, and the command.
"""

import ctypes
import os
import signal
import sys

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2), kept by exec

if __name__ == "__main__":
    parent, ignored, *command = sys.argv[1:]
    for number in filter(None, ignored.split(",")):
        signal.signal(int(number), signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before the signal was asked for
            os.kill(os.getpid(), signal.SIGKILL)
    os.execvp(command[0], command)
