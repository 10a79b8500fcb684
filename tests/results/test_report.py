"""Reports of runs that were never trained: folders written by the package's own writers."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from summaries import CONFIG, make_summary, write_run

from conftest import tiny
from engram import bench
from engram.bench import Progress
from engram.console import print_comparison
from engram.data.codecs import create_codec
from engram.errors import UserError
from engram.files import save_tensors
from engram.memory import Budget, ExemplarMemory
from engram.results import exemplar_report
from engram.results.comparison import comparison_table, markdown_table
from engram.results.formats import ABSENT
from engram.results.record import RunRecord
from engram.results.report import write_report

HOSTILE = '<script>alert("x")</script>&amp;\'"'


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


def gains_in(path: Path) -> tuple[list[str], list[str]]:
    """The subheadings and the numbers of a report's gains."""
    content = path.read_text(encoding="utf-8")
    part = content[content.index("<h2>Gains") : content.index("Accuracy as classes arrive")]
    return (
        re.findall(r"<h3>(.*?)</h3>", part),
        re.findall(r'<td class="number">(.*?)</td>', part),
    )


def test_gains_over_a_setting_are_of_pairs_of_runs(tmp_path: Path) -> None:
    for seed, (icarl, joint) in enumerate([(50.0, 62.0), (60.0, 70.0), (40.0, 51.0)]):
        write_run(tmp_path / f"icarl-{seed}", make_summary([90, icarl], seed=seed))
        write_run(tmp_path / f"joint-{seed}", make_summary([90, joint], method="joint", seed=seed))
    write_run(tmp_path / "alone", make_summary([90, 20.0], method="finetune", seed=1))
    write_run(tmp_path / "other", make_summary([90, 20.0], method="der", seed=7))
    assert "Gains" not in Page(write_report(tmp_path)).headings
    places, cells = gains_in(write_report(tmp_path, "ic"))
    assert places == ["toys/b0-inc2, test set: over icarl"]
    # 12, 10 and 11 points at the end: 11 ± 4.303 / √3; half of that on average.
    assert cells == [
        *("3", "<strong>+5.50 [+4.26, +6.74]</strong>", "<strong>+11.00 [+8.52, +13.48]</strong>"),
        *("1", "\N{MINUS SIGN}20.00", "\N{MINUS SIGN}40.00"),
    ]


def test_gains_are_paired_over_class_orders_and_on_every_stream(tmp_path: Path) -> None:
    """Where they are not clear, they are not bold."""
    for order, joint in (("seed1993", 60.0), ("mine:0,1,2,3", 40.0)):
        for images in ("test", "validation"):
            settings = {"order": order, "evaluate_on": images}
            name = f"{order[:4]}-{images}"
            write_run(tmp_path / f"icarl-{name}", make_summary([90, 50.0], **settings))
            whole = make_summary([90, joint], method="joint", **settings)
            write_run(tmp_path / f"joint-{name}", whole)
    places, cells = gains_in(write_report(tmp_path, "icarl"))
    assert [place.partition(",")[2] for place in places] == [
        " test set: over icarl",
        " validation images: over icarl",
    ]
    last = "+0.00 [\N{MINUS SIGN}127.06, +127.06]"
    assert cells == 2 * ["2", "+0.00 [\N{MINUS SIGN}63.53, +63.53]", last]


def test_gains_are_paired_within_a_precision_unless_it_is_what_differs(tmp_path: Path) -> None:
    for method, precision, last in (
        ("icarl", "fp32", 50),
        ("icarl", "bf16", 51),
        ("der", "bf16", 61),
    ):
        run = make_summary([90, last], method=method)
        run["config"]["precision"] = precision
        write_run(tmp_path / f"{method}-{precision}", run)
    _, cells = gains_in(write_report(tmp_path, "icarl · precision=fp32"))
    assert cells == ["1", "+0.50", "+1.00"]
    _, cells = gains_in(write_report(tmp_path, "icarl · precision=bf16"))
    assert cells == ["1", "+5.00", "+10.00", "1", "\N{MINUS SIGN}0.50", "\N{MINUS SIGN}1.00"]


