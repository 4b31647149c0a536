"""``python -m ocr_eval``, for launchers that want a module."""

from ocr_eval.cli import main

main()
