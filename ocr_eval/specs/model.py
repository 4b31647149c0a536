"""Specs of a base model (source of its weights, precision, training defaults) and of training."""

import math
import re
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, StringConstraints

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.specs.association import Name
from ocr_eval.specs.strict import FromList, Strict, added_field, form

Sha256 = Annotated[str, form("[0-9a-f]{64}", "64 hex digits")]
#: A plugin with its settings: ``name:setting=value`` (common/registry.py).
Chosen = Annotated[
    str,
    form(r"(?a)[A-Za-z0-9][\w-]{0,63}(:[\w-]+=[^:=\s]+)*", "NAME or NAME:setting=value"),
]
Precision = Literal["bfloat16", "float16", "float32"]
Device = Literal["auto", "cpu", "cuda", "mps"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: Short names of precisions that other programs use.
DTYPE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
#: ``auto`` is a precision in which the device is fast (models/precision.py).
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    BeforeValidator(lambda name: DTYPE_ALIASES.get(name.lower(), name.lower()) if isinstance(name, str) else name),
]


#: ORG/NAME as the hub has them: their first and last characters are no punctuation.
_ORG_NAME = r"(?a)(?!.*(--|\.\.|\.git$|.{97}))\b[\w.-]+\b/\b[\w.-]+\b"


class HubWeights(Strict):
    """Weights on a model hub: repository, revision (a commit if known), and how to get access.

    Attributes:
        gated: whether access must be requested; None if unknown.
    """

    kind: Literal["hub"]
    repo: Annotated[str, form(_ORG_NAME, "a hub repository, ORG/NAME, of at most 96 characters")]
    revision: str
    gated: bool | None
    access: str


class PackagePart(Strict):
    """One file inside the wheel of a package."""

    package: Annotated[str, form("[A-Za-z0-9][A-Za-z0-9._-]*", "the name of a package")]
    version: Annotated[str, form("[A-Za-z0-9][A-Za-z0-9.+!_-]*", "the version of a package")]
    file: Annotated[str, form("[A-Za-z0-9_][A-Za-z0-9._/-]*", "a relative path inside the package")]


class PackageWeights(Strict):
    """A GGUF file inside packages of the Python index, in one or more parts to be joined in order."""

    kind: Literal["package"]
    parts: Annotated[tuple[PackagePart, ...], Field(min_length=1), FromList]
    sha256: Sha256


class FolderWeights(Strict):
    """A folder in Hugging Face layout (config.json, safetensors, tokenizer). Relative to the YAML file."""

    kind: Literal["folder"]
    path: str


class ServedWeights(Strict):
    """Weights behind an inference server, by the server's name for them; their content is unknown."""

    kind: Literal["served"]
    url: str
    name: str


Weights = HubWeights | PackageWeights | FolderWeights | ServedWeights
Schedule = Literal["constant", "linear", "cosine", "wsd"]


#: Training by another program: ``external`` and the name that its owner gives it.
_EXTERNAL = r"^external:[a-z0-9][a-z0-9._-]{0,63}$"


class Training(Strict):
    """How facts got into a model. Only the name is known of training by another program; ours is a ``TrainSpec``."""

    method: Annotated[str, StringConstraints(pattern=_EXTERNAL)]

    @property
    def method_name(self) -> str:
        """The method without its settings."""
        return self.method.partition(":")[0]

    @staticmethod
    def is_external(content: object) -> bool:
        """Whether training settings, as read from a file, describe training by another program."""
        return isinstance(content, dict) and re.match(_EXTERNAL, str(content.get("method"))) is not None


class TrainSpec(Training):
    """How facts are injected. Flags and their help come from these fields."""

    method: Chosen = Field(
        "lora",
        description="How facts get in: lora, qlora, full, dpo, in-context, rome, memit, steering, "
        "merged-ov, or one from 'ocr-eval methods list'.",
    )
    lr: float = Field(1e-4, gt=0, lt=1, description="AdamW's learning rate, at the peak of its schedule.")
    epochs: int = Field(16, ge=1, le=10_000, description="Passes over the training set.")
    batch_size: int = Field(32, ge=1, le=100_000, description="Statements per step.")
    rank: int = Field(16, ge=1, le=4096, description="LoRA rank r.")
    alpha: float = Field(32.0, gt=0, le=1e6, description="LoRA alpha: the update is scaled by alpha / r.")
    targets: Annotated[Literal["all-linear"] | tuple[str, ...], FromList] = Field(
        "all-linear",
        description="Linear modules that get an adapter: 'q_proj+v_proj', '15.self_attn.v_proj' of one layer, "
        "or 'all-linear'.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping: maximum 2-norm of a step's gradient.")
    weight_decay: float = added_field(
        0.0, legacy=0.0, ge=0, lt=10, description="AdamW's decoupled weight decay, on all trained tensors."
    )
    beta1: float = added_field(0.9, legacy=0.9, ge=0, lt=1, description="AdamW's decay rate for gradients.")
    beta2: float = added_field(0.999, legacy=0.999, ge=0, lt=1, description="AdamW's decay rate for squared gradients.")
    schedule: Schedule = added_field(
        "constant",
        legacy="constant",
        description="Learning rate after warm-up: constant, or decaying to zero (linear, cosine); wsd (warm-up, "
        "stable, decay) stays constant for half of the steps, then decays linearly.",
    )
    warmup: float = added_field(
        0.0, legacy=0.0, ge=0, lt=1, description="Fraction of steps in which the rate rises linearly from zero."
    )
    prevent: Annotated[tuple[Chosen, ...], FromList] = added_field(
        (),
        legacy=(),
        words=["none"],
        description="Preventions, applied in this order: 'product-decay:strength=0.01+...', or 'none'.",
    )

    @property
    def betas(self) -> tuple[float, float]:
        """AdamW's beta1 and beta2."""
        return self.beta1, self.beta2

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0) out of ``steps``, as in transformers' schedules."""
        warm = round(self.warmup * steps)
        if step < warm:
            return self.lr * step / warm
        done = (step - warm) / max(1, steps - warm)
        factors = {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "wsd": min(1.0, 2 * (1 - done)),
        }
        return self.lr * factors[self.schedule]


