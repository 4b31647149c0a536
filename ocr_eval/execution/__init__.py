"""Runs are carried out: a pack, a sweep, worker processes, jobs of a cluster, progress and trackers.

In: specs and an output folder. Out: finished run folders. Imports: planning and below.
"""
