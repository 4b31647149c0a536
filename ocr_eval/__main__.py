"""``python -m ocr_eval``, for launchers that need a module."""

from ocr_eval.cli import main

main()
