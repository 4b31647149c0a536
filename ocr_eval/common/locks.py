"""File locks of the operating system, which releases them however the process ends."""

import errno
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock

from ocr_eval.common.errors import UserError

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def hold(path: Path, timeout: float = -1) -> AcquireReturnProxy[FileLock]:
    """Lock a file, creating it if needed, until the end of a ``with`` block or ``.lock.release()``.

    The file is never deleted: two processes could then each lock a file of that name. ``timeout`` is the seconds to
    wait for another process; negative waits forever.

    Raises:
        filelock.Timeout: another process still holds the lock.
        UserError: the file system has no locks. (A marker file in their place would outlive a killed process.)
    """
    try:
        return FileLock(path, timeout=timeout, fallback_to_soft=False).acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise UserError(
            f"The file system of {path.parent} has no file locks ({error.strerror}). Choose a folder on one that has "
            "them: --output-dir for results, OCR_EVAL_CACHE for the cache."
        ) from error
