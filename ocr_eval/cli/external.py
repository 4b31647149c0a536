"""Flags of ``score`` for external training on exported data, and for models on a server."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.spec_flags import Given, flag_of, option
from ocr_eval.common.errors import UserError
from ocr_eval.specs.settings import SETTINGS

if TYPE_CHECKING:
    from ocr_eval.specs.model import ModelSpec
    from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class Elsewhere:
    """External training on exported data, or a model on a server."""

    data: Annotated[Path | None, option("--data", help="Folder of 'data export'; determines the probes.")] = None
    name: Annotated[str | None, option("--name", help="With --data: keep the scores as a run of this name.")] = None
    output_dir: o.OutputOption = o.DEFAULT_OUTPUT
    endpoint: Annotated[
        str | None,
        option("--endpoint", help="Server with OpenAI's completions (http://HOST:8000/v1); --model is its name there."),
    ] = None
    per_request: Annotated[
        int | None, option("--per-request", min=1, help="With --endpoint: texts per request (default: 16).")
    ] = None

    @property
    def texts(self) -> int:
        """Texts per request."""
        return self.per_request or 16

    def model(self, context: typer.Context, name: str, without: Collection[str]) -> str | ModelSpec:
        """The model to score, which is on a server if --endpoint is given.

        Raises:
            UserError: an invalid address, no name, or a flag that has no effect on a server (``without``).
        """
        if self.endpoint is None:
            if self.per_request is not None:
                raise UserError("--per-request needs --endpoint, a server to which requests go.")
            return name
        from ocr_eval.specs.model import served_model

        if without:
            raise UserError(f"{flag_of(min(without))} has no effect on a server's model. Drop it, or --endpoint.")
        if "model" in o.stated(context, "DEFAULT"):
            raise UserError("--endpoint needs --model, the server's name for the model that you trained.")
        return served_model(self.endpoint, name)

    def run(self, context: typer.Context, model: str | ModelSpec, assoc: str | None, settings: Given) -> RunSpec | None:
        """The run that the manifest of --data describes; None without --data.

        Raises:
            UserError: a flag contradicts the manifest, has no effect, or needs a manifest.
        """
        if self.name is None and "output_dir" in o.stated(context):
            raise UserError("--output-dir needs --name, which writes a run there. Without it nothing is written.")
        if self.name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", self.name):
            raise UserError(f"--name '{self.name}': use lowercase letters, digits, '.', '_' and '-', at most 64.")
        if self.data is None and self.name is not None:
            raise UserError("--name needs --data, the folder of 'data export', which says what was taught.")
        if self.data is None:
            return None
        from ocr_eval.data.manifest import FILE, read_manifest
        from ocr_eval.specs.association import load_association

        if o.RUN in context.meta:
            raise UserError("--config of a run cannot be combined with --data, whose manifest.json sets the probes.")
        manifest = read_manifest(self.data)
        decided, taught = manifest.settings, manifest.association
        wrong = [
            (f"{flag_of(key)} {SETTINGS[key].text(value)}", SETTINGS[key].text(decided[key]))
            for key, value in settings.items()
            if decided.get(key, value) != value
        ]
        if assoc is not None and (asked := load_association(assoc)).content() != taught.content():
            wrong.append((f"--assoc {assoc}", "another of that name" if asked.name == taught.name else taught.name))
        if wrong:
            flag, there = wrong[0]
            raise UserError(
                f"{flag} contradicts {self.data / FILE}, which states {there}. Drop the flag, or its variable."
            )
        return o.resolve(context, model, taught, {**settings, **decided})
