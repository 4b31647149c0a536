"""Ctrl-C while a pack trains: stop without losing an epoch that is finished but not on disk yet.

Parameters change with every step, so only the end of an epoch is a state that training can resume from bit for bit.
A copy of that state in memory would cost three times the trainable parameters; finishing the epoch costs nothing but
a little patience, since checkpoints are written so often that unsaved work is never more than some seconds long. So
the first signal lets the epoch end and be saved, and a second one stops at once. Where every finished epoch is on disk,
or none is finished, the first signal stops at once too.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ocr_eval.common.distributed import is_alone

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds within which a second signal is the same request: ``timeout`` signals a process and then its group.
_ECHO = 0.3


class StopRequest:
    """Whether the user asked to stop.

    Attributes:
        unsaved: the last finished epoch while it is not on disk, else 0.
        made: whether the request waits for the epoch to be saved.
    """

    def __init__(self) -> None:
        self.unsaved = 0
        self.made = False
        self._at = -_ECHO

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: nothing would be lost, or it is the second request.
        """
        if time.monotonic() - self._at < _ECHO:
            return
        self._at = time.monotonic()
        if self.made or not self.unsaved:
            raise KeyboardInterrupt
        self.made = True
        with suppress(RuntimeError):  # the signal came while the very stream was written to
            print("Finishing this epoch, then saving it. Press Ctrl-C again to stop at once.", file=sys.stderr)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Receive Ctrl-C, and SIGTERM where it is handled at all, as a request until the end of a ``with``.

    Signals stay as they are in a thread, where they are ignored, and among processes that train one run together: all
    of them would have to stop at the same step.
    """
    request = StopRequest()
    before = {}
    if is_alone() and threading.current_thread() is threading.main_thread():
        before = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, request.receive)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
