"""The part of a run's report that shows what its memory keeps, and a sample of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from engram.data.codecs import create_codec
from engram.data.images import ImageSet
from engram.errors import UserError
from engram.files import load_tensors
from engram.memory import Budget, ExemplarMemory
from engram.results.figures import SMALL, image_uri
from engram.results.formats import format_bytes, format_range
from engram.results.found import FoundRun, Summary
from engram.results.markup import (
    ClassNames,
    detail_list,
    number_cells,
    paragraph,
    section,
    table,
)
from engram.results.metrics import total_bytes
from engram.results.record import RunRecord

__all__ = ["exemplar_section"]

SHOWN_CLASSES, SHOWN_EXEMPLARS = 10, 10


def exemplar_section(run: FoundRun, classes: ClassNames) -> str:
    """What is kept, and a sample of it; empty where the run has no folder with a model.

    Raises:
        UserError: what exemplars were made of cannot be read.
    """
    record = RunRecord(run.folder) if run.folder else None
    if record is None or not (saved := record.learners()):
        return ""
    title = "Exemplars kept"
    try:
        memory = _read_memory(saved[max(saved)])
    except UserError as error:
        return section(title, paragraph(f"They cannot be shown here. {error}"))
    if not len(memory):
        return section(title, paragraph("None: this run keeps no exemplars."))
    sample = _Sample(memory, classes, None if memory.codec.lossless else record.originals())
    rows = "\n".join(map(sample.row, sample.labels))
    return section(
        title,
        paragraph(_explained(run.summary, sample)),
        _costs(run.summary, memory),
        _class_table(memory, classes),
        f'<dl class="exemplars">\n{rows}\n</dl>',
    )


def _read_memory(learner: Path) -> ExemplarMemory:
    """The memory in the folder of a learner.

    Raises:
        UserError: it cannot be read.
    """
    tensors, header = load_tensors(learner / "memory.safetensors", intact=False)
    codec = create_codec(header["codec"], tuple(header["image_size"]))
    memory = ExemplarMemory(Budget("all", 0), codec)
    memory.load_state(tensors, header)
    return memory


@dataclass(frozen=True, slots=True)
class _Sample:
    """Exemplars to be shown, beside what they were made of where that is known.

    Attributes:
        originals: of the last task's classes, best first; None where there is nothing to compare.
    """

    memory: ExemplarMemory
    classes: ClassNames
    originals: ImageSet | None

    @property
    def labels(self) -> list[int]:
        """Of the classes that are shown: some of all, and half of them with originals beside."""
        kept = [label for label, count in sorted(self.memory.counts.items()) if count]
        if self.originals is None or len(kept) <= SHOWN_CLASSES:
            return _spread(kept, SHOWN_CLASSES)
        compared = [label for label in self.originals.labels.unique().tolist() if label in kept]
        half = SHOWN_CLASSES // 2
        return sorted({*_spread(kept, half), *_spread(compared, half)})

    def row(self, label: int) -> str:
        """A class and its best exemplars."""
        kept = self._pictures(label, self.memory.of(label, SHOWN_EXEMPLARS), "exemplar")
        before = "" if self.originals is None else self._originals(label, self.originals)
        return f"<div><dt>{self.classes.label(label)}</dt><dd>{kept}</dd>{before}</div>"

    def _originals(self, label: int, originals: ImageSet) -> str:
        images = originals.of(label)
        if not len(images):
            return ""
        return f'<dd class="originals">{self._pictures(label, images, "original")}</dd>'

    def _pictures(self, label: int, images: ImageSet, kind: str) -> str:
        height, width = images.image_size
        small = ' class="pixelated"' if max(height, width) <= SMALL else ""
        name, kept = escape(self.classes.names[label]), self.memory.counts[label]
        return "".join(
            f'<img src="{image_uri(pixels)}" width="{width}" height="{height}"{small} '
            f'alt="{name}, {kind} {rank} of {kept}">'
            for rank, pixels in enumerate(images.pixels[: min(kept, SHOWN_EXEMPLARS)], start=1)
        )


def _spread(labels: Sequence[int], count: int) -> list[int]:
    """At most `count` of the labels, evenly from the first to the last."""
    if len(labels) <= count:
        return list(labels)
    return [labels[round(index * (len(labels) - 1) / (count - 1))] for index in range(count)]


def _explained(summary: Summary, sample: _Sample) -> str:
    """How much is kept, of which budget, and what is shown of it."""
    counts = sample.memory.counts
    least, most = min(counts.values()), max(counts.values())
    each = f"{most} of each" if least == most else f"{least} to {most} of each"
    given = summary["config"].get("budget", "unknown")
    limit = summary["memory_budget_bytes"]
    bound = "without a bound in bytes" if limit is None else f"of at most {format_bytes(limit)}"
    classes = len(sample.labels)
    shown = "All classes are" if classes == len(counts) else f"{classes} classes are"
    beside = (
        " Beneath those of the last task stands what they were made of; of earlier tasks nothing "
        "else is left."
        if sample.originals is not None
        else ""
    )
    return (
        f"{len(sample.memory):,} exemplars of {len(counts)} classes, {each}: "
        f"{format_bytes(sample.memory.nbytes)} {bound} (budget {given}, codec "
        f"{summary['codec']}). {shown} shown, each with its best-ranked exemplars, best "
        f"first.{beside}"
    )


def _costs(summary: Summary, memory: ExemplarMemory) -> str:
    """What an exemplar and a class take, and how true the codec is."""
    held = [size for size in memory.bytes_of_classes.values() if size]
    total = total_bytes(summary["memory_bytes"], summary["parameters"][-1])
    details = [
        ("Bytes an exemplar, on average", f"{sum(held) / len(memory):.0f}"),
        ("Bytes a class", format_range(held)),
        ("Bytes that all share", str(len(memory.codec.shared))),
        ("Exemplars and parameters", format_bytes(total)),
        (
            "Exemplars and all that learning on needs",
            format_bytes(summary["memory_bytes"] + summary["model_bytes"]),
        ),
    ]
    if memory.codec.lossless:
        details.append(("Fidelity", "every pixel kept"))
    elif noise := summary.get("exemplar_psnr"):
        details.append(("Peak signal-to-noise ratio of each class's best ten", f"{noise:.1f} dB"))
    if summary.get("exemplars_lost"):
        details.append(("Damaged exemplars left out", str(summary["exemplars_lost"])))
    return detail_list(details)


def _class_table(memory: ExemplarMemory, classes: ClassNames) -> str:
    """Exemplars and bytes of every class, folded away."""
    taken = memory.bytes_of_classes
    rows = [
        f"<tr><td>{classes.label(label)}</td>"
        f"{number_cells([f'{count:,}', f'{taken[label]:,}'])}</tr>"
        for label, count in sorted(memory.counts.items())
    ]
    content = table(("Class", "Exemplars", "Bytes"), rows, texts=(0,), kind="pairs")
    return f"<details><summary>Exemplars and bytes of every class</summary>{content}</details>"
