"""A spec becomes data: statements to teach, probes to ask, their tokens; the audit of candidates; exports.

In: a RunSpec and a tokenizer. Out: examples and probes as token ids. Imports: specs and below.
"""
