"""The one way to lock a file: by the system, which lets go of it however the process that holds it ends."""

import errno
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock

from ocr_eval.common.errors import UserError

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def hold(path: Path, timeout: float = -1) -> AcquireReturnProxy[FileLock]:
    """Lock a file, which is made if it is not there, until the end of a ``with`` or ``.lock.release()``.

    The file stays, for removing it could let two processes hold two files of that name. ``timeout`` is seconds to wait
    while another process holds it; below 0: forever.

    Raises:
        filelock.Timeout: another process holds it still.
        UserError: its file system has no locks. A mark in their place would stay when its process is killed.
    """
    try:
        return FileLock(path, timeout=timeout, fallback_to_soft=False).acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise UserError(
            f"The file system of {path.parent} has no file locks ({error.strerror}). Use a folder on one that has: "
            "--output-dir for results, OCR_EVAL_CACHE for the cache."
        ) from error
