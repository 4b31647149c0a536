"""Every command with a small whole call: what the suites of bad input, kills and faults go through.

A command that is not in this table fails ``test_fuzz.py``: whoever adds one states its call here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import typer.main

from ocr_eval.cli import variables
from ocr_eval.cli.app import app, run
from ocr_eval.common.yaml_files import shipped

SMALL = ("--n", "3", "--m-train", "2", "--m-test", "2")
TRAINED = (*SMALL, "--epochs", "2", "--quiet")
OF_FACTS = ("--hold-out", "20%", "--epochs", "2", "--quiet")
TOY = ("--n", "3", "--noise", "0", "--steps", "20", "--batch", "0")


@dataclass(frozen=True)
class Command:
    """A command and the arguments of a call that takes a second or two; ``{place}`` is one of the world's.

    Attributes:
        words: what calls it.
        arguments: of the call.
        writes: whether it writes below ``{out}``.
        refused: whether the call is refused by intent, for what it does takes minutes.
    """

    words: str
    arguments: tuple[str, ...] = ()
    writes: bool = False
    refused: bool = False

    def line(self, world: World) -> list[str]:
        """The command line in a world."""
        return [*self.words.split(), *(argument.format(**world.places) for argument in self.arguments)]


COMMANDS = (
    Command("finetune", ("{pairs}", "--model", "{tiny}", "-o", "{out}", *TRAINED), writes=True),
    Command(
        "sweep", ("--models", "{tiny}", "--assocs", "{pairs}", "-o", "{out}", "--seeds", "0,1", *TRAINED), writes=True
    ),
    Command("controls", ("{pairs}", "--model", "{tiny}", "-o", "{out}", "--seeds", "0", *TRAINED), writes=True),
    Command(
        "curve",
        ("{pairs}", "--model", "{tiny}", "-o", "{out}", "--seeds", "0", *TRAINED, "--m-train", "1,2"),
        writes=True,
    ),
    Command("score", ("{run}", "--quiet")),
    Command(
        "score",
        ("--data", "{data}", "--adapter", "{run}/adapter", "--model", "{tiny}", "--name", "mine", "-o", "{out}"),
        writes=True,
    ),
    Command("demo", ("--model", "{tiny}", "-o", "{out}"), writes=True),
    Command("status", ("{grid}",)),
    Command("table", ("{grid}",)),
    Command("figures", ("{grid}", "-o", "{out}"), writes=True),
    Command("compare", ("{grid}", "{grid}")),
    Command("scorecard", ("{grid}",)),
    Command("retention", ("{grid}", "--filter", "seed=9"), refused=True),
    Command("explain", ("{run}", "--measure", "ov-change", "--quiet")),
    Command("score", ("--data", "{data}", "--endpoint", "{server}", "--model", "my-model")),
    Command("audit", ("{facts}",)),
    Command("audit", ("{facts}", "--model", "{tiny}", "--quiet")),
    Command("finetune", ("--facts", "{facts}", *OF_FACTS, "--model", "{tiny}", "-o", "{out}"), writes=True),
    Command("beliefs", ("{told}", "-o", "{out}", "--quiet"), writes=True),
    Command("report", ("{grid}", "-o", "{out}/report.html"), writes=True),
    Command("data list"),
    Command("data show", ("{pairs}",)),
    Command("data candidates", ("{pairs}", "--model", "{tiny}", "--quiet")),
    Command("data export", ("{pairs}", "-o", "{out}", *SMALL), writes=True),
    Command("data export", ("{pairs}", "--format", "hub", "-o", "{out}", *SMALL), writes=True),
    Command("models list"),
    Command("models show", ("{tiny}",)),
    Command("models pull", ("{tiny}", "--quiet")),
    Command("models check", ("{tiny}", "--assoc", "{pairs}", "--quiet")),
    Command("models rehearse", ("{tiny}", "--assoc", "{pairs}", "--steps", "2", "--probes", "2", "--quiet")),
    *(Command(f"{door} list") for door in ("methods", "preventions", "measures")),
    Command("methods show", ("lora",)),
    Command("preventions show", ("scale-after",)),
    Command("measures show", ("known",)),
    Command("doctor"),
    Command("cache"),
    Command("toy train", (*TOY, "-o", "{out}/toy.json"), writes=True),
    Command("toy sweep", (*TOY, "--values", "2,3", "--seeds", "0", "--output", "{out}/toy.json"), writes=True),
    Command("toy check", ("--solver", "NONE"), refused=True),
    Command("toy open", ("--question", "nothing"), refused=True),
    Command("toy mitigate", ("--method", "nothing"), refused=True),
    Command("toy complete", ("--n", "0"), refused=True),
    Command("toy systems", ("--system", "nothing"), refused=True),
    Command("toy figures", ("--solver", "NONE", "--output", "{out}"), refused=True),
)
WRITING = [command for command in COMMANDS if command.writes]


@dataclass(frozen=True)
class World:
    """A folder with everything that the calls read: a model, an association, a file of flags, a sweep, a run of facts.

    Attributes:
        root: the folder.
        server: where completions are served; by default nowhere.
    """

    root: Path
    server: str = "http://127.0.0.1:9/v1"

    @property
    def places(self) -> dict[str, Path | str]:
        """What a call may name."""
        return {
            "tiny": self.root / "tiny.yaml",
            "pairs": self.root / "pairs.yaml",
            "flags": self.root / "flags.yaml",
            "facts": self.root / "facts.csv",
            "data": self.root / "data",
            "grid": self.root / "grid",
            "run": min(self.root.glob("grid/runs/*/*/*/seed0-*"), default=self.root / "grid"),
            "told": min(self.root.glob("told/runs/*/*/*/seed0-*"), default=self.root / "told"),
            "out": self.root / "out",
            "server": self.server,
        }

    def copy(self, to: Path) -> World:
        """Another of the same content, without any output."""
        shutil.copytree(self.root, to)
        return replace(self, root=to)

    def files(self) -> list[Path]:
        """Every file that a call may read, relative to the root."""
        return sorted(
            path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file() and path.suffix != ".lock"
        )


def make_world(root: Path, model: Path) -> World:
    """A world over a model's YAML and folder: of its four runs two are finished, one failed and one has begun.

    What the first was taught is exported, too; a fifth run, elsewhere, was taught a table of facts.
    """
    root.mkdir()
    text = model.read_text()
    (root / "tiny.yaml").write_text(text.replace(f"./{model.stem}", "./tiny"))
    shutil.copytree(model.with_suffix(""), root / "tiny")
    pairs = (shipped("templates") / "country-code.yaml").read_text()
    (root / "pairs.yaml").write_text(pairs.replace("name: country-code", "name: own-pairs"))
    (root / "flags.yaml").write_text("format: md\nfilter: [seed=0]\n")
    (root / "facts.csv").write_text("name,team,badge\n" + "".join(f"P{i},t{i % 2},{'rb'[i % 2]}\n" for i in range(8)))
    world = World(root)
    assert run(["data", "export", str(root / "pairs.yaml"), "-o", str(root / "data"), *SMALL]) == 0
    grid = ["--models", str(root / "tiny.yaml"), "--assocs", str(root / "pairs.yaml"), "-o", str(root / "grid")]
    assert run(["sweep", *grid, "--seeds", "0-3", *TRAINED]) == 0
    told = ["--facts", str(root / "facts.csv"), *OF_FACTS, "--model", str(root / "tiny.yaml"), "-o", str(root / "told")]
    assert run(["finetune", *told]) == 0
    for seed in (2, 3):
        (folder,) = root.glob(f"grid/runs/*/*/*/seed{seed}-*")
        for name in ("status.json", "result.json"):
            (folder / name).unlink()
    (folder.parent / next(folder.parent.glob("seed2-*")).name / "failure.json").write_text(
        json.dumps({"schema_version": 1, "reason": "The loss became NaN."})
    )
    return world


def of_the_program() -> Iterator[str]:
    """The words of every command that the program has."""
    for words, command in variables.commands(typer.main.get_command(app)):
        if not getattr(command, "commands", None):
            yield words.strip()


def parameters(words: str) -> list[str]:
    """The flags of a command."""
    found = {known.strip(): command for known, command in variables.commands(typer.main.get_command(app))}
    return [option for parameter in found[words].params for option in parameter.opts if option.startswith("--")]
