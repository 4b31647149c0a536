"""Which numbers a setting may be."""

from typing import Any


def checked(value: Any) -> Any:
    """A value of a setting, whose numbers fp32 holds, neither as infinity nor with digits lost at zero.

    Raises:
        ValueError: one is not; names it.
    """
    if isinstance(value, float) and value and not 2.0**-126 <= abs(value) <= 2.0**127:
        raise ValueError(f"{value!r} is not finite, or beyond the range of 32-bit numbers; give another")
    for each in value if isinstance(value, tuple) else ():
        checked(each)
    return value
