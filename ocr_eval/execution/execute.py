"""RunSpecs -> records: one run, or a pack of runs, in the precision and on the base that they need."""

import gc
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

from ocr_eval.common.distributed import agreed, is_alone, is_first
from ocr_eval.common.errors import Interrupted, RunFailed, UserError
from ocr_eval.common.files import prepare_output
from ocr_eval.common.out_of_memory import free_cache
from ocr_eval.data.task import Task, build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.execution.live_run import LiveRun, common_epoch, prepare
from ocr_eval.execution.run_pack import Execution, inject
from ocr_eval.measures.measure import Trained, find_measures
from ocr_eval.methods.load_adapter import check_belongs, load_adapter, load_sum
from ocr_eval.methods.method import method_of
from ocr_eval.methods.pack import GradientPack
from ocr_eval.methods.peft_files import read_adapter_file
from ocr_eval.methods.view import View
from ocr_eval.methods.whole import WholeNetwork
from ocr_eval.models import precision, weights
from ocr_eval.models.base import Base, device_type, load_base, load_tokenizer, make_accelerator
from ocr_eval.planning.memory import frozen_bytes, least, refuse_impossible
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.folder import OnlookersFolder, RunFolder, kind_of
from ocr_eval.scoring.candidates import CandidateScores, score_candidates
from ocr_eval.scoring.quantities import summarize_quantities
from ocr_eval.scoring.ranks import Scores
from ocr_eval.specs.model import PRECISIONS, Device, ModelSpec, Precision, Weights
from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class PlannedRun:
    """A run and its folder."""

    spec: RunSpec
    folder: RunFolder

    @property
    def is_open(self) -> bool:
        """Whether it is neither finished nor failed."""
        return not self.folder.is_done() and self.folder.failure() is None


def finetune(spec: RunSpec, output: Path, how: Execution = Execution()) -> tuple[FinishedRun, bool]:
    """Train and score one run below ``output``. A finished run is returned as it is; an interrupted one resumes.

    Returns:
        The run, and whether it was already finished.

    Raises:
        UserError: bad input, found before any training.
        RunFailed: training failed.
    """
    prepare_output(output)
    bases = Bases(how.device)
    (spec,) = bases.settle([spec], output)
    folder = bases.folder(spec, output)
    was_done = agreed(lambda: folder.is_done() and not how.force)
    if not was_done:
        do_pack(bases, [PlannedRun(spec, folder)], how)
    if not folder.is_done() and (reason := folder.failure()):
        raise RunFailed(reason)
    return FinishedRun(folder.path, folder.record()), was_done


