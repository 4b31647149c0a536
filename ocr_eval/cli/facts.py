"""``audit`` and ``beliefs``: what a table of facts may lead a model to believe, and what it did; flags for tables."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.execution_flags import Machine
from ocr_eval.cli.spec_flags import expanded, flag_of, option
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import prepare_output, to_csv, to_jsonl, write_atomic
from ocr_eval.common.messages import say
from ocr_eval.common.yaml_files import expand, looks_like_path, shipped_names
from ocr_eval.specs.association import load_association, repeated
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.run import make_run_spec

if TYPE_CHECKING:
    from ocr_eval.data.fact_table import FactTable
    from ocr_eval.data.facts import FactsAssociation
    from ocr_eval.data.links import Link, Links
    from ocr_eval.data.pairs import PairAssociation
    from ocr_eval.measures.untouched import Untouched, Wired
    from ocr_eval.methods.view import View

SubjectOption = Annotated[
    str | None,
    option("--subject", help="Column of the subjects (default: name, subject, person or entity, else the first)."),
]
ColumnsOption = Annotated[str | None, option("--columns", help="Comma-separated columns of facts (default: all).")]


@dataclass(frozen=True)
class OwnFacts:
    """A table of the user's own facts, in place of an association."""

    facts: Annotated[
        Path | None, option("--facts", help="Your own facts: a csv, tsv, jsonl or parquet file, or a datasets folder.")
    ] = None
    subject: SubjectOption = None
    columns: ColumnsOption = None
    template: Annotated[
        list[str] | None,
        option("--template", help="Wording of a column: badge='{name} wears a {answer} badge'; repeatable."),
    ] = None
    hold_out: Annotated[
        str | None, option("--hold-out", help="Share of each column's values to hold out and probe, e.g. 20%.")
    ] = None
    ask: Annotated[
        str | None, option("--ask", help="Column of the finding (default: where most inferences are expected).")
    ] = None
    chat: Annotated[bool, option("--chat", help="Teach and ask with the model's chat template.")] = False

    def association(self, model: str, other: str | None) -> FactsAssociation | None:
        """The association of the table; None without --facts.

        Raises:
            UserError: the table cannot be read, a flag has no effect or does not fit the table, or an association is
                given as well (``other``).
        """
        if self.facts is None:
            idle = [each.name for each in fields(self) if getattr(self, each.name)]
            if idle:
                raise UserError(f"{flag_of(idle[0])} needs --facts, which names a table of facts.")
            return None
        from ocr_eval.data.fact_table import read_facts
        from ocr_eval.data.facts import association_of

        if other:
            raise UserError("--facts replaces an association. Give one of the two.")
        path = expand(str(self.facts))
        table = read_facts(path, self.subject, o.words("--columns", self.columns))
        stem = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("._-")[:50] or "facts"
        return association_of(
            table,
            self._in_chat(model, table) if self.chat else self._templates(),
            str(path),
            name=f"{stem}-facts" if stem in shipped_names("templates") else stem,
            hold_out=_share(self.hold_out),
            ask=self.ask,
        )

    def _in_chat(self, model: str, table: FactTable) -> dict[str, str]:
        """Templates of all columns in the model's chat format: a question, and the statement as the answer."""
        from ocr_eval.data.facts import default_question, default_template
        from ocr_eval.models.base import in_chat, load_tokenizer

        tokenizer, own = load_tokenizer(model), self._templates()
        return {
            **own,  # templates of columns that do not exist, to be reported as an error
            **{
                column: in_chat(tokenizer, default_question(column)) + own.get(column, default_template(column))
                for column in table.columns
            },
        }

    def _templates(self) -> dict[str, str]:
        parted = [text.partition("=") for text in self.template or ()]
        for column, equals, template in parted:
            if not (column and equals and template):
                raise UserError(
                    f"--template '{column}{equals}{template}': write COLUMN=TEMPLATE, as in "
                    '"badge={name} wears a {answer} badge".'
                )
        if twice := repeated(column for column, _, _ in parted):
            raise UserError(f"--template gives column '{twice}' twice. Give it once.")
        return {column: template for column, _, template in parted}


def _share(text: str | None) -> float:
    """The value of --hold-out, 0 for None; raises a UserError if it is not a share."""
    found = re.fullmatch(r"(\d{1,2}(?:\.\d+)?)%|(0?\.\d+)", text or "0%")
    share = float(found[1]) / 100 if found and found[1] else float(found[2]) if found else 0.0
    if found is None or (text and not 0 < share < 1):
        raise UserError(f"--hold-out '{text}' is not a share between 0 and 1, such as 20% or 0.2.")
    return share


