"""The published mean ranks of Huang et al. (NeurIPS 2025, arXiv 2506.10887), LLM table."""

import csv

from ocr_eval.common import yaml_files


def published_associations() -> list[str]:
    """The five associations of the paper, in the order of its table."""
    return list(next(iter(published_mean_ranks().values())))


def published_mean_ranks() -> dict[str, dict[str, float]]:
    """Mean rank by model and association; 0 is perfect, ten candidates."""
    with yaml_files.shipped("published.csv").open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {row.pop("model"): {name: float(rank) for name, rank in row.items()} for row in rows}
