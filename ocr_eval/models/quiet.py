"""transformers without its progress bars and advice."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the library's bars and advice off the terminal while loading; exceptions still come through."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
