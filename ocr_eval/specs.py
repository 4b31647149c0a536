"""What a run is, fully resolved: model, association, data protocol, training. Frozen and validated.

What "bit for bit" holds for: the same spec in the same pack, by the same code on the same machine. On a GPU only with
``attention: grouped`` or ``eager``, as the backward pass of sdpa adds there in no fixed order.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from ocr_eval import resources
from ocr_eval.association import Association, Name
from ocr_eval.errors import UserError
from ocr_eval.people import MAX_PEOPLE

SCHEMA_VERSION: Literal[1] = 1
#: Which numbers a run gives. Raise it by hand when they change (tests/test_golden.py reminds): runs of another version
#: are repeated, and apart in tables. Records from before there were versions have 0.
RESULTS_VERSION = 1

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Method = Literal["lora", "qlora", "full"]
Scoring = Literal["first-token", "sequence", "per-token"]
SCORINGS: tuple[Scoring, ...] = ("first-token", "sequence", "per-token")
Precision = Literal["bfloat16", "float16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float16", "float32")
#: Short names of precisions, as other programs have them.
DTYPE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
DTYPE_NAMES = ("auto", *PRECISIONS, *DTYPE_ALIASES)
#: ``auto`` is what the device computes fast (precision.py).
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    BeforeValidator(lambda name: DTYPE_ALIASES.get(name, name) if isinstance(name, str) else name),
]


class Strict(BaseModel):
    """Frozen, no unknown keys, no conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def legacy(cls) -> dict[str, Any]:
        """The legacy value of each field that was added later: what reproduces runs from before it existed."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {
            name: extra["legacy"] for name, extra in extras.items() if isinstance(extra, dict) and "legacy" in extra
        }

    def identity(self) -> dict[str, Any]:
        """What tells one run from another: all fields, but for those that have their legacy value.

        So a new field changes the name of no finished run, whatever default it is given.
        """
        legacy = self.legacy()
        dumped = self.model_dump(mode="json")
        return {name: value for name, value in dumped.items() if name not in legacy or value != legacy[name]}


def added_field(default: Any, legacy: Any, **rules: Any) -> Any:
    """A field of a spec that finished runs do not have.

    Args:
        default: what new runs have.
        legacy: what runs had before there was the field; frozen with it, and never simply today's default.
        rules: as pydantic's ``Field`` takes them.
    """
    return Field(default, json_schema_extra={"legacy": legacy}, **rules)


class HubWeights(Strict):
    """Weights of a model hub: repository, revision (a commit where it is known), and how to get access.

    Attributes:
        gated: whether access must be asked for; None where it is not known.
    """

    kind: Literal["hub"]
    repo: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    revision: str
    gated: bool | None
    access: str


class PackagePart(Strict):
    """One file inside the wheel of a package."""

    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!_-]*$")]
    file: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/-]*$")]


class PackageWeights(Strict):
    """A GGUF file carried by packages of the Python index, in one part or several to be joined in order."""

    kind: Literal["package"]
    parts: Annotated[list[PackagePart], Field(min_length=1)]
    sha256: Sha256


class FolderWeights(Strict):
    """A folder in Hugging Face layout (config.json, safetensors, tokenizer). Relative to the YAML file."""

    kind: Literal["folder"]
    path: str


class TrainSpec(Strict):
    """How facts are injected.

    Attributes:
        method: ``lora``, PEFT LoRA over a frozen base; ``qlora``, the same over the base in 4 bits (NF4); ``full``,
            all parameters.
        lr: constant learning rate of AdamW (no weight decay).
        epochs: passes over the training set.
        batch_size: examples a step.
        rank: LoRA r.
        alpha: LoRA alpha; the update is scaled by alpha / r.
        targets: the linear modules that get an adapter, or ``all-linear``.
        max_grad_norm: the gradient is clipped to this 2-norm.
    """

    method: Method = "lora"
    lr: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 16
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 32
    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 32.0
    targets: Literal["all-linear"] | list[str] = "all-linear"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class FullDefaults(Strict):
    """Training defaults of a model where all its parameters are trained; the others are those of ``train``.

    The published sweep: rates of 1e-6 to 3e-5, batches of 8.
    """

    lr: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 8


class ModelSpec(Strict):
    """A base model: where its weights are, the precision it runs in, and training defaults with reasons.

    Attributes:
        published_as: the model's row in the published table, if it has one.
        dtype: precision of the frozen base and of the arithmetic, ``auto`` for what the device computes fast;
            adapters keep fp32 master weights.
        attention: transformers' ``sdpa`` or ``eager``, or our ``grouped`` (``attention.py``); ``auto`` chooses by
            device and architecture.
        train: training defaults for this model; a run's flags go first.
        full: what differs from them where all parameters are trained.
        notes: what a user should know (access, licence, quirks).
    """

    name: Name
    description: str
    license: str
    weights: Annotated[HubWeights | PackageWeights | FolderWeights, Field(discriminator="kind")]
    published_as: str | None = None
    dtype: Dtype = "auto"
    attention: Literal["auto", "sdpa", "eager", "grouped"] = "auto"
    train: TrainSpec = TrainSpec()
    full: FullDefaults = FullDefaults()
    notes: list[str] = []

    @property
    def called(self) -> str:
        """What a command calls the model: its name, or the repository of one that has no YAML."""
        weights = self.weights
        if not isinstance(weights, HubWeights) or self.name != _repository_name(weights.repo):
            return self.name
        return weights.repo if weights.revision == "main" else f"{weights.repo}@{weights.revision}"


class DataSpec(Strict):
    """The data protocol; the defaults are the published one.

    Attributes:
        n: pairs in use.
        m_train: subjects a group whose entailment is trained on; 0 is the no-entailment control.
        m_test: subjects a group whose entailment is held out.
        candidates: what a probe ranks among: ``in-use`` (n), ``ten`` (n and 10 - n distractors), ``all``.
        templates: indices of the templates that statements are trained in.
        probe_template: index of the template that is probed.
        variant: ``real``, or ``shuffled`` (train entailments dealt evenly over groups: a control).
    """

    n: Annotated[int, Field(ge=2)] = 5
    m_train: Annotated[int, Field(ge=0)] = 4
    m_test: Annotated[int, Field(ge=1)] = 16
    candidates: Literal["in-use", "ten", "all"] = "ten"
    templates: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    probe_template: Annotated[int, Field(ge=0)] = 0
    variant: Literal["real", "shuffled"] = "real"

    @property
    def subjects(self) -> int:
        """All subjects of a run."""
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
        if self.variant == "shuffled" and self.m_train == 0:
            raise ValueError("the shuffled control permutes train entailments, and m_train = 0 has none")
        if self.variant == "shuffled" and self.m_train == 1:
            raise ValueError(
                "the shuffled control would teach each group one answer, which is a consistent link, with m_train = 1; "
                "use 2 or more"
            )
        return self


class RunSpec(Strict):
    """One injection: everything that determines its result."""

    model: ModelSpec
    association: Association
    data: DataSpec
    train: TrainSpec
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _check(self) -> RunSpec:
        pairs = len(self.association.pairs)
        if self.data.n > pairs:
            raise ValueError(
                f"n = {self.data.n} is more than the {pairs} pairs of '{self.association.name}'; lower --n"
            )
        if self.data.candidates == "ten" and self.data.n > 10:
            raise ValueError(
                f"ten candidates cannot hold {self.data.n} answers in use; give --candidates in-use or all"
            )
        if self.data.candidates == "ten" and pairs < 10:
            raise ValueError(
                f"'{self.association.name}' has {pairs} pairs and cannot give ten candidates; use --candidates all"
            )
        for side, relation in (("fact", self.association.fact), ("entailment", self.association.entailment)):
            for index in (*self.data.templates, self.data.probe_template):
                if index >= len(relation.templates):
                    raise ValueError(
                        f"template {index} was asked for and the {side} of '{self.association.name}' has "
                        f"{len(relation.templates)}, counted from 0"
                    )
        return self

    @property
    def precision(self) -> Precision:
        """The precision that the run is made in; it must be settled."""
        assert self.model.dtype != "auto", "a run is made in one precision"
        return self.model.dtype

    def in_precision(self, dtype: Precision) -> RunSpec:
        """The same run in a precision."""
        return self.model_copy(update={"model": self.model.model_copy(update={"dtype": dtype})})

    def stream(self, purpose: str) -> str:
        """The name of this run's random stream for a purpose: data, order, initialization."""
        return f"{self.seed}/{purpose}"

    def fingerprint(self, base: str) -> str:
        """Eight hex digits over all that changes the result: this spec, base weights, results version.

        Names, descriptions and notes do not count; weights count by their content (``base``). The precision must be
        settled.
        """
        content: dict[str, Any] = {
            "base": base,
            "results": RESULTS_VERSION,
            "dtype": self.precision,
            "attention": self.model.attention,
            "association": self.association.content(),
            "data": self.data.identity(),
            "train": self.train.identity(),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def make_run_spec(
    model: ModelSpec, association: Association, data: dict[str, Any], train: dict[str, Any], seed: int
) -> RunSpec:
    """Resolve one run: flags go before the model's training defaults, those before the general ones.

    Args:
        data: fields of DataSpec that were given.
        train: fields of TrainSpec that were given.

    Raises:
        UserError: a value out of range, or a combination that cannot be (names the flags to change).
    """
    content = {
        "model": model,
        "association": association,
        "data": resources.parse(DataSpec, data, "data protocol"),
        "train": resources.parse(TrainSpec, {**_training_defaults(model, train), **train}, "training"),
        "seed": seed,
    }
    run = resources.parse(RunSpec, content, "run")
    flags = {"rank": "--rank", "alpha": "--alpha", "targets": "targets"}
    idle = [flag for key, flag in flags.items() if key in train]
    if idle and run.train.method == "full":
        raise UserError(
            f"{' and '.join(idle)}: method 'full' trains all parameters and has no adapter. Leave it out, "
            "or do the runs with adapters apart from it."
        )
    return run


def _training_defaults(model: ModelSpec, given: dict[str, Any]) -> dict[str, Any]:
    """The model's defaults for the method that is asked for."""
    defaults = model.train.model_dump()
    if given.get("method") == "full" and model.train.method != "full":
        defaults |= model.full.model_dump()
    return defaults


_REPOSITORY = re.compile(r"(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<revision>[^@]+))?")


def load_model_spec(name_or_path: str) -> ModelSpec:
    """Read a model: a shipped name, a YAML file, a model folder, or a repository of the hub.

    ``org/name`` is a folder or file where one of that name exists, and else a repository; ``org/name@revision``
    is always a repository. Repositories and folders need no YAML: they are trained with the general defaults.

    Raises:
        UserError: unknown name (with a suggestion), or a file that breaks a rule.
    """
    path = resources.expand(name_or_path)
    if resources.looks_like_path(name_or_path) and path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"'{name_or_path}' is a folder without config.json. Give a model folder in Hugging Face layout."
            )
        name = _slug(path.resolve().name)
        return ModelSpec(
            name=f"{name}-folder" if name in resources.shipped_names("models") else name,
            description=f"A model folder of yours: {name_or_path}",
            license="unknown",
            weights=FolderWeights(kind="folder", path=str(path.resolve())),
        )
    repository = _REPOSITORY.fullmatch(name_or_path)
    if repository and not path.exists() and not name_or_path.endswith((".yaml", ".yml")):
        return ModelSpec(
            name=_repository_name(repository["repo"]),
            description=f"A repository of the hub: {name_or_path}",
            license="see its page",
            weights=HubWeights(
                kind="hub",
                repo=repository["repo"],
                revision=repository["revision"] or "main",
                gated=None,
                access="see its page on the hub",
            ),
        )
    file = resources.find_yaml("model", "models", name_or_path)
    spec = resources.parse(ModelSpec, resources.read_yaml(file), str(file))
    if resources.looks_like_path(name_or_path) and spec.name in resources.shipped_names("models"):
        raise UserError(f"{file}: 'name: {spec.name}' belongs to a shipped model. Give yours another name.")
    if isinstance(spec.weights, FolderWeights):
        try:
            folder = (file.parent / resources.expand(spec.weights.path)).resolve()
        except UserError as error:
            raise UserError(f"{file}: 'weights.path': {error}") from error
        if not (folder / "config.json").is_file():
            raise UserError(f"{file}: 'weights.path' leads to {folder}, which has no config.json.")
        spec = spec.model_copy(update={"weights": FolderWeights(kind="folder", path=str(folder))})
    return spec


def _repository_name(repo: str) -> str:
    """The name of a model that is nothing but a repository of the hub."""
    return _slug(repo.replace("/", "--"))


def _slug(text: str) -> str:
    """A folder's name as a run's name: lower case, no character that a path or a page could trip over."""
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text.lower()).strip("._-")
    return cleaned[:64] or "model"
