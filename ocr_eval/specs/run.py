"""The complete specification of a run: model, association, data protocol, training. Frozen and validated.

Results are equal bit for bit for the same spec in the same pack, with the same code, libraries, machine (device and CPU
instructions) and number of threads, which env.json records. On a GPU this also needs ``attention: grouped`` or
``eager``, because the backward pass of sdpa sums in no fixed order there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import METHODS, PREVENTIONS
from ocr_eval.specs import strict
from ocr_eval.specs.association import Association, Variant, association_type
from ocr_eval.specs.model import ModelSpec, Precision, TrainSpec
from ocr_eval.specs.names import MAX_PEOPLE
from ocr_eval.specs.strict import FromList, Strict, added_field

Scoring = Literal["first-token", "sequence", "per-token"]
SCORINGS: tuple[Scoring, ...] = get_args(Scoring)
Order = Literal["together", "joint", "facts-first", "entailments-first", "entailments-last"]


class DataSpec(Strict):
    """The data protocol; the defaults are the paper's. Flags and their help come from these fields."""

    n: int = Field(5, ge=2, description="Pairs in use.")
    m_train: int = Field(4, ge=0, description="Subjects per group whose entailment is taught (train subjects).")
    m_test: int = Field(16, ge=1, description="Subjects per group whose entailment is held out.")
    candidates: Literal["in-use", "ten", "all"] = Field(
        "ten", description="What a probe ranks: the n answers in use, these and 10 - n distractors (ten), or all."
    )
    templates: Annotated[tuple[Annotated[int, Field(ge=0)], ...], FromList] = Field(
        (0,),
        description="Templates to train on, counted from 0: '0', '0+2' (both) or 'all'.",
        json_schema_extra={"words": ["all"]},  # allowed in flags; make_run_spec resolves it
    )
    probe_template: int = Field(0, ge=0, description="Template to probe with.")
    variant: Variant = Field(
        "real",
        description="The real data, or a control: no-entailment (same people and facts, no entailments), shuffled "
        "(train entailments dealt evenly over groups), or, for grafting, no-fact (train entailments alone) or "
        "regrouped (no entailments, and everyone has the fact of the next group).",
    )
    order: Order = added_field(
        "together",
        legacy="together",
        description="Order of teaching: all together, or in thirds. joint, facts-first and entailments-first teach the "
        "link through train subjects in the first two thirds and the facts of test subjects in the last; "
        "entailments-last, for grafting, teaches all facts in the first and train entailments in the others.",
    )

    @property
    def subjects(self) -> int:
        """Number of subjects in a run."""
        return self.n * (self.m_train + self.m_test)

    @model_validator(mode="after")
    def _check(self) -> DataSpec:
        if self.subjects > MAX_PEOPLE:
            raise ValueError(
                f"n x (m_train + m_test) = {self.subjects:,} subjects are more than the {MAX_PEOPLE:,} names; "
                "lower one of them"
            )
        if not self.templates or len(set(self.templates)) < len(self.templates):
            raise ValueError("templates must name at least one template, each once")
        if self.variant != "real" and self.m_train == 0:
            raise ValueError(
                f"the {self.variant} control changes train entailments, but m_train = 0 has none; raise it"
            )
        if self.order != "together" and (self.m_train == 0 or self.variant not in ("real", "shuffled")):
            raise ValueError(
                f"order = {self.order} orders facts and train entailments, but this run lacks one of them; drop it"
            )
        if self.variant == "shuffled" and self.m_train == 1:
            raise ValueError(
                "with m_train = 1 the shuffled control would teach each group one answer, which is a consistent link; "
                "use 2 or more"
            )
        return self


def _with_structure(value: Any) -> Any:
    """Parse the fields of an association, as in files that we wrote, with its structure's class."""
    if not isinstance(value, dict):
        return value
    try:
        return association_type(value).model_validate(value, strict=False)
    except UserError as error:
        raise ValueError(str(error)) from error
    except ValidationError as error:  # which pydantic would quote, with its own words and web address
        raise ValueError(yaml_files.problems(error, value)) from error


#: An association of any structure, with all its fields.
AnyAssociation = Annotated[SerializeAsAny[Association], BeforeValidator(_with_structure)]


