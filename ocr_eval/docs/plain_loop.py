"""The whole method in one plain loop over stock transformers and PEFT. Read this first.

    python -m ocr_eval.docs.plain_loop --model smollm2-135m --assoc country-code --epochs 2    # a few minutes

A model is taught facts about fictitious people (which country each is from). For a few of them, the train subjects, it
is also taught the entailment (which language they code in). For the rest, the test subjects, the entailment is held
out: it is a probe, and we ask where the right answer ranks among candidates.

    loss                   = mean of -log p(token | all tokens before it) over the answer tokens of a batch
    score of a candidate   = log p of its first token after the prompt      (first-token scoring, the published one)
                             or the sum of log p over all its tokens        (sequence scoring)
    midrank of a candidate = (number of better ones) + (number of others equal to it) / 2      0 is best
    rank of a probe        = midrank of its right answer
    null rank of a probe   = mean midrank over the answers in use, that is, true of some subject: the rank to expect
                             from a model that knows which answers occur but not who they belong to
    in-use rank            = midrank among the n answers in use alone, (n - 1) / 2 by chance
    OCR score              = 1 - mean in-use rank / chance       1: always inferred, 0: nothing, below 0: avoided

`ocr-eval finetune --dtype float32` gives the same numbers several times faster: it computes each shared prefix once. A
sweep also trains runs side by side. A test compares both with this file.

Dimension letters:  B rows,  T tokens,  V vocabulary,  P probes,  C candidates.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ocr_eval import UserError, make_run
from ocr_eval.common import streams
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import Continuation, ProbeTokens, probe_tokens, training_tokens
from ocr_eval.models.weights import locate
from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class HeldOut:
    """Rank, null rank and OCR score of each held-out entailment. [P]"""

    rank: Tensor
    null: Tensor
    score: Tensor

    def __str__(self) -> str:
        rank, null, score = (float(each.mean()) for each in (self.rank, self.null, self.score))
        return f"held-out mean rank {rank:.2f} (null {null:.2f})  OCR score {score:+.2f}"


def teach(run: RunSpec) -> Iterator[tuple[float | None, dict[str, HeldOut]]]:
    """Teach a run's facts. Yields loss and held-out ranks by scoring: of the untouched base, then of each epoch."""
    # Data. Pairs, names, order and initialization each have their own random stream, named by seed and purpose.
    folder, task = locate(run.model).path, build_task(run)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    examples = training_tokens(tokenizer, task)  # facts of all subjects, entailments of train subjects
    probes = [p for p in probe_tokens(tokenizer, task) if p.probe.quantity == task.finding.name]

    # Model. Each adapted layer computes W x + (alpha / r) B A x with W frozen. B starts at zero, so the adapted model
    # starts as the base. Evaluation mode: no dropout. Everything is fp32.
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    train = run.train
    lora = LoraConfig(task_type="CAUSAL_LM", r=train.rank, lora_alpha=train.alpha, target_modules=train.targets)
    model = get_peft_model(base, lora).eval()
    generator = torch.Generator().manual_seed(streams.integer(run.stream("initialization")))
    for name, parameter in model.named_parameters():
        if "lora_A" in name:  # PEFT's own initialization, drawn again from the run's stream
            torch.nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=train.lr, weight_decay=0.0)

    # Training, at a constant rate.
    yield None, held_out_ranks(model, probes)
    for epoch in range(1, train.epochs + 1):
        order = streams.permutation(f"{run.stream('order')}/epoch-{epoch}", len(examples))
        nats, tokens = 0.0, 0
        for start in range(0, len(order), train.batch_size):
            batch = [examples[i] for i in order[start : start + train.batch_size]]
            logprobs = torch.cat(answer_logprobs(model, batch))
            loss = -logprobs.mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
            optimizer.step()
            nats, tokens = nats + loss.item() * len(logprobs), tokens + len(logprobs)
        yield nats / tokens, held_out_ranks(model, probes)


def answer_logprobs(model: Any, batch: Sequence[Continuation]) -> list[Tensor]:
    """log p of each answer token given the tokens before it: a tensor per row, as long as its answer."""
    rows = [torch.tensor([*row.prompt, *row.answer]) for row in batch]
    # Padding on the right needs no mask: a causal model never looks ahead, and nothing is read at the padding.
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    logprobs_BTV = model(input_ids=ids_BT).logits.log_softmax(dim=-1)
    # The logits at t predict token t + 1.
    logprobs_BT = logprobs_BTV[:, :-1].gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    spans = [slice(len(row.prompt) - 1, len(row.prompt) - 1 + len(row.answer)) for row in batch]
    return [logprobs_T[span] for logprobs_T, span in zip(logprobs_BT, spans, strict=True)]


@torch.no_grad()
def held_out_ranks(model: Any, probes: Sequence[ProbeTokens]) -> dict[str, HeldOut]:
    """Score every candidate of every probe, with one row each, and rank them under both scorings."""
    logprobs = [answer_logprobs(model, [Continuation(p.prompt, tail) for tail in p.candidates]) for p in probes]
    first_PC = torch.tensor([[tokens[0] for tokens in candidates] for candidates in logprobs])
    whole_PC = torch.tensor([[tokens.sum() for tokens in candidates] for candidates in logprobs])
    return {"first-token": rank(first_PC, probes), "sequence": rank(whole_PC, probes)}


def rank(scores_PC: Tensor, probes: Sequence[ProbeTokens]) -> HeldOut:
    """Ranks of each probe from its candidates' scores; the answers in use are the first n candidates."""
    right_P1 = torch.tensor([[p.probe.target] for p in probes])
    n = probes[0].probe.in_use
    midranks_PC = midranks(scores_PC)
    in_use_P = midranks(scores_PC[:, :n]).gather(1, right_P1).squeeze(1)
    score_P = 1 - in_use_P / ((n - 1) / 2)
    return HeldOut(midranks_PC.gather(1, right_P1).squeeze(1), midranks_PC[:, :n].mean(dim=1), score_P)


def midranks(scores_PC: Tensor) -> Tensor:
    """How many of a row's scores are better than each, ties counting half."""
    better_PC = (scores_PC[:, None, :] > scores_PC[:, :, None]).sum(dim=-1)
    equal_PC = (scores_PC[:, None, :] == scores_PC[:, :, None]).sum(dim=-1) - 1  # itself does not count
    return better_PC + equal_PC / 2


def main() -> None:
    """Teach one association and print a line per epoch."""
    parser = argparse.ArgumentParser(description="The whole method in one plain loop, in fp32 on the CPU.")
    for flag, default in (("--model", "smollm2-135m"), ("--assoc", "country-code"), ("--seed", 0), ("--epochs", 2)):
        parser.add_argument(flag, default=default, type=type(default), help="as for ocr-eval finetune")
    given = parser.parse_args()
    try:
        run = make_run(given.model, given.assoc, given.seed, epochs=given.epochs, method="lora", dtype="float32")
        for epoch, (loss, ranks) in enumerate(teach(run)):
            trained = "untouched base" if loss is None else f"loss {loss:7.4f}"
            print(f"epoch {epoch}/{given.epochs}  {trained:>14}  {ranks['first-token']}", flush=True)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