def test_without_pairs_there_are_no_gains(tmp_path: Path) -> None:
    write_run(tmp_path / "icarl", make_summary(seed=0))
    write_run(tmp_path / "joint", make_summary(seed=1, method="joint"))
    path = write_report(tmp_path, "icarl")
    assert gains_in(path)[1] == []
    assert "No other setting has seed, class order and precision in common" in Page(path).text


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("nothing", r"^No setting begins with \"nothing\"\. There are: (icarl|joint); \w+\.$"),
        ("", r"^Several settings begin with \"\": (icarl; joint|joint; icarl)\.$"),
    ],
)
def test_a_setting_that_is_not_there_cannot_be_compared_with(
    tmp_path: Path, against: str, message: str
) -> None:
    for method in ("icarl", "joint"):
        write_run(tmp_path / method, make_summary(method=method))
    with pytest.raises(UserError, match=message):
        write_report(tmp_path, against)
    with pytest.raises(UserError, match="has one run"):
        write_report(tmp_path / "icarl", "icarl")


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


def test_exemplars_shown_are_those_after_the_last_task(tmp_path: Path) -> None:
    run = write_run(tmp_path, make_summary())
    model = run / "model"
    (model / "task-01").rename(model / "task-100")
    none_kept = ExemplarMemory(Budget("images", 0), create_codec("raw", (4, 4)))
    for name in ("task-99", "task-101.partial"):
        (model / name).mkdir()
        save_tensors(model / name / "memory.safetensors", *none_kept.state())
    assert len(Page(write_report(run)).named("img")) == 40


def test_a_single_task(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path, make_summary([80.0]))))
    assert "80.0 %" in page.texts
    assert "2 classes in 1 task (2)" in page.text


@pytest.mark.parametrize(
    ("measured", "multiply_adds", "latency"),
    [
        (
            {"multiply_adds": [70_000_000, 140_000_000], "latency_ms": [7.04, 12.96]},
            ["70.00 M", "140.00 M"],
            ["7.0", "13.0"],
        ),
        ({}, [ABSENT] * 2, [ABSENT] * 2),
    ],
)
def test_each_task_tells_what_classifying_an_image_takes(
    tmp_path: Path, measured: dict[str, Any], multiply_adds: list[str], latency: list[str]
) -> None:
    page = write_report(write_run(tmp_path, make_summary() | measured)).read_text()
    (tasks,) = re.findall(r"<h2[^>]*>Task by task</h2>.*?</table>", page, re.DOTALL)
    header = re.findall(r"<th scope=\"?col[^>]*>([^<]*)</th>", tasks)
    rows = [
        dict(zip(header, re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row), strict=True))
        for row in re.findall(r"<tr>(.*?)</tr>", tasks, re.DOTALL)[1:]
    ]
    assert [row["Task"] for row in rows] == ["1", "2"]
    assert [row["Multiply-adds an image"] for row in rows] == multiply_adds
    assert [row["One image, ms"] for row in rows] == latency
    assert [row["Exemplars"] for row in rows] == ["7", "8"]


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


@pytest.mark.parametrize("table", ["", "true class,a,b\n", "true class,a\nb,x\n"])
def test_a_damaged_confusion_table_is_named(tmp_path: Path, table: str) -> None:
    run = write_run(tmp_path, make_summary(), image_size=None)
    (run / "confusion.csv").write_text(table)
    with pytest.raises(UserError, match=r"confusion\.csv is damaged"):
        write_report(run)


def test_exemplars_of_the_last_task_stand_beside_their_originals(
    tmp_path: Path, silent: Progress
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
    tmp_path: Path, silent: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exemplar_report, "SHOWN_CLASSES", 4)
    config = replace(tiny("icarl", "digits/4,4", budget="24", order="given"), codec="jpeg:30")
    folder, _ = bench.run(config, tmp_path, silent)
    page = Page(write_report(folder))
    shown = {str(image["alt"]) for image in page.named("img")}
    assert {text[0] for text in shown} == {"0", "4", "7"}
    assert {text[0] for text in shown if "original" in text} == {"4", "7"}
    for count in json.loads((folder / "tasks/01.json").read_text())["exemplar_bytes_by_class"]:
        assert f"{count:,}" in page.texts


def test_what_a_method_tells_of_its_tasks_has_columns(tmp_path: Path, silent: Progress) -> None:
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