class FullDefaults(Strict):
    """A model's defaults for full fine-tuning, where they differ from ``train``.

    The paper swept rates of 1e-6 to 3e-5 with batches of 8.
    """

    lr: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 8
    schedule: Schedule = "constant"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class ModelSpec(Strict):
    """A base model: where its weights are, the precision it runs in, and training defaults with reasons."""

    name: Name
    description: str
    license: str
    weights: Annotated[Weights, Field(discriminator="kind")]
    published_as: str | None = Field(None, description="The model's row in the published table.")
    dtype: Dtype = Field("auto", description="Precision of base and arithmetic; auto: what the device computes fast.")
    attention: Literal["auto", "sdpa", "eager", "grouped"] = Field(
        "auto", description="Attention: transformers' sdpa or eager, or our grouped; auto: by device and architecture."
    )
    train: TrainSpec = Field(default_factory=TrainSpec, description="Training defaults; a run's flags override them.")
    full: FullDefaults = Field(default_factory=FullDefaults, description="What differs under full fine-tuning.")
    notes: Annotated[tuple[str, ...], FromList] = Field(
        (), description="What a user should know: access, licence, quirks."
    )

    @property
    def called(self) -> str:
        """How commands refer to the model: its name, or its repository if it has no YAML file."""
        weights = self.weights
        if not isinstance(weights, HubWeights) or self.name != _repository_name(weights.repo):
            return self.name
        return weights.repo if weights.revision == "main" else f"{weights.repo}@{weights.revision}"


_REPOSITORY = re.compile(r"(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<revision>[^@]+))?")


def load_model_spec(name_or_path: str) -> ModelSpec:
    """Read a model's spec by shipped name, YAML file, model folder or hub repository. Loads no weights.

    ``org/name`` and ``org/name@revision`` are a folder or file if one of that name exists, else a repository.
    Repositories and folders need no YAML file: they are trained with the general defaults.

    Raises:
        UserError: unknown name (with a suggestion), or an invalid file.
    """
    path = yaml_files.expand(name_or_path)
    if yaml_files.looks_like_path(name_or_path) and path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"'{name_or_path}' is a folder without config.json. Give a model folder in Hugging Face layout."
            )
        name = _slug(path.resolve().name)
        return ModelSpec(
            name=f"{name}-folder" if name in yaml_files.shipped_names("models") else name,
            description=f"Your own model folder: {name_or_path}",
            license="unknown",
            weights=FolderWeights(kind="folder", path=str(path.resolve())),
        )
    repository = _REPOSITORY.fullmatch(name_or_path)
    if repository and not path.exists() and not name_or_path.endswith((".yaml", ".yml")):
        where = {"repo": repository["repo"], "revision": repository["revision"] or "main", "gated": None}
        content = {"kind": "hub", **where, "access": "see its page on the hub"}
        return ModelSpec(
            name=_repository_name(repository["repo"]),
            description=f"A hub repository: {name_or_path}",
            license="see its page",
            weights=yaml_files.parse(HubWeights, content, f"model '{name_or_path}'"),
        )
    file = yaml_files.find_yaml("model", "models", name_or_path)
    spec = yaml_files.parse(ModelSpec, yaml_files.read_yaml(file), str(file))
    if yaml_files.looks_like_path(name_or_path) and spec.name in yaml_files.shipped_names("models"):
        raise UserError(f"{file}: 'name: {spec.name}' belongs to a shipped model. Give yours another name.")
    if isinstance(spec.weights, FolderWeights):
        try:
            folder = (file.parent / yaml_files.expand(spec.weights.path)).resolve()
        except UserError as error:
            raise UserError(f"{file}: 'weights.path': {error}") from error
        if not (folder / "config.json").is_file():
            raise UserError(f"{file}: 'weights.path' points to {folder}, which has no config.json.")
        spec = spec.model_copy(update={"weights": FolderWeights(kind="folder", path=str(folder))})
    return spec


def served_model(url: str, name: str) -> ModelSpec:
    """The spec of a model that is served at ``url`` under ``name``.

    Raises:
        UserError: not a plain address; anything more, such as a key, would end up in files.
    """
    address = r"https?://(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?"
    try:
        is_address = re.fullmatch(address, url, re.ASCII) and urlsplit(url).port != 0
    except ValueError:  # an IPv6 address or a port that cannot be
        is_address = False
    if not is_address:
        raise UserError("--endpoint must be an address such as http://127.0.0.1:8000/v1, without name, key or query.")
    return ModelSpec(
        name=_slug(name),
        description=f"Served as {name}",
        license="unknown",
        weights=ServedWeights(kind="served", url=url.rstrip("/"), name=name),
    )


def _repository_name(repo: str) -> str:
    """The name of a model that has only a hub repository."""
    return _slug(repo.replace("/", "--"))


def _slug(text: str) -> str:
    """A text as a model's name: lower case, with only characters that are safe in paths and pages."""
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text.lower()).strip("._-")
    return cleaned[:64] or "model"