class Bases:
    """Weights on disk, each verified once, and the one base in memory."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._folders: dict[tuple[str, Weights], weights.WeightFolder] = {}
        self._tokenizers: dict[ModelSpec, Any] = {}
        self._base: Base | None = None
        if not is_alone():
            make_accelerator(device)  # the processes of a distributed run meet here; from now on they can agree

    def weights(self, model: ModelSpec) -> weights.WeightFolder:
        """A model's weights, downloaded if necessary.

        Raises:
            UserError: they are not available.
        """
        key = model.name, model.weights
        if key not in self._folders:
            self._folders[key] = weights.locate(model)
        return self._folders[key]

    def folder(self, spec: RunSpec, output: Path) -> RunFolder:
        """A run's folder below an output folder."""
        identity = self.weights(spec.model).identity
        kind = RunFolder if is_first() else OnlookersFolder
        return kind.of(output, spec, spec.fingerprint(identity))

    def settle(
        self, specs: Sequence[RunSpec], output: Path | None, device: str | None = None, stated: Collection[str] = ()
    ) -> list[RunSpec]:
        """The runs with their precision resolved for a type of ``device`` (None: that of this object).

        Runs of one model share a precision: the one in which a sweep in the output folder lists them (``stated``, by
        the identity of their folders), else that of a finished run among them there, else of a resumable one, else one
        that is fast on the device. Without ``output`` there are no earlier runs to consider.

        Raises:
            UserError: a model overflows in the only precision that is fast on the device.
        """
        kind, settled = device or device_type(self.device), dict[ModelSpec, Precision]()
        for spec in specs:
            if spec.model not in settled:
                kin = [each for each in specs if each.model == spec.model]
                there = self._precisions_of(kin, output, stated) if output and spec.model.dtype == "auto" else []
                own = precision.choose_for(spec.model, kind).dtype if len(there) != 1 else there[0]
                settled[spec.model] = own if own in there or not there else there[0]
        return [spec.in_precision(settled[spec.model]) for spec in specs]

    def _precisions_of(self, specs: Sequence[RunSpec], output: Path, stated: Collection[str]) -> list[Precision]:
        """The precisions in which any of these runs is stated; if none is, finished; if none is, resumable."""
        names = {RunFolder.of(output, spec, "*").path for spec in specs}
        begun = any(RunFolder(path).has_begun() for name in names for path in name.parent.glob(name.name))
        if not (begun or stated):
            return []  # folder names depend on the weights' content, which may not be downloaded yet
        folders = {dtype: [self.folder(spec.in_precision(dtype), output) for spec in specs] for dtype in PRECISIONS}
        tests = (lambda folder: folder.identity in stated, RunFolder.is_done, RunFolder.has_begun)
        found = ([dtype for dtype, places in folders.items() if any(map(test, places))] for test in tests)
        return next(filter(None, found), [])

    def tokenizer(self, model: ModelSpec) -> Any:
        """A model's tokenizer, without its network."""
        if model not in self._tokenizers:
            self._tokenizers[model] = load_tokenizer(str(self.weights(model).path))
        return self._tokenizers[model]

    def get(self, spec: RunSpec) -> Base:
        """The base that a run needs, loaded unless it is already in memory."""
        needs = method_of(spec.train).needs
        held = self._base and (self._base.spec, self._base.quantized)
        if self._base is None or needs.whole or held != (spec.model, needs.quantized):
            if self._base is not None:  # two may not fit into memory
                used, self._base = self._base.device, None
                gc.collect()  # cycles of references keep a quantized network alive
                free_cache(used)
            refuse_impossible(spec.model, spec.train, self.device)
            holds = least(spec.model, spec.train, device_type(self.device))
            files = self.weights(spec.model)
            base = load_base(spec.model, files, self.device, needs.quantized, needs.whole, holds)
            if needs.whole:  # the run changes it, so no other run may use it
                return base
            self._base = base
        return self._base


def do_pack(bases: Bases, runs: Sequence[PlannedRun], how: Execution) -> None:
    """Execute runs as one pack; their folders are locked until the end, starting before the base is loaded.

    Runs that another process has finished in the meantime are left as they are.

    Raises:
        Interrupted: the user stopped it; the message says where the runs resume.
        Busy: another process is working on one of them.
        UserError: the tokenizer cannot handle the data.
        RunFailed: a checkpoint is damaged, or no gradient reaches an adapter.
    """
    with ExitStack() as held:

        def take() -> list[bool]:
            for run in runs:
                held.enter_context(run.folder.lock())
            return [how.force or not run.folder.is_done() for run in runs]

        todo = list(compress(runs, agreed(take)))
        if not todo:
            return
        try:
            measures = find_measures(how.measures, method_of(todo[0].spec.train).needs)
            base = bases.get(todo[0].spec)
            live = [LiveRun(run.spec, run.folder, prepare(base.tokenizer, run.spec)) for run in todo]
            for run in todo:
                if how.force or run.folder.failure():
                    run.folder.clear()
            base.accelerator.wait_for_everyone()  # all processes now see the folders as the first one left them
            inject(base, live, how, measures)
            base.accelerator.wait_for_everyone()  # the first may still be writing records
        except KeyboardInterrupt as error:
            raise Interrupted(_where_it_resumes(todo)) from error


def _where_it_resumes(runs: Sequence[PlannedRun]) -> str:
    """Where an interrupted pack resumes, in a sentence."""
    unfinished = [run for run in runs if run.is_open]
    if not unfinished:
        return "Interrupted; what was running is finished. Rerun the command for what is left, if anything."
    epoch = common_epoch([run.folder for run in unfinished], [run.spec.train.epochs for run in unfinished])
    if not epoch:
        return "Interrupted; no epoch is saved yet, so rerunning the command starts this run from the beginning."
    most = max(run.spec.train.epochs for run in unfinished)
    return f"Interrupted; epoch {epoch} of {most} is saved. Rerunning the command resumes from there."


