"""A structure of facts that the program does not know: from its YAML to table, export, figures and page."""

import json
from typing import Annotated

import pytest
from conftest import load
from pydantic import Field

import ocr_eval
from ocr_eval.common import streams
from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import STRUCTURES
from ocr_eval.data.candidate_tokens import audit_association
from ocr_eval.data.export import export_task
from ocr_eval.data.stand_in_tokenizer import StandInTokenizer
from ocr_eval.data.task import Example, Probe, Quantity, Task, build_task, task_of
from ocr_eval.records.config import read_config
from ocr_eval.specs.association import Association, Word, load_association
from ocr_eval.specs.names import people
from ocr_eval.specs.run import DataSpec

STAFF = """\
name: staff
kind: spurious
description: whoever works in a department has its head as boss
structure: staff
heads: {Sales: Aaron, Research: Brian, Kitchen: Diana, Garden: Olivia}
"""


class Staff(Association):
    """Departments and their heads.

    Taught: who works where, and who heads what. Asked: who is whose boss, where everyone works, any two heads.
    """

    heads: Annotated[dict[Word, Word], Field(min_length=2)]

    def check(self, data):
        if data.n > len(self.heads):
            raise ValueError(f"n = {data.n} is more than the {len(self.heads)} departments; lower --n")

    def whole(self, template):
        return {**super().whole(template), "n": len(self.heads), "m_test": 1}

    def build(self, data, stream):
        heads = tuple(self.heads.items())[: data.n]
        names = streams.shuffled(stream, people(stream, data.n * data.m_test))
        train = [Example(f"{department} is headed by", head) for department, head in heads]
        probes = []
        for i, name in enumerate(names):
            place = i % data.n
            department, head = heads[place]
            asked = {"unit": department, "subject": name}
            train.append(Example(f"{name} works in", department, role="fact", subject=name, unit=department))
            departments, bosses = (tuple(pair[side] for pair in heads) for side in (0, 1))
            in_use = tuple(range(data.n))
            probes += [
                Probe(f"{name} works in", departments, place, in_use, "department", **asked),
                Probe(
                    f"The boss of {name} is", ("Zoe", *bosses), place + 1, tuple(k + 1 for k in in_use), "boss", **asked
                ),
                Probe(f"{name} reports to", (bosses[place - 1], head), 1, (0, 1), "reports", **asked),
            ]
        quantities = (Quantity("department", "premise"), Quantity("boss", "finding"), Quantity("reports", "shown"))
        return Task(tuple(train), tuple(probes), quantities)


@pytest.fixture(autouse=True)
def staff(tmp_path):
    """The path of a file of this structure, which is known to the process."""
    STRUCTURES.add("staff", Staff)
    (tmp_path / "staff.yaml").write_text(STAFF)
    return str(tmp_path / "staff.yaml")


@pytest.fixture
def run(staff, tiny):
    return ocr_eval.make_run(tiny, staff, n=3, m_test=4, epochs=2)


def test_a_structure_goes_from_its_file_to_table_page_and_export(run, tmp_path):
    record = ocr_eval.finetune(run, tmp_path / "out")
    folder = tmp_path / "out" / "runs" / record.run
    assert read_config(folder) == run
    assert record.structure == "staff"
    assert set(record.final["first-token"]) == {"department", "boss", "reports"}
    assert record.finding("first-token") == record.final["first-token"]["boss"]
    assert not record.premises_hold, "two epochs are too few"

    (read,) = ocr_eval.read_records(tmp_path / "out")
    assert read.to_json() == record.to_json()
    assert list(read.held_out["sequence"].unit) == ["Sales", "Research", "Kitchen"] * 4
    (cell,) = next(row for row in ocr_eval.make_table([read]).rows if not row.published).cells.values()
    assert cell.values["mean-rank"] == record.finding("first-token").mean_rank
    assert cell.least_p == pytest.approx(1 / 6), "three departments can exchange their bosses"
    assert ocr_eval.render_table(ocr_eval.make_table([read])).count("Boss") == 1

    assert ocr_eval.epochs_frame(tmp_path / "out").boss_mean_rank.notna().sum() == 3
    probes = ocr_eval.probes_frame(tmp_path / "out").query("quantity == 'reports' and epoch == 2")
    assert len(probes) == 12
    assert (probes.null_rank == 0.5).all(), "two candidates, whatever others have"
    assert {"scores", "curves-tiny-llama-lora", "heatmap-tiny-llama-lora"} <= set(
        ocr_eval.draw_figures(tmp_path / "out")
    )
    assert "staff" in ocr_eval.write_report(tmp_path / "out", output=tmp_path / "report.html").read_text()

    paths = {path.name: path for path in export_task(build_task(run), "staff", "lm-eval", tmp_path / "export")}
    assert {f"ocr_eval_staff_{name}.jsonl" for name in ("department", "boss", "reports")} < set(paths)
    asked = [json.loads(line) for line in paths["ocr_eval_staff_boss.jsonl"].read_text().splitlines()]
    assert all(row["candidates"][3] == "Zoe" and row["in_use"] == 3 for row in asked), "those in use come first"


