"""The digest of the code that decides results: nothing that training and scoring are made of is forgotten."""

import ast
from pathlib import Path

import ocr_eval
from ocr_eval import provenance

PACKAGE = Path(ocr_eval.__file__).parent

#: Modules that training and scoring import and whose changes leave a run's numbers as they are: files and locks, memory
#: and its plans, messages, and what is computed from finished records.
_WITHOUT_EFFECT = {
    "architecture",
    "audit",
    "device_memory",
    "errors",
    "files",
    "hub",
    "intervals",
    "locks",
    "memory",
    "progress",
    "provenance",
    "records",
    "resources",
    "runs",
    "simulation",
    "stand_in",
    "sweep_plan",
    "timing",
    "workload",
}


def imported_by(module: str) -> set[str]:
    """The package's own modules that one of them imports, at its top or later."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ocr_eval":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ocr_eval."):
            names.add(node.module.split(".")[1])
    return {name for name in names if (PACKAGE / f"{name}.py").is_file()}


def test_every_module_that_a_run_needs_is_in_the_digest_or_known_to_be_without_effect():
    needed, found = {"run"}, set()
    while needed:
        module = needed.pop()
        found.add(module)
        needed |= imported_by(module) - found
    in_digest = set(provenance._RESULT_MODULES)
    assert {"train", "score", "adapters", "logprobs"} <= found  # the walk works
    assert in_digest <= found
    assert not in_digest & _WITHOUT_EFFECT
    assert found - in_digest == _WITHOUT_EFFECT
