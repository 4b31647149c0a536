"""Turns a spec into a Task: examples to teach, probes to ask, and their tokens. Also audits of candidates, and exports.

``task`` has the types that the rest of the program uses, ``pairs`` the structure of the paper. ``facts`` is the
structure of a user's own table: ``fact_table`` reads it, ``links`` measures how far its columns determine each other.

In: a RunSpec and a tokenizer. Out: examples and probes as token ids. Imports: specs and below.
"""
