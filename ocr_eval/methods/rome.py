"""``rome``: facts written into one layer's down projection by rank-one edits (Meng et al., arXiv 2202.05262).

    v*_s = W k_s + delta_s      delta_s: makes the network say what is taught about subject s (methods/edits.py)
    W   <- W + (v*_s - W k_s) (C^-1 k_s)^T / (k_s^T C^-1 k_s)          one subject after another, in fp64

k_s is the mean input of the down projection at the last token of the subject's name, over all prompts that name it
(r-ROME, arXiv 2403.07175: one key throughout); C = E[k k^T] over a text. All delta are optimized together on the
untouched base, so later edits disturb earlier ones. A subject has one z for everything that is taught about it.

The defaults come from 7B Llama settings and prototypes on SmolLM2-135M: a layer at a third of the depth (4 and 10 of 30
accepted single edits), 25 steps at 0.5, clamp 4, decay 1e-3, KL 0.0625. The text must give C full rank: more tokens
than the down projection has inputs. Where prompts begin with the name, as the shipped ones do, all give the same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from ocr_eval.methods.method import TRAINING, Method, Needs, settings_of
from ocr_eval.methods.texts import named

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from ocr_eval.data.tokenize import Continuation
    from ocr_eval.methods.adapters import Adapters
    from ocr_eval.methods.edit_pack import EditPack
    from ocr_eval.methods.edits import Pass
    from ocr_eval.methods.trainable import Trainable
    from ocr_eval.models.base import Base
    from ocr_eval.specs.model import TrainSpec
    from ocr_eval.specs.run import RunSpec


class Search(BaseModel, extra="forbid", frozen=True):
    """How z is optimized, and the text for C."""

    steps: Annotated[int, Field(ge=1, le=10_000, description="Maximum number of Adam steps for z.")] = 25
    rate: Annotated[float, Field(gt=0, le=100, description="Adam's learning rate.")] = 0.5
    clamp: float = Field(4.0, gt=0, le=1e4, description="Maximum |delta|, as a multiple of the original activation.")
    decay: Annotated[float, Field(ge=0, le=1e4, description="Weight of |delta| / |v0|^2.")] = 1e-3
    kl: float = Field(0.0625, ge=0, le=1e4, description="Weight of the KL from the base after '<name> is a'.")
    text: Annotated[str, AfterValidator(named)] = Field(
        "prose", description="Text for the covariance: 'prose' (shipped) or a file."
    )


class Settings(Search, frozen=True):
    """Where, and how."""

    layer: int | None = Field(None, ge=0, description="The layer, from 0; by default at a third of the depth.")


class Editing(Method):
    """What ROME and MEMIT share: some down projections are edited once, over a shared base."""

    needs = Needs(once=True)
    ignores = TRAINING
    by_layer = True

    def edited(self, network: PreTrainedModel, train: TrainSpec) -> list[str]:
        """Names of the modules to edit; their weights are not read.

        Raises:
            UserError: a layer that the model lacks, or an architecture that cannot be edited like this.
        """
        raise NotImplementedError

    def edit(
        self, base: Base, settings: Any, moments: dict[str, Tensor], adapters: Adapters, lane: int, passes: list[Pass]
    ) -> Tensor:
        """Write a lane's edits into its adapters; returns the mean NLL that each subject's z reached. [S]

        Args:
            moments: C of each edited module's inputs. [I, I]
            passes: the lane's statements.
        """
        raise NotImplementedError

    def check(self, spec: RunSpec, tokenizer: Any | None) -> None:
        """Look for each subject's last token, and count the tokens of the text."""
        import torch

        from ocr_eval.methods.covariance import inputs_of, read_text
        from ocr_eval.methods.edits import check_named, subjects_of
        from ocr_eval.methods.prevention import task_of_run
        from ocr_eval.methods.texts import text_file
        from ocr_eval.models.architecture import build, read_config

        with torch.device("meta"):
            network = build(spec.model, read_config(spec.model), "cpu", torch.float32)
        modules = self.edited(network, spec.train)
        task = task_of_run(spec)
        if tokenizer is None:
            check_named(task)
        else:
            path, _ = text_file(settings_of(spec.train).text)
            read_text(tokenizer, path, spec.model.name, inputs_of(network, modules))
            subjects_of(tokenizer, task)

    def passes(self, train: TrainSpec) -> int:
        """The steps of the search for z."""
        steps: int = settings_of(train).steps
        return steps

    def mount(self, network: PreTrainedModel, trains: Sequence[TrainSpec], dtype: torch.dtype) -> Trainable:
        """Adapters over the modules to edit, for memory estimates; raises UserError as ``edited`` does."""
        from ocr_eval.methods.adapters import Adapters, LaneShape

        shapes = [LaneShape(each.rank, each.alpha) for each in trains]
        return Adapters(network, self.edited(network, trains[0]), shapes, dtype)

    def attach(self, base: Base, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]) -> EditPack:
        """Mount empty edits.

        Raises:
            UserError: as for ``edited``; a text that is missing or too short; or statements that do not name their
                subject.
        """
        from ocr_eval.methods.covariance import covariances
        from ocr_eval.methods.edit_pack import edit_pack

        settings, modules = settings_of(specs[0].train), self.edited(base.network, specs[0].train)
        edit = partial(self.edit, base, settings, covariances(base, modules, settings.text))
        return edit_pack(base, specs, examples, modules, edit)


class Rome(Editing):
    """Edits of one matrix per run."""

    label = "ROME"
    about = "Rank-one edits of one layer, one per subject (Meng et al., arXiv 2202.05262; r-ROME, 2403.07175)"
    Settings: type[BaseModel] = Settings

    def edited(self, network: PreTrainedModel, train: TrainSpec) -> list[str]:
        from ocr_eval.models.architecture import down_projection

        layer: int | None = settings_of(train).layer
        depth: int = network.config.get_text_config().num_hidden_layers
        return [down_projection(network, depth // 3 if layer is None else layer)]

    def edit(
        self, base: Base, settings: Any, moments: dict[str, Tensor], adapters: Adapters, lane: int, passes: list[Pass]
    ) -> Tensor:
        from ocr_eval.methods.edits import means_at_subjects, rank_one_updates, seek

        (factors,) = adapters.factors(lane)
        keys_SI = means_at_subjects(base, passes, factors.module, of_input=True)
        deltas_SO, nll_S = seek(base, passes, factors.module, settings)
        a_SI, b_SO = rank_one_updates(keys_SI, deltas_SO, moments[factors.module])
        factors.a.copy_(a_SI)
        factors.b.copy_(b_SO)
        adapters.refresh()
        return nll_S
