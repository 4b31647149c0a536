"""Training in a second process, with the same numbers, while this one computes something else."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ocr_toy.errors import ToyError
from ocr_toy.runs import RunResult, RunSpec
from ocr_toy.train import train_runs


@contextmanager
def training_aside(specs: list[RunSpec]) -> Iterator[Callable[[], list[RunResult]]]:
    """Start training `specs`; yields a function, to be called once, that waits for the results and returns them.

    On exit the process is stopped if it is still running. The function raises ToyError as `train_runs` does, and if the
    process ended without a result.
    """
    # Its own session: Ctrl-C reaches only this process, which then stops the other.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "ocr_toy.aside"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    ) as process:
        wanted, output = process.stdin, process.stdout
        assert wanted is not None
        assert output is not None

        def results() -> list[RunResult]:
            answer = output.read()
            if status := process.wait():
                raise ToyError(f"the second process ended with status {status}; run the command again")
            found: list[RunResult] | ToyError = pickle.loads(answer)
            if isinstance(found, ToyError):
                raise found
            return found

        try:
            with suppress(BrokenPipeError):
                pickle.dump(specs, wanted)
                wanted.close()
            yield results
        finally:
            process.kill()


def _main() -> None:
    found: list[RunResult] | ToyError
    try:
        found = train_runs(pickle.load(sys.stdin.buffer))
    except ToyError as error:
        found = error
    with suppress(BrokenPipeError):
        pickle.dump(found, sys.stdout.buffer)


if __name__ == "__main__":
    _main()
