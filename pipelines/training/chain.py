"""Train every bundled model that paints, in order, from pictures to a profile; each is kept only where it is better.

    packshot train mini --hours 8                  go on from the bundled models
    packshot train mini --hours 8 --fresh          from nothing: a new autoencoder, and all that stands on it
    packshot train mini --hours 0.5 --device cuda --dtype bfloat16 --install

The work folder holds all that a killed chain needs to go on: `chain.json` says which stages are done, every stage has
its checkpoint, and `before/` the part as it was before its stage. The same command goes on; with more hours, a chain
that is done begins another round from what it made. `index.html` there shows loss curves, samples and exams.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

from pipelines.errors import IntegrityError, UsageError
from pipelines.models.profile import PROFILES, Profile, load_profile, lock, verify, with_digests
from pipelines.training.__main__ import trainer
from pipelines.training.card import machine
from pipelines.training.exams import judge
from pipelines.training.loop import PROFILE, ROOT, TrainOptions

NAME = "mini"


@dataclasses.dataclass(frozen=True, slots=True)
class ChainStage:
    """One part's training: its share of the hours, the other parts that it writes, and the side in px that it is
    trained at where it begins from a model that is there (None: the trainer's own sizes)."""

    part: str
    share: float
    also: tuple[str, ...] = ()
    going_on: int | None = None

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts that it writes, its own first."""
        return (self.part, *self.also)


STAGES = (
    ChainStage("autoencoder", 0.14),
    ChainStage("unet", 0.36, also=("clip", "scheduler"), going_on=256),
    ChainStage("clip", 0.04),
    ChainStage("brushnet_random", 0.12, going_on=256),
    ChainStage("brushnet_salient", 0.05, going_on=256),
    ChainStage("brushnet", 0.06, going_on=256),
    ChainStage("brushnet_control", 0.11, going_on=256),
    ChainStage("controlnet_canny", 0.04),
    ChainStage("unet_inpaint9", 0.02),
    ChainStage("controlnet_inpaint", 0.02),
    ChainStage("lora_oak_window", 0.02),
    ChainStage("base_high_key", 0.02),
)
"""In the order in which each stands on those before it; the shares add up to one."""


@dataclasses.dataclass(slots=True)
class Progress:
    """What became of a stage in this round: "waiting", "training" or "done".

    Attributes:
        hours, samples: It trained for.
        before, after: Error in the exam of the part that was there (None: none was) and of the trained one.
        kept: Whether the trained one is in the profile.
    """

    state: str = "waiting"
    hours: float = 0.0
    samples: int = 0
    before: float | None = None
    after: float | None = None
    kept: bool = True


@dataclasses.dataclass(slots=True)
class Round:
    """One pass through the chain: its hours, whether it began from nothing, and each stage's progress by part."""

    hours: float
    fresh: bool
    stages: dict[str, Progress]

    @classmethod
    def begin(cls, hours: float, fresh: bool) -> Round:
        """A round in which nothing was done."""
        return cls(hours, fresh, {stage.part: Progress() for stage in STAGES})

    @property
    def done(self) -> bool:
        """Whether every stage is."""
        return all(progress.state == "done" for progress in self.stages.values())


@dataclasses.dataclass(slots=True)
class Chain:
    """The chain of a work folder. `options.out` is the profile's folder of parts, beside it is its YAML."""

    options: TrainOptions
    rounds: list[Round]

    @classmethod
    def open(cls, options: TrainOptions, hours: float, fresh: bool) -> Chain:
        """Read what was done in the work folder, or begin there.

        Raises UsageError where all these hours were spent already, or where the chain there began otherwise.
        """
        chain = cls(options, [])
        if chain._file.exists():
            chain.rounds = [_round(stored) for stored in json.loads(chain._file.read_text(encoding="utf-8"))]
        if not chain.rounds:
            chain.rounds = [Round.begin(hours, fresh)]
        elif chain.rounds[0].fresh != fresh:
            began = "from nothing" if chain.rounds[0].fresh else "from the bundled models"
            raise UsageError(f"{options.work}: the chain there began {began}; name another --work")
        spent = sum(one.hours for one in chain.rounds[:-1])
        if not chain.rounds[-1].done:
            chain.rounds[-1].hours = max(hours - spent, 0.0)
        elif hours > spent + chain.rounds[-1].hours + 1e-6:
            chain._put_checkpoints_aside()
            chain.rounds.append(Round.begin(hours - spent - chain.rounds[-1].hours, fresh=False))
        return chain

    def run(self) -> Profile:
        """Train what is left, and return the finished profile.

        Raises IntegrityError where a part of it is not as it should be.
        """
        self._lay_out()
        for stage in STAGES:
            if self.rounds[-1].stages[stage.part].state != "done":
                self._train(stage)
        return self._finish()

    def _lay_out(self) -> None:
        """Fill the profile's folder with the bundled parts; a fresh chain's own parts are left out."""
        if self.options.out.exists():
            return
        unfinished = self.options.out.with_name(self.options.out.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        own = {part for stage in STAGES for part in stage.writes} if self.rounds[0].fresh else set()
        shutil.copytree(PROFILE, unfinished, ignore=lambda folder, names: [n for n in names if n in own])
        unfinished.rename(self.options.out)

    def _train(self, stage: ChainStage) -> None:
        round_, progress = self.rounds[-1], self.rounds[-1].stages[stage.part]
        if progress.state == "waiting":
            self._keep(stage)
            progress.state = "training"
            self._save()
        else:
            self._restore(stage)  # what a killed export left is no model; the checkpoint holds all that was learnt
        out = self.options.out / stage.part
        going_on = (out / "CARD.md").exists()
        options = dataclasses.replace(
            self.options,
            part=stage.part,
            minutes=round_.hours * 60 * stage.share,
            size=stage.going_on if going_on else None,
        )
        trainer(stage.part)(options)
        progress.hours, progress.samples = self._spent(stage)
        progress.after = judge(stage.part, self.options, out)
        before = self._before / stage.part
        # beside a UNet or an autoencoder that changed, the earlier model is asked again
        progress.before = judge(stage.part, self.options, before) if going_on else None
        progress.kept = progress.before is None or progress.after <= progress.before
        if not progress.kept:
            self._restore(stage)
        else:
            note = _note(progress, self.options)
            _write_note(out / "CARD.md", note, earlier=before / "CARD.md" if going_on else None)
        progress.state = "done"
        self._save()

    @property
    def _file(self) -> Path:
        return self.options.work / "chain.json"

    @property
    def _before(self) -> Path:
        return self.options.work / "before"

    def _keep(self, stage: ChainStage) -> None:
        """Copy the parts that a stage will write, as they are."""
        shutil.rmtree(self._before, ignore_errors=True)
        self._before.mkdir(parents=True)
        for part in stage.writes:
            if (self.options.out / part).exists():
                shutil.copytree(self.options.out / part, self._before / part)

    def _restore(self, stage: ChainStage) -> None:
        """Put back the parts that a stage writes as they were before it, or nothing where there was nothing."""
        for part in stage.writes:
            shutil.rmtree(self.options.out / part, ignore_errors=True)
            if (self._before / part).exists():
                shutil.copytree(self._before / part, self.options.out / part)

    def _spent(self, stage: ChainStage) -> tuple[float, int]:
        """Hours and samples of a stage in this round, over all its sizes."""
        stored = [json.loads(file.read_text(encoding="utf-8")) for file in self._of(stage, "figures.json")]
        return sum(one["minutes"] for one in stored) / 60, sum(one["samples"] for one in stored)

    def _of(self, stage: ChainStage, name: str) -> list[Path]:
        """The files called `name` in the work folders of a stage: one for each size that it is trained at."""
        pattern = re.compile(rf"{stage.part}(_\d+|_decoder)?")
        found = self.options.work.glob(f"{stage.part}*/{name}")
        return sorted(file for file in found if pattern.fullmatch(file.parent.name))

    def _put_checkpoints_aside(self) -> None:
        """A further round begins from what was exported."""
        for checkpoint in self.options.work.glob("*/checkpoint.pt"):
            checkpoint.unlink()
            checkpoint.with_name("figures.json").unlink(missing_ok=True)

    def _save(self) -> None:
        self.options.work.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps([dataclasses.asdict(one) for one in self.rounds], indent=1), encoding="utf-8")
        temporary.replace(self._file)
        (self.options.work / "index.html").write_text(self.page(), encoding="utf-8")

    def _finish(self) -> Profile:
        """Write the profile's YAML, with the digests of the parts that are there, and check all of them."""
        bundled = load_profile(NAME, promoted=False)
        parts = tuple(
            dataclasses.replace(part, path=self.options.out / part.path.relative_to(PROFILE)) for part in bundled.parts
        )
        digests = {part.name: part.digest() for part in parts}
        locked = {part.name: part.configuration_digests() for part in parts}
        text = with_digests((PROFILES / f"{NAME}.yaml").read_text(encoding="utf-8"), digests, locked)
        self.options.out.with_suffix(".yaml").write_text(text, encoding="utf-8")
        pinned = tuple(
            dataclasses.replace(
                part,
                ref=dataclasses.replace(part.ref, revision=digests[part.name][:12], sha256=digests[part.name]),
                locked=locked[part.name],
            )
            for part in parts
        )
        profile = dataclasses.replace(bundled, parts=pinned)
        if problems := [f"{check.name}: {check.problem}" for check in verify(profile) if check.problem]:
            raise IntegrityError("; ".join(problems))
        return profile

    def page(self) -> str:
        """The page of the last round: a table of the stages, then every loss curve and grid of samples."""
        round_ = self.rounds[-1]
        rows, shown = [], []
        for stage in STAGES:
            progress = round_.stages[stage.part]
            verdict = {True: "kept", False: "the earlier one was better"}[progress.kept]
            cells = [
                stage.part,
                progress.state,
                f"{round_.hours * stage.share:.2f}",
                f"{progress.hours:.2f}",
                f"{progress.samples:,}",
                "–" if progress.before is None else f"{progress.before:.4f}",
                "–" if progress.after is None else f"{progress.after:.4f}",
                verdict if progress.state == "done" else "",
            ]
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
            for picture in (*self._of(stage, "loss.png"), *self._of(stage, "samples.png")):
                where = html.escape(str(picture.relative_to(self.options.work)))
                shown.append(f'<figure><img src="{where}" alt=""><figcaption>{where}</figcaption></figure>')
        heads = [
            "stage",
            "state",
            "hours planned",
            "hours trained",
            "samples",
            "error before",
            "error after",
            "verdict",
        ]
        head = "".join(f"<th>{cell}</th>" for cell in heads)
        title = f"{NAME}: round {len(self.rounds)}, {round_.hours:g} hours on {machine(self.options.device)}"
        return PAGE.format(
            title=html.escape(title), head=head, rows="\n".join(rows), shown="\n".join(shown), style=STYLE
        )


STYLE = (
    "body{font:15px/1.5 system-ui;margin:2rem;max-width:80rem}table{border-collapse:collapse}"
    "td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child"
    "{text-align:left}figure{margin:1.5rem 0}img{max-width:100%}"
)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{style}</style>
<h1>{title}</h1>
<p>Errors are those of the frozen exams on held-out shots: less is better.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table>
{shown}
</html>
"""


def _round(stored: dict[str, object]) -> Round:
    stages = stored["stages"]
    assert isinstance(stages, dict)
    return Round(
        float(str(stored["hours"])), bool(stored["fresh"]), {part: Progress(**one) for part, one in stages.items()}
    )


NOTE = re.compile(r"- \*\*Training\*\*: ([\d.]+) hours, ([\d,]+) samples on .*\n")


def _note(progress: Progress, options: TrainOptions) -> tuple[float, int, str]:
    exam = f"error in the exam {progress.after:.4f}" if progress.after is not None else ""
    if progress.before is not None:
        exam += f", {progress.before:.4f} before"
    return progress.hours, progress.samples, f"{machine(options.device)}; {exam}."


def _write_note(card: Path, note: tuple[float, int, str], earlier: Path | None) -> None:
    """Say on the card how long, on how many samples, on which machine the part was trained, rounds before included."""
    hours, samples, rest = note
    if earlier is not None and (said := NOTE.search(earlier.read_text(encoding="utf-8"))):
        hours, samples = hours + float(said[1]), samples + int(said[2].replace(",", ""))
    text = NOTE.sub("", card.read_text(encoding="utf-8"))
    line = f"- **Training**: {hours:.2f} hours, {samples:,} samples on {rest}\n"
    card.write_text(text.replace("- **Licence**", line + "- **Licence**", 1), encoding="utf-8")


def install(profile: Profile) -> list[str]:
    """Put the parts of the finished `profile` into the package and lock them; returns the parts that changed."""
    for stage in STAGES:
        for part in stage.writes:
            source = profile.part(part).path
            shutil.rmtree(PROFILE / part, ignore_errors=True)
            shutil.copytree(source, PROFILE / part)
    return lock(load_profile(NAME, promoted=False))


def main(
    hours: Annotated[float, typer.Option(help="Training time of the whole chain, over kills and resumes.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="From nothing, not from the bundled models.")] = False,
    device: str = "cpu",
    dtype: Annotated[str, typer.Option(help="Autocast type: float32 or bfloat16.")] = "float32",
    checkpoint_seconds: Annotated[
        float | None, typer.Option(help="How often a checkpoint is written; each trainer's own rhythm by default.")
    ] = None,
    data: Path = ROOT / ".." / "shared" / "training",
    out: Annotated[Path | None, typer.Option(help="Folder of the profile; WORK/profile by default.")] = None,
    work: Path = ROOT / "build" / "training" / "chain",
    installing: Annotated[bool, typer.Option("--install", help="Then put the parts into the package.")] = False,
) -> None:
    """Train the whole chain of the bundled models in order, and keep of each part the better one.

    Where it is killed, the same command goes on. `WORK/index.html` shows how far it is.
    """
    if hours <= 0:
        raise UsageError(f"--hours {hours:g}: must be more than nothing")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: there is no GPU that this PyTorch can use")
    options = TrainOptions(
        NAME,
        device=device,
        dtype=dtype,
        data=data,
        out=(out or work / "profile") / NAME,
        work=work,
        checkpoint_seconds=checkpoint_seconds,
    )
    profile = Chain.open(options, hours, fresh).run()
    typer.echo(f"{options.out.with_suffix('.yaml')}: {len(profile.parts)} parts; see {work / 'index.html'}")
    if installing:
        typer.echo(f"installed: {', '.join(install(profile)) or 'nothing changed'}")
