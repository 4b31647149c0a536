"""Records -> figures that can be printed. Every series has a marker or line of its own beside its colour."""
