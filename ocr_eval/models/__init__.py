"""Loads weights from hub, package or folder as a frozen base; architectures, precision and kernels.

In: a ModelSpec. Out: a Base, or sizes without weights. Imports: packing and below.
"""
