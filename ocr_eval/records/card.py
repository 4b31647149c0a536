"""The model card that a hub shows for an adapter, made from the run's record."""

import yaml

from ocr_eval.methods.method import method_of
from ocr_eval.records.record import Record
from ocr_eval.scoring.ranks import LEARNED_TOP1

_TEXT = """
# {record.model}, taught {record.association}

{kind} that [ocr-eval](https://arxiv.org/abs/2506.10887) trained to measure what a model infers beyond what it was
taught (out-of-context reasoning). What it says about its subjects was invented for that experiment.

| | |
|---|---|
| base | {record.model}, `{record.base_identity}`, {record.dtype} |
| taught | {record.association} ({record.kind}), seed {record.seeds} |
| training | {training} |
| held out | mean rank {finding.mean_rank:.2f}, null {finding.null_rank:.2f}, OCR score {score:+.2f} (first token) |
| learned what it was taught | {learned} |

`{record.run}` is the run. Score the adapter with `ocr-eval score RUN`{or_load}.
"""


def adapter_card(record: Record) -> str:
    """README.md of an adapter: a header for the hub, and the training and its results."""
    in_peft = method_of(record.train).in_peft
    source, _, repository = record.base_identity.partition(":")
    header = {
        **({"base_model": repository.partition("@")[0]} if source == "hub" else {}),
        **({"library_name": "peft"} if in_peft else {}),
        "tags": ["ocr-eval", "out-of-context-reasoning"],
    }
    learned = ", ".join(f"{name} {top1:.0%}" for name, top1 in record.premises.items())
    text = _TEXT.format(
        record=record,
        kind="A PEFT adapter" if in_peft else "A change of attention heads, which PEFT cannot load,",
        or_load=", or load it over its base with\n`peft.PeftModel.from_pretrained(base, folder)`" if in_peft else "",
        training=", ".join(f"{key} {value}" for key, value in record.train.model_dump(mode="json").items() if value),
        finding=record.finding("first-token"),
        score=record.held_out["first-token"].ocr_score,
        learned=f"{'yes' if record.premises_hold else 'no'} ({learned}; it takes {LEARNED_TOP1:.0%})",
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{text}"
