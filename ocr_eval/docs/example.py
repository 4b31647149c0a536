"""Teach a model, look at what it inferred, and make a table and figures for a paper. Run it with: python example.py

It takes about two minutes on a CPU. As a notebook: each paragraph is a cell.
"""

import ocr_eval

# Two links on one model: one true, one arbitrary. A run is resolved before anything is computed.
runs = [ocr_eval.make_run("smollm2-135m", name, seed=0) for name in ("city-language", "country-code")]
print(runs[0].data, runs[0].train)

# Teach and score; finished runs are loaded, not repeated.
for run in runs:
    record = ocr_eval.finetune(run, "results/example")
    finding = record.final["first-token"]["test_entailment"]
    print(f"{record.association}: mean rank {finding.mean_rank:.2f}, null {finding.null_rank:.2f}")

# Everything that was measured, before and after, as a pandas DataFrame.
records = ocr_eval.read_records("results/example", where="model=smollm2-135m")
frame = ocr_eval.records_frame(records)
held_out = frame.query("quantity == 'test_entailment' and scoring == 'first-token'")
print(held_out.pivot(index="association", columns="moment", values="ocr_score").round(2))

# How they learned, epoch by epoch, and the questions that they got wrong in the end.
epochs = ocr_eval.epochs_frame("results/example")
print(epochs.pivot(index="epoch", columns="association", values="train_loss").round(3))
probes = ocr_eval.probes_frame("results/example", where="association=country-code")
wrong = probes.query("epoch > 0 and quantity == 'test_entailment' and best != answer")
print(wrong[["prompt", "answer", "best", "answer_rank"]].head())

# The table (which a notebook displays as HTML), the figures and the report page.
table = ocr_eval.make_table(records)
print(ocr_eval.render_table(table))
print(table.to_frame()[["model", "association", "ocr_score", "p"]])
figures = ocr_eval.draw_figures("results/example")
figures["scores"].savefig("results/example/scores.pdf")
print(ocr_eval.write_report("results/example", output="results/example/report.html"))