def rescore(spec: RunSpec, view: View) -> Scores:
    """Score a model on a run's probes; nothing is written."""
    task = build_task(spec)
    return summarize_quantities(task.quantities, task.probes, answers(view, spec, task))


def answers(view: View, spec: RunSpec, task: Task) -> CandidateScores:
    """The scores of a run's model on its task's probes; a UserError if they are NaN."""
    scores = score_candidates(view, probe_tokens(view.base.tokenizer, task))
    if not scores.are_numbers:
        raise UserError(
            f"{spec.model.name} returns NaN log-probabilities. Check that its weights are complete and finite."
        )
    return scores


def open_view(
    spec: RunSpec,
    adapter: Path | None,
    device: Device = "auto",
    trained_over: str | None = None,
    grafted: Sequence[tuple[int, Path]] = (),
) -> View:
    """A run's model: with an adapter (a PEFT folder, unmerged), fully fine-tuned (a model folder), or untouched.

    ``trained_over`` is the identity of the base weights of a run of this project; None for an external adapter, which
    is first checked against the model. ``grafted`` are plain LoRA adapters of the same base, to be added to ``adapter``
    (1) or subtracted from it (-1).

    Raises:
        UserError: there is no such adapter, it belongs to another model, or the base weights have changed since.
    """
    spec = spec.in_precision(precision.choose_for(spec.model, device_type(device)).dtype)
    kind = kind_of(adapter) if adapter is not None else None
    if adapter is not None and kind is not None and trained_over is None:
        check_belongs(adapter, kind, spec.model)
    if adapter is not None and kind == "model":
        holds = sum(path.stat().st_size for path in adapter.glob("*.safetensors"))  # fp32, in memory too
        base = load_base(spec.model, weights.WeightFolder(adapter, "trained"), device, whole=True, holds=holds)
        return View(base, base.network, autocast=True)
    found = weights.locate(spec.model)
    if trained_over not in (None, found.identity):
        raise UserError(
            f"The weights of {spec.model.name} in {found.path} have changed since the run: they are "
            f"{found.identity}, but it was trained over {trained_over}. Restore them, or train the run again."
        )
    quantized = method_of(spec.train).needs.quantized
    base = load_base(spec.model, found, device, quantized, holds=frozen_bytes(spec.model, quantized))
    if adapter is None:
        return View(base, base.network)
    return load_sum(base, [(1, adapter), *grafted]) if grafted else load_adapter(base, adapter)


def reopen(spec: RunSpec, folder: RunFolder, device: Device = "auto") -> Trained:
    """A finished run as it was after its last step, from the weights in its folder (``records.reopen.read_trained``).

    Raises:
        UserError: its base is not available or has changed; it is a constant vector or has full rank (after
            ``ignore-top-k``); or it cannot be scored, for example for lack of memory.
    """
    view = open_view(spec, folder.learned, device, folder.record().base_identity)
    base, adapters = view.base, view.adapters
    if adapters is None and folder.learned.name != "model":
        beyond = read_adapter_file(folder.learned).beyond_plain
        what = "is a constant vector" if "lora_bias" in beyond else "has full rank"
        raise UserError(
            f"'{folder.learned}' {what}, so it can be scored again but not measured. Name measures in training: "
            "'ocr-eval finetune --measures'."
        )
    if adapters is None:
        adapters = WholeNetwork(replace(base, files=weights.locate(spec.model)))
        adapters.unmount()  # it is only measured, not trained
    task = build_task(spec)
    probes = probe_tokens(base.tokenizer, task)
    pack = GradientPack(base, adapters, ())
    try:
        scores = score_candidates(pack.view(), probes)
    except RunFailed as error:
        raise UserError(str(error)) from error
    return Trained(spec, pack, 0, task.quantities, probes, scores)
