"""Shared foundations: errors, atomic files and locks, messages, random streams, strict YAML, provenance.

In and out: values of Python and the standard library. Imports none of the other subpackages.
"""