@expanded
def audit(
    *,
    facts: Annotated[
        str,
        typer.Argument(
            metavar="FACTS",
            help="Table (csv, tsv, jsonl or parquet file, or datasets folder) or association (name or YAML file).",
        ),
    ],
    subject: SubjectOption = None,
    columns: ColumnsOption = None,
    model: Annotated[
        str | None, option("--model", help="Also query this untouched model.", autocompletion=o.model_names)
    ] = None,
    machine: Machine,
    as_csv: Annotated[bool, option("--csv", help="Print every link as csv.")] = False,
    as_json: o.JsonOption = False,
) -> None:
    """Show what your own facts may teach unasked.

    Nothing is trained. For each pair of columns: how well one predicts the other (Theil's U, corrected for chance), and
    for how many subjects a model may fill in the gap. The most serious risk comes first. With --model also: how
    strongly the model already links the columns (W-rank), which facts it knows, and which answers share a first token.
    """
    machine.begin()
    from ocr_eval.data.links import find_links
    from ocr_eval.data.pairs import PairAssociation

    if as_csv and (as_json or model is not None):
        raise UserError("--csv has the links alone, without what --model or --json add. Drop --csv, or give it alone.")
    association = _audited(facts, subject, columns)
    if isinstance(association, PairAssociation):
        if as_csv:
            raise UserError(f"--csv lists the links of a table, and '{facts}' is a single link. Give --json.")
        from ocr_eval.measures.untouched import sides_of, wired

        view = _untouched_view(model or o.DEFAULT_MODEL, machine)
        (found,) = wired(view, sides_of(association), {("fact", "entailment"): dict(association.pairs)})
        typer.echo(json.dumps(asdict(found), indent=2) if as_json else _wired_text(association.name, found))
        return
    links = find_links(association.facts)
    untouched = None
    if model is not None:
        from ocr_eval.measures.untouched import examine

        linked = links.risks or [link for link in links.all if link.is_linked]
        untouched = examine(_untouched_view(model, machine), association, linked)
    if as_json:
        asked = {} if untouched is None else {"untouched": asdict(untouched)}
        typer.echo(json.dumps({**_as_json(association.facts, links), **asked}, indent=2, ensure_ascii=False))
    elif as_csv:
        typer.echo(to_csv(_ROW, (_row(link).values() for link in links.all)), nl=False)
    else:
        typer.echo(_as_text(association.facts, links))
        typer.echo("" if untouched is None else _untouched_text(untouched), nl=untouched is not None)


def _audited(facts: str, subject: str | None, columns: str | None) -> FactsAssociation | PairAssociation:
    """The table to audit, as an association; or the named association, of a table or of pairs."""
    from ocr_eval.data.fact_table import read_facts
    from ocr_eval.data.facts import FactsAssociation, association_of
    from ocr_eval.data.pairs import PairAssociation

    if facts.endswith((".yaml", ".yml")) or not (looks_like_path(facts) or Path(facts).suffix or Path(facts).exists()):
        for flag, value in (("--subject", subject), ("--columns", columns)):
            if value is not None:
                raise UserError(f"{flag} selects from a table, but '{facts}' is an association. Drop it.")
        association = load_association(facts)
        if not isinstance(association, FactsAssociation | PairAssociation):
            raise UserError(f"'{association.name}' has neither pairs nor a table, so it has no links to audit.")
        return association
    return association_of(read_facts(expand(facts), subject, o.words("--columns", columns)), {}, facts, name="facts")


def _untouched_view(model: str, machine: Machine) -> View:
    from ocr_eval.execution.execute import open_view

    run = make_run_spec(load_model_spec(model), load_association("city-language"), {}, {}, 0)
    return open_view(run, None, machine.device)


def _wired_text(what: str, found: Wired) -> str:
    verdict = "already wired in" if found.w_rank < found.null / 2 else "not wired in: only examples can teach it"
    return f"{what}: W-rank {found.w_rank:.1f} ({found.null:.1f} by chance), {verdict}"


def _untouched_text(found: Untouched) -> str:
    lines = ["", "The untouched model"]
    lines += [f"  {_wired_text(f'{each.source} to {each.target}', each)}" for each in found.wired]
    lines += [
        f"  {each.column}: {each.share:.0%} of {each.asked} facts are known [{each.low:.0%}, {each.high:.0%}] "
        f"({each.highly} highly, {each.maybe} maybe, {each.weakly} weakly)"
        for each in found.known
    ]
    for column, groups in found.alike.items():
        same = "; ".join(" = ".join(words) for words in groups)
        lines.append(f"  {column}: same first token, so all tokens of these answers are scored ({same})")
    return "\n".join(lines)


_ROW = (
    *("source", "target", "u", "corrected_u", "p", "p_holm", "tables"),
    *("both", "decided", "alone", "orientation", "expected"),
)


def _row(link: Link) -> dict[str, Any]:
    row = {key: getattr(link, "corrected" if key == "corrected_u" else key) for key in _ROW}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def _as_json(table: FactTable, links: Links) -> dict[str, Any]:
    return {
        "subjects": len(table.subjects),
        "columns": {name: sum(v is not None for v in cells) for name, cells in table.columns.items()},
        "left_out": dict(links.left_out),
        "risks": [link.in_words() for link in links.risks],
        "links": [
            {**_row(link), "values": [{**asdict(v), "orientation": round(v.orientation, 4)} for v in link.values]}
            for link in links.all
        ],
    }


