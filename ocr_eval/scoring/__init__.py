"""Turns probes into log-probabilities of candidates, ranks, and statistics of each quantity.

In: a View and probes. Out: Score, HeldOut. Imports: methods and below.
"""
