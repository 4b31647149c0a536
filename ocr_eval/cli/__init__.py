"""The command line: parse, call, print. Heavy imports stand inside the commands, so that --help is instant."""

from ocr_eval.cli.app import app, main

__all__ = ["app", "main"]
