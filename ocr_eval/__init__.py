"""Measures what else a language model learns when it is taught facts."""

__version__ = "0.1.0"
