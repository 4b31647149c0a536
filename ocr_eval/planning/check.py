"""Whether this project can work with a model: its sizes and modules, and how its tokenizer splits each association."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ocr_eval.common import yaml_files
from ocr_eval.data.candidate_tokens import Audit, audit_association
from ocr_eval.models.architecture import examine, read_config
from ocr_eval.models.base import attention_for, device_type, load_tokenizer
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec


@dataclass(frozen=True)
class Check:
    """Result of a check.

    Attributes:
        model: as the user named it.
        architecture: its kind, sizes, modules, and the attention used on this machine; None for a folder that contains
            only a tokenizer.
    """

    model: str
    architecture: dict[str, Any] | None
    vocabulary: int
    audits: dict[str, Audit]

    @property
    def scorable(self) -> bool:
        """Whether every association can be scored first-token."""
        return all(audit.scorable for audit in self.audits.values())

    def as_text(self) -> str:
        """Lines for a terminal."""
        lines = []
        if (found := self.architecture) is not None:
            lines.append(
                f"{self.model}: {found['kind']}, {found['parameters'] / 1e9:.2f} B parameters in {found['layers']} "
                f"layers, {found['attention']} attention; linear modules: {' '.join(found['linear_modules'])}"
            )
        bos = next(iter(self.audits.values())).bos
        lines.append(f"{self.model}: tokenizer with {self.vocabulary:,} entries, BOS {'none' if bos is None else bos}")
        for name, audit in self.audits.items():
            lines.append(f"  {name:18} {audit.verdict}{_obstacles(audit)}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return {
            "model": self.model,
            "architecture": self.architecture,
            "vocabulary": self.vocabulary,
            "scorable": self.scorable,
            "associations": {name: audit.as_json() for name, audit in self.audits.items()},
        }


def check_model(model: str, associations: Sequence[str]) -> Check:
    """Check a model without its weights; ``model`` is a shipped name, YAML file, folder or hub repository.

    Raises:
        UserError: there is no such model or association, or no tokenizer.
    """
    tokenizer = load_tokenizer(model)
    loaded = [load_association(name) for name in associations]
    audits = {association.name: audit_association(tokenizer, association) for association in loaded}
    architecture, folder = None, yaml_files.expand(model)
    if not (yaml_files.looks_like_path(model) and folder.is_dir() and not (folder / "config.json").is_file()):
        spec = load_model_spec(model)
        sizes = examine(spec)
        architecture = {
            "kind": sizes.kind,
            "parameters": sizes.parameters,
            "layers": sizes.layers,
            "attention": attention_for(spec, read_config(spec), device_type("auto")),
            "linear_modules": sizes.modules,
        }
    return Check(model, architecture, len(tokenizer), audits)


def _obstacles(audit: Audit) -> str:
    """The first reason why an association cannot be scored, and the number of further ones."""
    reasons = []
    for tried in audit.prompts:
        reasons += [f"{' = '.join(clash)} after '{tried.prompt}'" for clash in tried.clashes]
        reasons += [tried.unsplit] if tried.unsplit else []
    if not reasons:
        return ""
    return f": {reasons[0]}" + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")
