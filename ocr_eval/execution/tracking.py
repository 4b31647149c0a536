"""``--report-to``: follow runs in TensorBoard, trackio or Weights & Biases, grouped by sweep.

Trackers are only for viewing: no result depends on them, and if one fails it is disabled and the run continues. They
are accelerate's; several may be open at once, one per run of a pack. Nothing leaves the machine unless the user has set
that up with the tracker itself (by logging in, or by naming a server in its environment variables).
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import importlib.util
import io
import math
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

import yaml

from ocr_eval.common.errors import UserError
from ocr_eval.common.messages import say

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from ocr_eval.execution.progress import Step, Watcher

ReportTo = Literal["none", "trackio", "wandb", "tensorboard"]

#: The project that all runs appear under in trackio and Weights & Biases.
PROJECT = "ocr-eval"


def require_tracker(report_to: ReportTo) -> None:
    """Make sure that a tracker is installed; call this before any work starts.

    Raises:
        UserError: its package is missing.
    """
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise UserError(f"--report-to {report_to} needs {report_to}: pip install 'ocr-eval[{report_to}]'")


class Tracker:
    """One run in a tracker: a new one, or the existing one of this group and name.

    Args:
        run_name: the run's name within the group; may contain slashes.
        folder: where TensorBoard and Weights & Biases keep their files, each in its own subfolder.
        first_epoch: the next epoch to be logged; TensorBoard discards what it has from there on.

    Raises:
        UserError: the tracker does not start.
    """

    _tracker: GeneralTracker | None

    def __init__(
        self,
        report_to: ReportTo,
        group: str,
        run_name: str,
        config: Mapping[str, Any],
        folder: Path,
        first_epoch: int = 0,
    ) -> None:
        self._name = report_to
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # trackio prints a greeting
                # trackio ends the run that it finds in the context, so each run gets its own context
                context = contextvars.Context()
                self._tracker = context.run(_start, report_to, group, run_name, config, folder, first_epoch)
        except Exception as error:  # a tracker may raise anything
            raise UserError(f"--report-to {report_to}: cannot start ({error}).") from error

    def log(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Report an epoch; of ``values``, nested as in metrics.jsonl, only finite numbers are taken."""
        with self._survived():
            if self._tracker is not None:
                self._tracker.log(dict(_flatten(values)), step=epoch)

    def close(self) -> None:
        """End the run in the tracker."""
        with self._survived(), contextlib.redirect_stdout(io.StringIO()):
            if self._tracker is not None:
                self._tracker.finish()
        self._tracker = None

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a tracker may raise anything
            say(f"{self._name} failed and is disabled; the run continues ({error})")
            self._tracker = None


@contextlib.contextmanager
def following(watch: Watcher, report_to: ReportTo, group: str, folder: Path) -> Iterator[Watcher]:
    """A watcher that also reports every run to a tracker; on exit all runs in the tracker are closed.

    Raises:
        UserError: the tracker does not start for the first run (a later run is then just not tracked).
    """
    trackers: dict[str, Tracker | None] = {}

    def begin(step: Step) -> Tracker | None:
        config = {**step.spec.model_dump(mode="json"), "association": step.spec.association.shared()}
        try:
            return Tracker(report_to, group, step.folder.identity, config, folder, first_epoch=step.line.epoch)
        except UserError as error:
            if not trackers:
                raise
            say(f"{error} The run continues without it.")
            return None

    def report(steps: Sequence[Step]) -> None:
        watch(steps)
        for step in steps:
            name, epoch = step.folder.identity, step.line.epoch
            if name not in trackers:
                trackers[name] = begin(step)
            if (tracker := trackers[name]) is not None:
                tracker.log(epoch, step.line.as_json())
                if epoch == step.spec.train.epochs:
                    tracker.close()

    try:
        yield watch if report_to == "none" else report
    finally:
        for tracker in filter(None, trackers.values()):
            tracker.close()


def how_to_view(report_to: ReportTo, folder: Path) -> str:
    """The command that shows a tracker's runs in a folder; empty for ``none``."""
    return {
        "none": "",
        "tensorboard": f"tensorboard --logdir {folder / 'tensorboard'}",
        "trackio": f"trackio show --project {PROJECT}",
        "wandb": "" if _wandb_mode() == "online" else f"wandb sync {folder / 'wandb'}/offline-run-*",
    }[report_to]


def _start(
    report_to: ReportTo, group: str, run_name: str, config: Mapping[str, Any], folder: Path, first_epoch: int
) -> GeneralTracker:
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    PartialState()  # accelerate's loggers require it
    run = {"group": group, "name": run_name, "resume": "allow", "config": dict(config)}
    if report_to == "tensorboard":
        tracker = TensorBoardTracker(run_name, folder / report_to / group, purge_step=first_epoch)
    elif report_to == "wandb":
        for variable, value in (("SILENT", "true"), ("ERROR_REPORTING", "false"), ("CONSOLE", "off")):
            os.environ.setdefault(f"WANDB_{variable}", value)
        folder.mkdir(parents=True, exist_ok=True)  # else it takes /tmp
        identity = hashlib.sha256(f"{group}/{run_name}".encode()).hexdigest()[:16]
        tracker = WandBTracker(PROJECT, **run, id=identity, dir=folder, mode=_wandb_mode(), reinit="create_new")
    else:
        tracker = TrackioTracker(PROJECT, **run, embed=False, auto_log_gpu=False, auto_log_cpu=False)
    tracker.start()
    if report_to == "tensorboard" and first_epoch == 0:
        tracker.log({"config": f"```yaml\n{yaml.safe_dump(dict(config), sort_keys=False)}```"}, step=0)
    return tracker


def _wandb_mode() -> str:
    """The value of WANDB_MODE; by default online for a user who is logged in and did not choose ``--offline``."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("HF_HUB_OFFLINE") == "1":  # --offline
        return "offline"
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        known = None
    return "online" if known else "offline"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", value
