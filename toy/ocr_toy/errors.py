"""The one error of the package that a caller is expected to cause."""


class ToyError(ValueError):
    """A specification that cannot be run: one line naming the value, what is wrong and the fix."""


def require(condition: bool, message: str) -> None:
    """Raise ToyError with `message` unless `condition` holds."""
    if not condition:
        raise ToyError(message)