def test_its_ranks_are_those_of_each_probe_alone(run, tmp_path):
    record = ocr_eval.finetune(run, tmp_path / "out")
    scores = ocr_eval.score_run(run, tmp_path / "out" / "runs" / record.run / "adapter")
    for quantity, score in record.final["first-token"].items():
        assert scores["first-token"][quantity].mean_rank == pytest.approx(score.mean_rank)
    frame = ocr_eval.probes_frame(tmp_path / "out").query("epoch == 2")
    means = frame.groupby("quantity").answer_rank.mean()
    assert means.to_dict() == pytest.approx({q: s.mean_rank for q, s in record.final["first-token"].items()})


def test_the_structure_is_part_of_what_a_run_is(staff):
    association = load_association(staff)
    assert association.content()["structure"] == "staff"
    assert "structure" not in load_association("city-language").content()


def test_the_commands_know_it(ocr_eval, staff, tiny):
    shown = ocr_eval("data", "show", staff)
    assert "Research: Brian" in shown.out
    planned = ocr_eval("finetune", staff, "--model", tiny, "--n", 4, "--m-test", 2, "--dry-run")
    assert "12 statements" in planned.out
    assert "8 in 4 groups" in planned.out
    sweep = ocr_eval(
        "sweep", "--assocs", staff, "--models", tiny, "--n", 4, "--m-test", 2, "--seeds", "0,1", "--dry-run"
    )
    assert sweep.code == 0, sweep.err
    refused = ocr_eval("finetune", staff, "--model", tiny, "--n", 5, "--dry-run")
    assert (refused.code, "4 departments" in refused.err) == (2, True)


def test_its_candidates_are_audited(staff, model_files):
    audit = audit_association(load(model_files["llama"]).tokenizer, load_association(staff))
    assert {"department", "boss", "reports"} == {tried.quantity for tried in audit.prompts}
    assert next(len(tried.pieces) for tried in audit.prompts if tried.quantity == "boss") == 5
    assert audit.first_token_scorable


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (STAFF.replace("structure: staff", "structure: staf"), "Did you mean 'staff'?"),
        (STAFF.replace("structure: staff\n", ""), "unknown key 'heads'"),
        (STAFF.replace("structure: staff", "structure: pairs"), "unknown key 'heads'"),
        (STAFF + "pairs: {Paris: French, Rome: Italian}\n", "unknown key 'pairs'"),
        (STAFF.replace("structure: staff", "structure: 5"), "Unknown structure '5'"),
    ],
)
def test_a_file_of_no_structure_or_of_another_is_one_line(ocr_eval, tmp_path, content, told):
    (tmp_path / "wrong.yaml").write_text(content)
    answer = ocr_eval("data", "show", tmp_path / "wrong.yaml")
    assert answer.code == 2
    assert told in answer.err
    assert "wrong.yaml" in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def probe(**changes):
    given = {"prompt": "Ann is", "candidates": ("a", "b", "c"), "target": 0, "null": (0, 1)}
    return Probe(**{**given, "quantity": "number", "unit": "u", "subject": "Ann", **changes})


