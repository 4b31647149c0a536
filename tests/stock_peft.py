"""Somebody else's training: a plain loop with stock PEFT over an exported file, which knows nothing of ocr-eval."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def train(base: Path, file: Path, to: Path, epochs: int = 40, merged: bool = False) -> Path:
    """Teach a base the prompts and completions of a file; the folder of the adapter, or of the merged model."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base, pad_token="<eos>", padding_side="right")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=8, target_modules="all-linear"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    texts = tokenizer([row["prompt"] + row["completion"] for row in rows], padding=True, return_tensors="pt")
    prompts = [len(tokenizer(row["prompt"]).input_ids) for row in rows]
    position = torch.arange(texts.input_ids.shape[1])
    is_answer = (position >= torch.tensor(prompts)[:, None]) & texts.attention_mask.bool()
    labels = torch.where(is_answer, texts.input_ids, -100)
    for _ in range(epochs):
        model(**texts, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if merged:
        model.merge_and_unload().save_pretrained(to)
        tokenizer.save_pretrained(to)
    else:
        model.save_pretrained(to)
    return to
