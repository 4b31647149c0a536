"""Texts for covariances: the shipped one, or a named file with a digest of its content."""

import hashlib
from pathlib import Path

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_bytes

#: This project's own pages, under its licence.
SHIPPED = "prose"


def named(text: str) -> str:
    """``prose``, or ``FILE@<12 digits>``, so that the content names the run; ValueError where ``text_file`` fails."""
    if text == SHIPPED:
        return text
    try:
        path, digest = text_file(text)
    except UserError as error:
        raise ValueError(str(error)) from error
    return f"{path}@{digest}"


def text_file(text: str) -> tuple[Path, str]:
    """The file of a text, and the first 12 digits of its sha256; UserError if it is missing, or has changed."""
    name, _, stated = text.partition("@")
    path = yaml_files.shipped("texts") / "prose.txt" if name == SHIPPED else yaml_files.expand(name)
    digest = hashlib.sha256(read_bytes(path)).hexdigest()[:12]
    if stated not in ("", digest):
        raise UserError(f"{path} has changed: its digest is {digest}, not {stated}. Restore it, or drop the '@'.")
    return path, digest
