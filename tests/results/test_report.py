"""Reports of runs that were never trained: folders written by the package's own writers."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Silent, tiny
from engram import bench
from engram.config import as_mapping, from_mapping, load_preset
from engram.console import print_comparison
from engram.data.codecs import create_codec
from engram.data.images import ImageSet
from engram.data.stream import Task
from engram.errors import UserError
from engram.files import save_tensors
from engram.memory import Budget, ExemplarMemory
from engram.methods import method_class
from engram.results import metrics, record, run_report
from engram.results.comparison import in_words, start_of
from engram.results.record import RunRecord, environment
from engram.results.report import comparison_table, find_runs, markdown_table, write_report
from engram.runs import configured

HOSTILE = '<script>alert("x")</script>&amp;\'"'


def make_summary(
    accuracies: Sequence[float] = (90.0, 70.0),
    *,
    method: str = "icarl",
    preset: str = "demo",
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    order: str | None = None,
    evaluate_on: str = "test",
    budget: str = "2000",
    **changed: Any,
) -> dict[str, Any]:
    """A summary in which every task has the same accuracy, given after each task."""
    sizes = list(sizes or [2] * len(accuracies))
    order = order or f"seed{seed}"
    matrix = [[accuracy] * index for index, accuracy in enumerate(accuracies, start=1)]
    kind = method_class(method).Config
    settings = as_mapping(from_mapping(kind, load_preset(method, preset).settings, preset))
    config = {
        "method": method,
        "stream": "toys/b0-inc2",
        "preset": preset,
        "seed": seed,
        "order": order,
        "evaluate_on": evaluate_on,
        "budget": budget,
        "codec": "raw",
        "input_mean": "dataset",
        "image_size": None,
        "device": "cpu",
        "precision": "fp32",
        "settings": settings | changed,
    }
    curve = {
        "accuracy_per_task": list(accuracies),
        "average_incremental_accuracy": metrics.average(accuracies),
        "average_without_first_task": metrics.average(accuracies[1:]),
        "last_accuracy": accuracies[-1],
    }
    return {
        **{key: config[key] for key in ("method", "stream", "preset", "seed", "order")},
        "class_order": list(range(sum(sizes))),
        "task_sizes": sizes,
        "evaluate_on": evaluate_on,
        "codec": "raw",
        "classifier": "nme",
        **curve,
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": metrics.backward_transfer(matrix),
        "accuracy_by_classifier": {"nme": curve, "network": curve},
        "accuracy_matrix": matrix,
        "memory_budget_bytes": 6_144_000,
        "memory_bytes": 0 if budget == "0" else 6_144_000,
        "exemplars": 2000,
        "parameters": [466_000 + 100 * index for index in range(len(sizes))],
        "model_bytes": 10**6,
        "seconds": {"total": 75.0, "train": 60.0, "memory": 10.0, "evaluate": 5.0},
        "updates": 100,
        "images_per_second": 1000.0,
        "config": config,
        "environment": environment(),
    }


CONFIG = configured("icarl", "digits/2,2,2", "demo")


def write_run(
    folder: Path,
    summary: dict[str, Any],
    names: Sequence[str] | None = None,
    *,
    image_size: tuple[int, int] | None = (8, 8),
) -> Path:
    """A finished run's folder; without a memory where `image_size` is None."""
    sizes = summary["task_sizes"]
    classes = sum(sizes)
    record = RunRecord(folder)
    confusion = torch.eye(classes, dtype=torch.int64) * 90
    confusion[:, 0] += 10
    seconds = {"train": 3.0, "memory": 1.0}
    with record.open(CONFIG):
        for index in range(len(sizes)):
            record.add_task(index, {"exemplars": 7 + index, "seconds": seconds})
        record.finish(summary, names or [f"toy {n}" for n in range(classes)], confusion.tolist())
    if image_size is not None:
        memory = ExemplarMemory(Budget("images a class", 12), create_codec("raw", image_size))
        noise = torch.randint(
            256, (classes * 12, *image_size, 3), generator=torch.Generator().manual_seed(0)
        )
        images = ImageSet(noise.to(torch.uint8), torch.arange(classes).repeat_interleave(12))
        memory.update(Task(0, images, range(classes), range(classes)))
        model = folder / f"model/task-{len(sizes) - 1:02d}"
        model.mkdir(parents=True)
        save_tensors(model / "memory.safetensors", *memory.state())
    return folder