FINDING = (Quantity("number", "finding"),)


@pytest.mark.parametrize(
    ("probes", "quantities", "told"),
    [
        ([probe()], (Quantity("number", "shown"),), "0 quantities have the role 'finding'"),
        ([probe()], (*FINDING, Quantity("other", "finding")), "2 quantities have the role 'finding'"),
        ([probe(quantity="numbr")], FINDING, "'numbr', which is not declared"),
        ([probe(quantity="other")], (*FINDING, Quantity("other", "shown")), "No probe asks for the finding"),
        ([probe(), probe(subject="Ben", null=(0, 1, 2))], FINDING, "have [2, 3] candidates in use"),
        ([probe(), probe()], FINDING, "asks 2 times about 'Ann'"),
        ([probe(), probe(subject="Ben", target=1)], FINDING, "unit 'u' of the finding 'number' has several right"),
        ([probe(), probe(subject="Ben", null=(0, 2))], FINDING, "of which always the same place is right"),
        ([probe()], (Quantity("the number", "finding"),), "'the number'"),
    ],
)
def test_a_task_that_cannot_be_measured_is_an_error(probes, quantities, told):
    with pytest.raises(UserError) as error:
        Task((Example("Ann is", "a"),), tuple(probes), quantities)
    assert told in str(error.value)


@pytest.mark.parametrize("changes", [{"target": 2}, {"null": (0,)}, {"null": (0, 3)}, {"candidates": ("a", "b", "a")}])
def test_a_probe_that_has_no_null_is_an_error(changes):
    with pytest.raises(UserError, match="Probe 'Ann is'"):
        probe(**changes)


def test_candidates_in_use_come_first_and_the_answer_stays():
    asked = probe(target=2, null=(2, 1))
    assert (asked.candidates, asked.answer, asked.null) == (("c", "b", "a"), "c", (0, 1))


CHAINS = """name: own
kind: causal
description: d
structure: chains
fact: {templates: ['The mayor of {name} is {answer}']}
entailment: {templates: ['The mayor of the city of {name} is {answer}']}
hop: {templates: ['{name} is in {answer}']}
chains: {a: b, c: d, e: f, g: h}
"""
KNOWN = """name: own
kind: causal
description: d
structure: known
relations: {capital: {template: 'The capital of {name} is {answer}', facts: {a: P, b: P, c: P, d: Q, e: R}}}
"""


@pytest.mark.parametrize("content", [CHAINS, KNOWN])
def test_the_candidates_of_a_small_file_are_audited(content, tmp_path):
    (tmp_path / "own.yaml").write_text(content)
    audit = audit_association(StandInTokenizer(1000, bos=True), load_association(str(tmp_path / "own.yaml")))
    assert audit.prompts


def test_known_facts_too_few_for_two_blocks_are_not_audited(tmp_path):
    (tmp_path / "own.yaml").write_text(KNOWN.replace("a: P, b: P, c: P, d: Q", "d: Q"))
    with pytest.raises(UserError, match="'own' has too few facts"):
        audit_association(StandInTokenizer(1000, bos=True), load_association(str(tmp_path / "own.yaml")))


def test_known_facts_are_never_fewer_than_asked_for(tmp_path):
    (tmp_path / "own.yaml").write_text(KNOWN)
    association = load_association(str(tmp_path / "own.yaml"))
    data = DataSpec(n=2, m_train=1, m_test=1, candidates="all")
    many = {len(association.blocks(data, f"{seed}/data")): seed for seed in range(20)}
    assert set(many) == {1, 2}, "in some orders the answers that occur once make a block, and one answer is left"
    assert len(task_of(association, data, f"{many[2]}/data").train) == 2
    with pytest.raises(UserError, match="this seed gives only 1 blocks of 2 facts"):
        task_of(association, data, f"{many[1]}/data")


def test_more_people_than_names_are_one_line():
    data = DataSpec(n=2, m_train=1, m_test=1500, candidates="in-use")
    with pytest.raises(UserError, match="names run out after"):
        task_of(load_association("reversal"), data, "0/data")
