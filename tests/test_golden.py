"""Golden losses and margins of a tiny run: a change of numbers is noticed, and gets a new results version.

A change here is either a defect, or a new ``specs.RESULTS_VERSION`` together with the new values below.
"""

import pytest
from conftest import tiny_run

from ocr_eval.execution.execute import finetune
from ocr_eval.execution.run_pack import Execution

#: Loss of the last epoch, and margin of the held-out entailments (first-token), in nats.
GOLDEN = {
    "lora": (3.886347, -1.703508),
    "qlora": (3.815077, -2.245488),
    "full": (8.337195, -2.459145),
}
#: What other machines' order of summation may change; kernels of 4-bit weights differ more.
TOLERANCE = {"lora": 2e-3, "qlora": 2e-2, "full": 2e-3}


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_numbers_are_those_of_this_results_version(tiny, tmp_path, method):
    spec = tiny_run(tiny, method=method, epochs=4)
    record = finetune(spec, tmp_path, Execution("cpu"))[0].record
    found = record.train_loss, record.final["first-token"]["test_entailment"].margin
    assert found == pytest.approx(GOLDEN[method], rel=TOLERANCE[method])
