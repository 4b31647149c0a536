"""Ways to prevent the unwanted inference, one file each (methods/prevention.py says what one is).

In: a run in training. Out: changed gradients or weights. Imports: methods and below; found only by name.
"""