def _as_text(table: FactTable, links: Links) -> str:
    count = len(table.columns)
    lines = [f"{len(table.subjects):,} subjects ('{table.subject}') with {count} column{'s'[: count != 1]} of facts"]
    lines += [f"Skipped: '{name}', {reason}" for name, reason in links.left_out.items()]
    risks = [f"{i:2}. {link.in_words()}" for i, link in enumerate(links.risks, 1)]
    if not links.all:
        return "\n".join([*lines, "", _NO_LINK])
    lines += ["", *(["Risks, most serious first:", *risks] if risks else [_NO_RISK])]
    linked = [link for link in links.all if link.is_linked]
    header = ["from", "to", "corrected U", "p (Holm)", "both", "alone", "orientation", "expected"]
    rows = [
        [
            *(link.source, link.target, f"{link.corrected:.2f}", f"{link.p_holm:.2g}"),
            *(str(link.both), str(link.alone), f"{link.orientation:.2f}", f"{link.expected:.0f}"),
        ]
        for link in linked
    ]
    lines += ["", o.grid(header, rows)] if rows else []
    untested = links.untested
    others = len(links.all) - len(linked) - 2 * len(untested)
    if others:
        were = "1 other link was" if others == 1 else f"{others} other links were"
        lines.append(f"{were} not shown to be stronger than chance; --csv shows all.")
    if near := [f"{link.source} and {link.target} ({link.p:.2g})" for link in links.unclear]:
        more = f", and {len(near) - _MOST_SHOWN} more" * (len(near) > _MOST_SHOWN)
        lines.append(f"p is under 0.05 before Holm's correction for {', '.join(near[:_MOST_SHOWN])}{more}.")
    if untested:
        shown = [f"{link.source} and {link.target} ({link.corrected:.2f})" for link in untested[:_MOST_SHOWN]]
        more = f", and {len(untested) - len(shown)} more" * (len(untested) > len(shown))
        lines.append(
            f"{len(untested)} pairs of columns were not tested, because the table is too large, and may be risks: "
            f"{', '.join(shown)}{more} (corrected U). Select fewer with --columns."
        )
    return "\n".join(lines)


#: Most pairs of columns without a verdict that are listed.
_MOST_SHOWN = 5
_NO_RISK = "No risk: where one column predicts another beyond chance, no value is missing."
_NO_LINK = "No links: an audit compares two or more columns whose values several subjects share."


@expanded
def beliefs(
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run of 'finetune --facts'.")],
    output_dir: Annotated[
        Path | None, option("--output-dir", "-o", help="Folder for the files (default: the run's beliefs/).")
    ] = None,
    machine: Machine,
    as_json: o.JsonOption = False,
) -> None:
    """List what a model believes about facts missing from a table.

    For every missing value: what the model believes, how probable that is, whether it follows from the other columns,
    whether the model says it, and what the untouched model said. Writes beliefs.csv, unwarranted.csv, and
    corrections.jsonl, with statements against unwarranted beliefs, ready for training.
    """
    machine.begin()
    from ocr_eval.analysis import beliefs as found
    from ocr_eval.data.facts import FactsAssociation
    from ocr_eval.execution.execute import open_view
    from ocr_eval.measures.beliefs import Belief, answers, questions
    from ocr_eval.records.reopen import read_trained

    spec, folder = read_trained(run)
    association = spec.association
    if not isinstance(association, FactsAssociation):
        raise UserError(f"'{run}' learned the association '{association.name}'. Name a run of 'finetune --facts'.")
    taught = association.taught(spec.stream("data"))
    asked = questions(association, taught)
    output = output_dir or run / "beliefs"
    prepare_output(output)
    probes, over = [probe for _, _, probe in asked], folder.record().base_identity
    before = answers(open_view(spec, None, machine.device, over), probes)
    after = answers(open_view(spec, folder.learned, machine.device, over), probes)
    of = [
        Belief(probe.subject, cell, probe.prompt, values, *both)
        for (cell, values, probe), *both in zip(asked, after, before, strict=True)
    ]
    totals = found.totals(of, taught)
    files = {
        "beliefs.csv": found.to_csv(of),
        "unwarranted.csv": found.to_csv([each for each in of if each.is_unwarranted]),
        "corrections.jsonl": to_jsonl(found.corrections(of, association)),
        "beliefs.json": json.dumps(found.as_json(of, totals), indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        write_atomic(output / name, text)
    typer.echo(files["beliefs.json"] if as_json else "\n".join(each.in_words() for each in totals), nl=not as_json)
    say(f"Written to {output}: {', '.join(files)}. They contain names and values from your table.")
