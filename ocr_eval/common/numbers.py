"""The range of numbers in settings."""

from typing import Any


def checked(value: Any) -> Any:
    """A setting's value, unchanged, if its floats are in fp32's normal range: finite, and zero or not subnormal.

    Raises:
        ValueError: one is not (names it).
    """
    if isinstance(value, float) and value and not 2.0**-126 <= abs(value) <= 2.0**127:
        raise ValueError(f"{value!r} is not finite or outside the range of 32-bit floats; give another value")
    for each in value if isinstance(value, tuple) else ():
        checked(each)
    return value