class RunSpec(Strict):
    """Everything that determines the result of one run.

    ``seed`` determines the data, the order of training and the initialization; ``train_seed``, if given, replaces it
    for the last two. A ``train_seed`` equal to ``seed`` becomes None, so that every run has exactly one name.
    """

    model: ModelSpec
    association: AnyAssociation
    data: DataSpec
    train: TrainSpec
    seed: int = Field(ge=0, description="Seed of data (pairs, names, groups) and training (order, initialization).")
    train_seed: int | None = added_field(
        None, legacy=None, ge=0, description="Seed of training only (order, initialization)."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("train_seed") == value.get("seed"):
            return {**value, "train_seed": None}
        return value

    @model_validator(mode="after")
    def _check(self) -> RunSpec:
        self.association.check(self.data)
        if self.data.variant not in self.association.variants:
            raise ValueError(
                f"'{self.association.name}' has no variant {self.data.variant}; give --variant "
                f"{' or '.join(self.association.variants)}"
            )
        if self.data.order != "together" and self.train.epochs % 3:
            raise ValueError(
                f"order = {self.data.order} divides training into thirds, but {self.train.epochs} epochs are not a "
                "multiple of 3; change --epochs"
            )
        return self

    @property
    def precision(self) -> Precision:
        """The run's precision, which must be resolved: not ``auto``."""
        assert self.model.dtype != "auto", "the precision is not resolved"
        return self.model.dtype

    def in_precision(self, dtype: Precision) -> RunSpec:
        """The same run in this precision."""
        return self.model_copy(update={"model": self.model.model_copy(update={"dtype": dtype})})

    @property
    def seeds(self) -> str:
        """Its seeds as text, to follow the word "seed"."""
        return seeds_text(self.seed, self.train_seed)

    def stream(self, purpose: str) -> str:
        """The name of this run's random stream for a purpose (``common.streams``)."""
        seed = self.seed if purpose == "data" or self.train_seed is None else self.train_seed
        return f"{seed}/{purpose}"

    def fingerprint(self, base: str, train: Mapping[str, Any] | None = None) -> str:
        """Eight hex digits over everything that affects the result: this spec, base weights, results version.

        Names, descriptions and notes do not count; weights count by their content (``base``). The precision must be
        resolved. ``train`` replaces this spec's training if it was done by another program.
        """
        content: dict[str, Any] = {
            "base": base,
            "results": strict.RESULTS_VERSION,
            "dtype": self.precision,
            "attention": self.model.attention,
            "association": self.association.content(),
            "data": self.data.identity(),
            "train": self.train.identity() if train is None else dict(train),
            "seed": self.seed,
        }
        if self.train_seed is not None:
            content["train_seed"] = self.train_seed
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def seeds_text(seed: int, train_seed: int | None) -> str:
    """``3``, or ``3 (training 0)``."""
    return str(seed) if train_seed is None else f"{seed} (training {train_seed})"


def run_seeds(given: Mapping[str, int], seed: int = 0, train_seed: int | None = None) -> tuple[int, int]:
    """The seeds of a run's data and of its training: ``seed`` sets both, ``data_seed`` and ``train_seed`` one each.

    ``given`` holds those of the three that the user set; the arguments ``seed`` and ``train_seed`` are the defaults.

    Raises:
        UserError: all three are set, so that ``seed`` has no effect.
    """
    if len(given) == 3:
        raise UserError(
            "--seed has no effect with both --data-seed and --train-seed. Drop one, or unset OCR_EVAL_SEED."
        )
    training = seed if train_seed is None else train_seed
    data, training = given.get("seed", seed), given.get("seed", training)
    return given.get("data_seed", data), given.get("train_seed", training)


def make_run_spec(
    model: ModelSpec,
    association: Association,
    data: dict[str, Any],
    train: dict[str, Any],
    seed: int,
    train_seed: int | None = None,
) -> RunSpec:
    """Resolve one run: settings override the model's training defaults, which override the general ones.

    ``data`` and ``train`` are the given fields of DataSpec and TrainSpec; ``templates`` may be "all". ``seed`` is that
    of the data, and of order and initialization unless ``train_seed`` is given.

    Raises:
        UserError: a value out of range, or an invalid combination (names the flags to change).
    """
    if data.get("templates") == "all":
        data = {**data, "templates": tuple(range(association.wordings))}
    chosen = _chosen({"method": model.train.method, "prevent": model.train.prevent, **train})
    method = METHODS.choose(chosen["method"])
    if method.thing.needs.once:
        chosen["epochs"] = 1
        if data.get("order", "together") != "together":
            raise UserError(f"--order {data['order']}: method '{method.name}' teaches everything at once. Drop it.")
    defaults = model.train.model_dump()
    if method.thing.needs.whole and not METHODS.choose(model.train.method).thing.needs.whole:
        defaults |= model.full.model_dump()
    content = {
        "model": model,
        "association": association,
        "data": yaml_files.parse(DataSpec, data, "data protocol"),
        "train": yaml_files.parse(TrainSpec, {**defaults, **train, **chosen}, "training"),
        "seed": seed,
        "train_seed": train_seed,
    }
    run = yaml_files.parse(RunSpec, content, "run")
    if not run.train.targets:
        raise UserError("--targets names no module. Name some ('q_proj+v_proj'), or give all-linear.")
    for each in map(PREVENTIONS.choose, run.train.prevent):
        if run.train.rank < each.thing.least_rank:
            raise UserError(
                f"--rank {run.train.rank}: prevention '{each.name}' needs --rank {each.thing.least_rank} or more."
            )
    idle = [f"--{key.replace('_', '-')}" for key in train if key in method.thing.ignores]
    if idle:
        raise UserError(
            f"{' and '.join(idle)}: method '{method.name}' does not use it. Drop it, or run other methods separately."
        )
    return run


def _chosen(train: dict[str, Any]) -> dict[str, Any]:
    """Method and preventions with all their settings. Raises UserError if one is unknown or they do not combine."""
    method = METHODS.choose(train["method"])
    needs = method.thing.needs
    preventions = [PREVENTIONS.choose(text) for text in train["prevent"] if train["prevent"] != "none"]
    for each in preventions:
        if sum(other.name == each.name for other in preventions) > 1:
            raise UserError(f"Prevention '{each.name}' is named twice. Name it once.")
        problem = None
        if needs.once:
            problem = f"changes training steps, and method '{method.name}' has none"
        elif each.thing.reads_base and needs.quantized:
            problem = f"reads the base's weights, which method '{method.name}' quantizes"
        elif each.thing.needs_adapters and (needs.whole or not needs.adapters):
            problem = f"works on low-rank adapters, and method '{method.name}' has none"
        elif each.thing.needs_matrices and not needs.matrices:
            problem = f"works on changed matrices, and method '{method.name}' has none"
        if problem:
            raise UserError(f"Prevention '{each.name}' {problem}. Use --method lora, or leave it out.")
    return {"method": str(method), "prevent": tuple(map(str, preventions))}
