"""A spec becomes a Task: examples to teach, probes to ask, their tokens; the audit of candidates; exports.

``task`` has the types that the rest of the program knows, ``pairs`` is the shipped structure of facts.

In: a RunSpec and a tokenizer. Out: examples and probes as token ids. Imports: specs and below.
"""
