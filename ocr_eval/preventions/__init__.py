"""Ways to prevent unwanted inference, one file each (see methods/prevention.py).

In: a run in training. Out: changed gradients or weights. Imports: methods and below; found only by name.
"""
