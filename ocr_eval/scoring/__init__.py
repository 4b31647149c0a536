"""Probes become log-probabilities of candidates, ranks, and the statistics of each quantity.

In: a View and probes. Out: Score, HeldOut. Imports: methods and below.
"""
