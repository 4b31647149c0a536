"""What an untouched model has of facts: how links are wired, what it knows, which answers begin alike."""

import json
import math

import numpy as np
import pytest
import torch

from ocr_eval.cli.app import run
from ocr_eval.measures import untouched
from ocr_eval.measures.untouched import first_logprobs, known, wiring
from ocr_eval.packing.logprobs import read_sampled
from tests.conftest import bare, load
from tests.test_facts import staff, write_csv


def test_a_wired_link_has_rank_0_and_an_arbitrary_one_the_null():
    rng = np.random.default_rng(0)
    source, partner = rng.normal(size=(360, 20)), rng.permutation(20)
    target = 0.5 * source[:, np.argsort(partner)] + rng.normal(size=(360, 20)) * 0.1 + 3
    pairs = [(i, int(partner[i])) for i in range(20)]
    assert wiring(source, target, pairs)[:2] == (0, 1)
    assert wiring(source, target, pairs)[2] > 0.9
    nothing = wiring(source, rng.normal(size=(360, 20)), pairs)
    assert nothing[0] == pytest.approx(9.5, abs=3)
    assert abs(nothing[2]) < 0.1


def test_what_w_is_fitted_to_are_plain_log_probabilities(tiny):
    base = load(tiny)
    found = first_logprobs(bare(base), ["Paris", "Rome"], lambda who, answer: (f"{who} lives in", answer))
    assert found.shape == (360, 2)
    name = untouched.people("audit/wired", 360)[7]
    ids = base.tokenizer(f"{name} lives in").input_ids
    with torch.no_grad():
        plain = base.network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    first = [base.tokenizer(f"{name} lives in {city}").input_ids[len(ids)] for city in ("Paris", "Rome")]
    assert found[7] == pytest.approx(plain[first].numpy(), abs=1e-4)


def test_sampling_is_that_of_the_forty_best_at_half_the_temperature():
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)) * 3
    order = logits.argsort(dim=1, descending=True)
    found = read_sampled(logits, torch.tensor([0, 0, 2]), torch.stack([order[0, 0], order[0, 39], order[2, 40]]), 8)
    assert found[:, 0].tolist() == [1, 0, 0]
    best = (logits[0, order[0, :40]] / 0.5).log_softmax(0)
    assert found[:2, 1].tolist() == pytest.approx([best[0].item(), best[39].item()])
    assert found[2, 1] == -math.inf


def test_hand_worked_categories(tiny, monkeypatch):
    """Of four facts one is always given, one once, one is a sample with p = 0.01 a prompt, and one never."""
    facts = [(f"S{i}", f"a{i}") for i in range(8)]
    greedy, sampled = [[1, 0, 0, 0]] * 9 + [[1, 1, 0, 0]], [[1, 0.5, 0.01, 0.0001]] * 10
    flat = [(g, p) for gs, ps in zip(greedy, sampled, strict=True) for g, p in zip(gs, ps, strict=True)]
    asked = []

    def read(view, lane, probes, reader):
        asked.extend(probes)
        return [[np.array([[g, math.log(p)], [1, 0.0]])] for g, p in flat]

    monkeypatch.setattr(untouched, "read_probes", read)
    found = known(bare(load(tiny)), "column", facts, lambda who, value: (f"{who} has", value))
    assert (found.asked, found.highly, found.maybe, found.weakly) == (4, 1, 1, 1)  # 1 - .99^160 = .8
    assert found.share == 0.75
    assert (found.low, found.high) == pytest.approx((0.3006, 0.9544), abs=1e-3)
    decode = load(tiny).tokenizer.decode
    texts = [decode(probe.prompt) for probe in asked]
    assert all(text.count("\n") == 4 for text in texts)
    subjects = {text.split("\n")[-1] for text in texts}
    shots = {line.rpartition(" ")[0] for text in texts for line in text.split("\n")[:-1]}
    assert len(subjects) == 4
    assert not any(
        subject.removeprefix("<bos>") in {shot.removeprefix("<bos>") for shot in shots} for subject in subjects
    )
    assert all(decode(probe.candidates[0]).endswith("\n") for probe in asked)


def test_too_few_facts_are_not_asked(tiny):
    assert known(bare(load(tiny)), "column", [("A", "b")] * 5, lambda who, value: (who, value)) is None


def test_audit_asks_an_untouched_model(tiny, tmp_path, capfd):
    people = enumerate(staff(30, 20))
    rows = [[who, team, badge and f"mintgreen{badge}", f"key{i}"] for i, (who, team, badge, _) in people]
    table = write_csv(tmp_path / "staff.csv", rows, ["name", "team", "badge", "key"])
    assert run(["audit", str(table), "--model", tiny, "--json", "-q"]) == 0
    found = json.loads(capfd.readouterr().out)["untouched"]
    assert {(link["source"], link["target"]) for link in found["wired"]} == {("team", "badge")}
    assert all(0 <= link["w_rank"] <= 4 and link["null"] == 2 for link in found["wired"])
    assert [each["column"] for each in found["known"]] == ["team", "badge", "key"]
    assert list(found["alike"]) == ["badge"]
    assert run(["audit", str(table), "--model", tiny, "-q"]) == 0
    text = capfd.readouterr().out
    assert "team to badge: W-rank" in text
    assert "of 15 facts are known" in text


def test_audit_of_an_association_is_its_wiring(tiny, tmp_path, capfd):
    assert run(["audit", "country-code", "--model", tiny, "-q"]) == 0
    assert "country-code: W-rank" in capfd.readouterr().out
    assert run(["audit", "reversal", "--model", tiny]) == 2
    assert "reversal" in capfd.readouterr().err
