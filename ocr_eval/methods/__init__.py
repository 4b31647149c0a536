"""How facts get into a model: one file per method, the pack of runs that train together, checkpoints.

In: a Base, specs and examples. Out: a Pack, losses by epoch, files of what was learned. Imports: models and below.
"""
