"""A spec becomes a Task: examples to teach, probes to ask, their tokens; the audit of candidates; exports.

``task`` has the types that the rest of the program knows, ``pairs`` is the structure of the paper. ``facts`` is that of
a user's own table, which ``fact_table`` reads and of whose columns ``links`` tells how far they determine each other.

In: a RunSpec and a tokenizer. Out: examples and probes as token ids. Imports: specs and below.
"""