class Page(HTMLParser):
    """What a browser would make of a page: elements with attributes, texts, headings."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1] != "style":
            self.texts.append(data.strip())
        if self._open and self._open[-1] in ("h1", "h2"):
            self.headings.append(data)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def test_seeds_are_pooled_to_mean_and_sample_deviation() -> None:
    runs = [make_summary([90, last], seed=seed) for seed, last in enumerate([60.0, 66.0, 72.0])]
    [row] = comparison_table(runs)
    assert row.seeds == (0, 1, 2)
    assert row.last.mean == pytest.approx(66)
    assert row.last.deviation == pytest.approx(6)  # squares 36 + 0 + 36, over n - 1
    assert row.average.mean == pytest.approx((75 + 78 + 81) / 3)
    assert row.average.deviation == pytest.approx(3)
    assert row.average_without_first_task == row.last
    assert row.forgetting is not None
    assert row.forgetting.mean == pytest.approx(24)
    assert row.backward_transfer is not None
    assert row.backward_transfer.mean == pytest.approx(-24)
    assert "66.00 ± 6.00" in markdown_table(runs)


def test_the_terminal_shows_names_that_look_like_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_comparison([make_summary(classifier="[b]") | {"stream": "a[/x]/b0-inc2"}])
    found = capsys.readouterr().out
    assert "a[/x]/b0-inc2, test images" in found
    assert "classifier=[b]" in found


def test_a_single_seed_has_no_deviation() -> None:
    assert "±" not in markdown_table([make_summary()])


def test_a_single_task_has_no_forgetting() -> None:
    [row] = comparison_table([make_summary([80.0])])
    assert (row.forgetting, row.backward_transfer, row.average_without_first_task) == (None,) * 3
    assert row.average.mean == 80


def test_fixed_class_orders_are_not_pooled() -> None:
    runs = [make_summary(seed=seed, order=order) for seed in (0, 1) for order in ("given", "seed7")]
    rows = comparison_table(runs)
    assert sorted((row.orders, row.seeds) for row in rows) == [
        (("given",), (0, 1)),
        (("seed7",), (0, 1)),
    ]


def test_each_seeds_own_order_is_pooled_and_stated() -> None:
    runs = [make_summary(seed=seed) for seed in (2, 0)] + [make_summary(seed=1, order="given")]
    rows = {row.orders: row.seeds for row in comparison_table(runs)}
    assert rows == {("seed0", "seed2"): (0, 2), ("given",): (1,)}
    assert "| seed0, seed2 |" in markdown_table(runs)


def test_an_order_that_seeds_share_is_apart_from_each_seeds_own() -> None:
    runs = [make_summary(seed=0), make_summary(seed=1, order="seed0"), make_summary(seed=1)]
    rows = {row.orders: row.seeds for row in comparison_table(runs)}
    assert rows == {("seed0",): (0, 1), ("seed1",): (1,)}


def test_a_seed_that_ran_twice_counts_once() -> None:
    again = make_summary([90, 40])
    again["config"]["device"] = "cuda"
    rows = comparison_table([make_summary(), again])
    assert [len(row.seeds) for row in rows] == [1, 1]


@pytest.mark.parametrize(
    "other",
    [{"evaluate_on": "validation"}, {"budget": "1000"}, {"preset": "paper"}, {"temperature": 3.0}],
)
def test_what_differs_is_not_pooled(other: dict[str, Any]) -> None:
    runs = [make_summary(seed=0), make_summary(seed=1, **other)]
    assert [len(row.seeds) for row in comparison_table(runs)] == [1, 1]


def test_changed_settings_are_named() -> None:
    rows = comparison_table([make_summary(), make_summary(temperature=3.0)])
    assert sorted(row.changed for row in rows) == [(), ("temperature=3.0",)]


def test_changed_settings_of_an_unknown_preset_are_those_that_vary() -> None:
    runs = [make_summary(), make_summary(temperature=3.0)]
    for run in runs:
        run["preset"] = run["config"]["preset"] = "gone"
    assert {row.changed for row in comparison_table(runs)} == {
        ("temperature=2.0",),
        ("temperature=3.0",),
    }


def test_markdown_has_as_many_cells_in_every_line() -> None:
    table = markdown_table([make_summary(), make_summary(budget="a|b"), make_summary([50.0])])
    title, _, *lines = table.splitlines()
    assert title == "#### toys/b0-inc2, test images"
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert cells == [11] * 5 + [0] + [9] * 5


def test_markdown_parts_streams_and_images() -> None:
    runs = [make_summary(), make_summary(evaluate_on="validation")]
    titles = re.findall(r"^#### .*", markdown_table(runs), re.MULTILINE)
    assert titles == [f"#### toys/b0-inc2, {images} images" for images in ("test", "validation")]


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"backbone": "vit_tiny.augreg"}, "vit_tiny, pretrained (augreg)"),
        ({"backbone": "vit_tiny"}, "vit_tiny, pretrained (sha256 0123456789ab)"),
        ({"pretrained": {"backbone": "vit_tiny.augreg"}}, "vit_tiny, pretrained (augreg)"),
        (
            {"pretrained": {"backbone": "vit_tiny.augreg", "weights": "mine.npz"}},
            "vit_tiny, pretrained (sha256 0123456789ab)",
        ),
        ({}, "unknown, pretrained (sha256 0123456789ab)"),
    ],
)
def test_the_weights_that_a_run_started_from_are_named(
    settings: dict[str, Any], start: str
) -> None:
    summary = {"config": {"settings": settings}, "weights_sha256": "0123456789abcdef"}
    assert start_of(summary) == start
    assert start_of({"config": {"settings": settings}}) == "random weights"


def test_rows_that_start_from_the_same_weights_stand_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = make_summary([99, 98.0]) | {"weights_sha256": "0123456789abcdef"}
    other = make_summary([97, 60.0], method="joint") | {"weights_sha256": "0123456789abcdef"}
    scratch = [make_summary([90, 70.0]), make_summary([80, 60.0], method="finetune", budget="0")]
    runs = [pretrained, scratch[1], other, scratch[0]]
    rows = comparison_table(runs)
    weights = "resnet8, pretrained (sha256 0123456789ab)"
    assert [(row.method, row.start) for row in rows] == [
        ("icarl", "random weights"),
        ("finetune", "random weights"),
        ("icarl", weights),
        ("joint", weights),
    ]
    header, *_ = [line for line in markdown_table(runs).splitlines() if line.startswith("| ")]
    assert header.startswith("| Method | Preset | Starts from | Memory budget | Class order |")
    print_comparison(runs)
    assert "starts from" in capsys.readouterr().out
    for index, run in enumerate(runs):
        write_run(tmp_path / str(index), run, image_size=None)
    page = Page(write_report(tmp_path))
    assert "Starts from" in page.texts
    assert page.texts.count(weights) == 2
    assert "Lines that start from different weights do not compare methods" in page.text


def test_where_all_start_alike_no_column_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_summary(), make_summary(method="joint", budget="all")]
    print_comparison(runs)
    for index, run in enumerate(runs):
        write_run(tmp_path / str(index), run, image_size=None)
    page = Page(write_report(tmp_path))
    for text in (markdown_table(runs), capsys.readouterr().out, page.text):
        assert "starts from" not in text.lower()


def test_runs_of_different_weights_are_not_pooled() -> None:
    runs = [make_summary(seed=seed) | {"weights_sha256": str(seed) * 64} for seed in (0, 1)]
    assert [row.seeds for row in comparison_table(runs)] == [(0,), (1,)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("epochs=None", "updates=1693"), ["1,693 updates a task"]),
        (("epochs=2", "updates=None"), ["epochs=2"]),
        (("keep=None",), ["keep=None"]),
    ],
)
def test_of_epochs_and_updates_the_one_given_is_shown(
    changed: tuple[str, ...], words: list[str]
) -> None:
    assert in_words(changed) == words


def test_report_of_one_run_says_what_it_holds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_summary([90, 70, 62.5]))
    page = Page(write_report(run))
    assert page.headings[0] == "icarl on toys/b0-inc2"
    assert "Evaluated on the test set." in page.text
    assert "74.2 %" in page.texts  # (90 + 70 + 62.5) / 3
    assert "62.5 %" in page.texts
    assert "17.5 %" in page.texts  # forgotten: 27.5 of the first task, 7.5 of the second
    assert "10 of 100" in page.text
    assert len(page.named("img")) == 6 * 10
    assert page.named("img")[0]["alt"] == "toy 0, exemplar 1 of 12"
    assert "72 exemplars of 6 classes, 12 of each: 13.82 kB" in page.text
    assert "temperature: 2.0" in page.text


def test_validation_is_said_not_to_be_the_test_set(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_summary(evaluate_on="validation"))
    page = Page(write_report(run))
    assert "the test set was not looked at" in page.text
    assert "Evaluated on the test set" not in page.text


def test_a_hostile_class_name_stays_text(tmp_path: Path) -> None:
    names = [HOSTILE, "</td></table>", "b\nc", 'x" onerror="alert(1)']
    page = Page(write_report(write_run(tmp_path, make_summary(), names)))
    assert page.named("script") == []
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert HOSTILE in page.texts
    assert page.named("img")[0]["alt"] == f"{HOSTILE}, exemplar 1 of 12"


def test_what_a_run_s_files_hold_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_summary() | {"exemplars_lost": HOSTILE})
    task = json.loads((run / "tasks/00.json").read_text())
    (run / "tasks/00.json").write_text(json.dumps(task | {"exemplars": HOSTILE}))
    page = Page(write_report(run))
    assert page.named("script") == []
    assert page.texts.count(HOSTILE) == 2


@pytest.mark.parametrize("several", [False, True])
def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path, several: bool) -> None:
    write_run(tmp_path / "a", make_summary())
    if several:
        write_run(tmp_path / "b", make_summary(method="joint", budget="all"))
    page = Page(write_report(tmp_path))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    (policy,) = [meta["content"] for meta in page.named("meta") if "http-equiv" in meta]
    for rule in ("default-src 'none'", "base-uri 'none'", "form-action 'none'"):
        assert rule in str(policy).split("; ")
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "xlink:href", "data")
    ]
    assert addresses
    assert all(value and value.startswith(("data:image/", "#")) for value in addresses)
    style = (tmp_path / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_summary())
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_without_a_memory_or_a_model(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path, make_summary(budget="0"), image_size=None)))
    assert "Exemplars kept" not in page.headings
    assert "Confusion after the last task" in page.headings


def test_an_empty_memory_is_said_to_be_empty(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_summary(budget="0"), image_size=None)
    memory = ExemplarMemory(Budget("images", 0), create_codec("raw", (4, 4)))
    (run / "model/task-01").mkdir(parents=True)
    save_tensors(run / "model/task-01/memory.safetensors", *memory.state())
    page = Page(write_report(run))
    assert "None: this run keeps no exemplars." in page.texts
    assert page.named("img") == []


def test_a_single_task(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path, make_summary([80.0]))))
    assert "80.0 %" in page.texts
    assert "2 classes in 1 task (2)" in page.text


def test_a_hundred_classes_of_photographs_stay_small(tmp_path: Path) -> None:
    summary = make_summary([80.0, *range(75, 65, -1)], sizes=[50, *[5] * 10])
    run = write_run(tmp_path, summary, image_size=(160, 120))
    path = write_report(run)
    assert path.stat().st_size < 1_500_000
    assert len(Page(path).named("img")) == 100


def test_every_confused_cell_is_drawn(tmp_path: Path) -> None:
    """Cells of the picture, added up by heat level, against the counts."""
    sizes = [10, 10, 10]
    page = Page(write_report(write_run(tmp_path, make_summary([90, 80, 70.0], sizes=sizes))))
    areas = {
        str(attributes["class"]): sum(map(int, re.findall(r"h(\d+)v", str(attributes["d"]))))
        for attributes in page.named("path")
        if re.fullmatch(r"h\d", str(attributes.get("class")))
    }
    # 90 % on the diagonal, but 100 for the first class; 10 % of all others go to the first.
    assert areas == {"h9": 30, "h3": 29, "h0": 900 - 59}


def test_a_copy_of_a_summary_is_enough(tmp_path: Path) -> None:
    (tmp_path / "icarl").mkdir()
    copy = tmp_path / "icarl/toys.json"
    copy.write_text(json.dumps(make_summary()))
    page = Page(write_report(tmp_path))
    assert page.headings[0] == "icarl on toys/b0-inc2"
    assert "Confusion after the last task" not in page.headings


def test_a_run_and_its_copy_are_one(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a", make_summary())
    (tmp_path / "copy.json").write_text(json.dumps(make_summary()))
    findings = find_runs(tmp_path)
    assert [run.name for run in findings.runs] == ["a"]
    assert findings.left_out == ("copy.json is the same run as runs/a/summary.json.",)


def test_many_runs_are_compared(tmp_path: Path) -> None:
    for seed, last in enumerate([60.0, 70.0]):
        write_run(tmp_path / f"icarl{seed}", make_summary([90, last], seed=seed))
    write_run(tmp_path / "floor", make_summary([90, 20], method="finetune", budget="0"))
    write_run(tmp_path / "ceiling", make_summary([95, 92], method="joint", budget="all"))
    write_run(tmp_path / "held-out", make_summary([90, 71], evaluate_on="validation"))
    (tmp_path / "notes.json").write_text('{"some": "thing"}')
    with RunRecord(tmp_path / "begun").open(CONFIG):
        pass
    page = Page(write_report(tmp_path))
    assert page.headings[1:] == ["Comparison", "Accuracy as classes arrive", "Runs", "Left out"]
    charts = [svg for svg in page.named("svg") if "chart" in str(svg["class"])]
    assert len(charts) == 2 * 2  # test and validation, each for wide and narrow screens
    groups = [str(group.get("class")) for group in page.named("g")]
    assert [groups.count(kind) for kind in ("ceiling", "series-1", "floor")] == [2, 4, 2]
    bands = [str(path["class"]) for path in page.named("path") if "band" in str(path.get("class"))]
    assert bands == ["band series-1"] * 2
    targets = {attributes["href"] for attributes in page.named("a")}
    assert targets == {f"#{article['id']}" for article in page.named("article")}
    assert "notes.json is not the summary of a run." in page.texts
    assert any(text.startswith("begun has not finished.") for text in page.texts)


def test_the_curve_is_drawn_where_the_numbers_are(tmp_path: Path) -> None:
    """Ticks and points agree: 80 % lies at the height of the tick that says 80."""
    accuracies = [100.0, 80.0, 60.0]
    path = write_report(write_run(tmp_path, make_summary(accuracies), image_size=None))
    chart = re.search(r'<svg class="chart wide".*?</svg>', path.read_text(), re.DOTALL)
    assert chart is not None
    ticks = re.findall(r'<text class="tick end" x="[^"]*" y="([\d.]+)">(\d+)<', chart[0])
    heights = {float(value): float(y) - 4 for y, value in ticks}
    assert heights[100] < heights[60]  # upwards is less in a picture
    curve = re.search(r'<g class="series-1"><path class="line" d="M([^"]*)"', chart[0])
    assert curve is not None
    points = [tuple(map(float, point.split())) for point in curve[1].split("L")]
    assert [y for _, y in points] == pytest.approx([heights[value] for value in accuracies])
    places = re.findall(r'<text class="tick middle" x="([\d.]+)" y="[^"]*">(\d+)<', chart[0])
    assert [int(value) for _, value in places] == list(accumulate([2, 2, 2]))
    assert [x for x, _ in points] == pytest.approx([float(x) for x, _ in places])


def test_an_empty_folder_tells_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No finished run in .* summary\.json .* engram bench"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        write_report(tmp_path / "nowhere")


def test_an_unfinished_run_is_no_run(tmp_path: Path) -> None:
    with RunRecord(tmp_path / "begun").open(CONFIG):
        pass
    for folder in (tmp_path, tmp_path / "begun"):
        with pytest.raises(UserError, match="begun has not finished"):
            write_report(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy_matrix": [[90.0]]}, "accuracy_matrix does not have 2 rows"),
        ({"accuracy_matrix": [[90.0], [70.0]]}, "lower triangle"),
        ({"seed": None}, "seed is missing"),
        ({"config": {}}, r"config\.settings"),
        ({"classifier": "other"}, "lacks other"),
        ({"parameters": [1]}, "parameters is not a list of 2 numbers"),
        ({"latency_ms": ["fast", "slow"]}, "latency_ms is not a list of 2 numbers"),
        ({"measures": [{}, {"extractors": "two"}]}, "measures is not a list of 2 mappings"),
    ],
)
def test_a_damaged_summary_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run = write_run(tmp_path, make_summary(), image_size=None)
    (run / "summary.json").write_text(json.dumps(make_summary() | change))
    with pytest.raises(UserError, match=rf"summary\.json is damaged: .*{message}"):
        write_report(run)


def test_a_summary_cut_short_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_summary(), image_size=None)
    text = (run / "summary.json").read_text()
    (run / "summary.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"summary\.json is damaged: it cannot be read"):
        write_report(run)


@pytest.mark.parametrize("table", ["", "true class,a,b\n", "true class,a\nb,x\n"])
def test_a_damaged_confusion_table_is_named(tmp_path: Path, table: str) -> None:
    run = write_run(tmp_path, make_summary(), image_size=None)
    (run / "confusion.csv").write_text(table)
    with pytest.raises(UserError, match=r"confusion\.csv is damaged"):
        write_report(run)


def test_a_knob_that_is_newer_than_a_run_does_not_set_it_apart() -> None:
    old, new = make_summary(seed=0), make_summary(seed=1)
    new["config"]["infer_through_codec"] = False
    new["config"]["settings"]["exemplar_targets"] = "soft"
    (row,) = comparison_table([old, new])
    assert row.seeds == (0, 1)
    new["config"]["settings"]["exemplar_targets"] = "label"
    assert len(comparison_table([old, new])) == 2


def test_exemplars_of_the_last_task_stand_beside_their_originals(
    tmp_path: Path, silent: Silent
) -> None:
    config = replace(tiny("icarl", "digits/2,2", budget="12", order="given"), codec="jpeg:30")
    folder, summary = bench.run(config, tmp_path, silent)
    page = Page(write_report(folder))
    pictures = Counter(str(image["alt"]).split(" of ")[0] for image in page.named("img"))
    assert pictures["0, exemplar 3"] == pictures["3, exemplar 3"] == 1
    assert pictures["3, original 3"] == 1
    assert pictures["0, original 3"] == 0, "originals of an earlier task are still there"
    assert f"{summary['exemplar_psnr']:.1f} dB" in page.texts
    assert 15 < summary["exemplar_psnr"] < 45
    assert summary["total_bytes"] == summary["memory_bytes"] + 4 * summary["parameters"][-1]
    task = json.loads((folder / "tasks/01.json").read_text())
    assert task["exemplars_by_class"] == [3, 3, 3, 3]
    assert sum(task["exemplar_bytes_by_class"]) + task["shared_bytes"] == task["memory_bytes"]


def test_of_many_classes_half_of_those_shown_have_their_originals_beside(
    tmp_path: Path, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_report, "SHOWN_CLASSES", 4)
    config = replace(tiny("icarl", "digits/4,4", budget="24", order="given"), codec="jpeg:30")
    folder, _ = bench.run(config, tmp_path, silent)
    page = Page(write_report(folder))
    shown = {str(image["alt"]) for image in page.named("img")}
    assert {text[0] for text in shown} == {"0", "4", "7"}
    assert {text[0] for text in shown if "original" in text} == {"4", "7"}
    for count in json.loads((folder / "tasks/01.json").read_text())["exemplar_bytes_by_class"]:
        assert f"{count:,}" in page.texts


def test_what_a_method_tells_of_its_tasks_has_columns(tmp_path: Path, silent: Silent) -> None:
    """So that it shows in which tasks only the classifier of a bounded network has learnt."""
    config = tiny("der, bounded to one extractor")
    with pytest.warns(UserWarning, match="To go on growing, begin anew with more"):
        folder, summary = bench.run(config, tmp_path, silent)
    first, second = summary["measures"]
    assert set(first) == {"extractors", "share left by masks", "share kept"}
    assert second == {"extractors": 1}, "nothing was cut"
    page = Page(write_report(folder))
    assert "Extractors" in page.texts
    assert f"{first['share kept']:.3f}" in page.texts
    other, _ = bench.run(tiny("icarl"), tmp_path, silent)
    assert "Extractors" not in Page(write_report(other)).texts


def test_a_checkout_of_something_else_is_no_commit_of_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lib" / "engram" / "results"
    package.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git[:3], "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "theirs"], check=True)
    monkeypatch.setattr(record, "__file__", str(package / "record.py"))
    assert environment()["commit"] is None
    (tmp_path / "src" / "engram" / "results").mkdir(parents=True)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "src/engram/results/record.py"))
    assert environment()["commit"]
