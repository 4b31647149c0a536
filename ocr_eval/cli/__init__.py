"""The command line: parse, call, print. Heavy imports are inside the commands, so that --help is fast."""

from ocr_eval.cli.app import app, main

__all__ = ["app", "main"]
