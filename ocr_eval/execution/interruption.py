"""Ctrl-C during training: stop without losing an epoch that is finished but not on disk yet.

Parameters change with every step, so training can resume bit for bit only from the end of an epoch. Keeping a copy of
that state in memory would cost three times the trainable parameters. Finishing the current epoch costs only a little
patience, and checkpoints are frequent, so at most some seconds of work are unsaved. So the first signal lets the epoch
end and be saved, and a second one stops at once. If every finished epoch is on disk, or none is finished, the first
signal also stops at once.
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
#: Seconds within which a second signal is the same request: ``timeout`` signals a process, then its group.
_ECHO = 0.3


class StopRequest:
    """Whether the user asked to stop.

    Attributes:
        unsaved: the last finished epoch if it is not on disk, else 0.
        made: whether a request is waiting for the epoch to be saved.
    """

    def __init__(self) -> None:
        self.unsaved = 0
        self.made = False
        self._at = -_ECHO

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: no work would be lost, or it is the second request.
        """
        if time.monotonic() - self._at < _ECHO:
            return
        self._at = time.monotonic()
        if self.made or not self.unsaved:
            raise KeyboardInterrupt
        self.made = True
        with suppress(RuntimeError):  # the signal arrived during a write to the same stream
            print("Finishing this epoch, then saving it. Press Ctrl-C again to stop at once.", file=sys.stderr)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the ``with``, handle Ctrl-C, and SIGTERM if Python already handles it, as a request to stop.

    Handlers are left alone in threads, which cannot set them, and in distributed runs, whose processes would all have
    to stop at the same step.
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
