"""Executing runs: packs, sweeps, worker processes, cluster jobs, progress and trackers.

In: specs and an output folder. Out: finished run folders. Imports: planning and below.
"""
