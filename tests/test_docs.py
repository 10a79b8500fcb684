"""The documentation: generated tables are those of results/, and the commands it names exist."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tyro

from engram.cli import COMMANDS
from engram.config import as_mapping, load_preset, presets_of
from engram.methods import METHODS
from engram.methods.icarl import ICaRL
from engram.results.comparison import ComparisonRow, comparison_table
from engram.results.formats import ABSENT
from engram.results.found import find_runs
from engram.runs import preset_settings

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "results").rglob("*.json"))


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_show_what_results_holds(generate: types.ModuleType) -> None:
    measured = generate.committed()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        written = generate.filled(path, measured)
        assert path.read_text() == written, f"{path}: run make docs"


def test_figures_show_what_results_holds(
    generate: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = generate.committed()
    assert generate.figures.outdated(ROOT / "docs" / "figures", measured) == []
    study = [
        study_run(preset, codec, budget)
        for preset in ("quick", "best-quick")
        for codec in ("float16", "float32")
        for budget in ("6144000B", "24576000B")
    ]
    drawn = ["float16", "bytes by network", "bytes by nme"]
    assert generate.figures.outdated(tmp_path, study) == drawn
    for name in drawn:
        generate.figures.draw(tmp_path, name, study)
    assert generate.figures.outdated(tmp_path, study) == []
    assert generate.memory_study.by_memory(study) == study[4:]
    other = study_run("best-quick", "raw", "6144000B")
    other["config"]["precision"] = "bf16"
    assert generate.memory_study.by_memory([other]) == [], "it compares in one precision"
    assert "float32" in (tmp_path / "float16.svg").read_text()
    page = tmp_path / "page.md"
    page.write_text("<!-- bytes by nme -->\n<!-- end -->\n<!-- modules -->\n<!-- end -->\n")
    monkeypatch.setattr(generate, "FIGURES", tmp_path / "figures")
    assert "](figures/bytes-by-nme.svg)\n<!-- end -->" in generate.filled(page, study)
    modules = "experiments/lae_study/modules.yaml --publish results` (ten minutes a run"
    assert f"_Not measured yet: `engram bench --grid {modules}" in generate.filled(page, study)
    study[-1]["accuracy_by_classifier"]["nme"][AVERAGE] += 40
    assert generate.figures.outdated(tmp_path, study) == ["bytes by nme"]
    study[-1]["memory_bytes"] -= 1000
    assert generate.figures.outdated(tmp_path, study) == drawn[1:]


def test_figures_and_tables_stand_in_the_documents(generate: types.ModuleType) -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = re.findall(r"<!-- ([\w ]+) -->\n", "".join(path.read_text() for path in documents))
    assert {*named} - {"end"} == {*generate.TABLES, *generate.figures.FIGURES}


def test_float_curves_average_over_the_seeds_that_both_have(generate: types.ModuleType) -> None:
    runs = [study_run("quick", "float16", "24576000B", seed) for seed in (0, 1)]
    runs[1]["accuracy_by_classifier"]["nme"]["accuracy_per_task"][0] += 2
    others = [study_run("quick", "float32", "24576000B", seed) for seed in (0, 1, 2)]
    others[2]["accuracy_by_classifier"]["nme"]["accuracy_per_task"][0] += 20
    curves = generate.figures.float_curves([*runs, *others])
    assert set(curves) == {"float16, n = 2", "float32, n = 2"}
    seen, accuracies = curves["float16, n = 2"]
    assert seen[:2] == [10, 20]
    assert accuracies[0] == runs[0]["accuracy_per_task"][0] + 1
    assert curves["float32, n = 2"][1][0] == runs[0]["accuracy_per_task"][0]


def test_figures_of_lae_average_over_orders(generate: types.ModuleType, tmp_path: Path) -> None:
    runs = [lae_run(seed, place) for place in ("msa", "both") for seed in (0, 1)]
    assert generate.figures.outdated(tmp_path, runs) == ["modules", "merging"]
    drawings = generate.figures.FIGURES
    modules = drawings["modules"].curves(runs)
    assert modules == {
        "adapter 5, msa": ([10.0, 20.0], [0.0, 0.0]),
        "adapter 5, msa and mlp": ([10.0, 20.0], [1.0, 1.0]),
    }
    assert drawings["merging"].curves(runs) == {
        "ema": ([10.0, 20.0], [0.0, 0.0]),
        "ties:0.2": ([10.0, 20.0], [-10.0, -10.0]),
    }
    note = "Preset quick, validation images, means over 2 class orders."
    for name in ("modules", "merging"):
        assert drawings[name].note(runs) == note
        generate.figures.draw(tmp_path, name, runs)
    assert generate.figures.outdated(tmp_path, runs) == []
    demanding = lae_run(0, "msa", "laptop", "test")
    assert drawings["modules"].curves([*runs, demanding]) == modules, "one line is no figure"
    assert "laptop" in drawings["merging"].note([*runs, demanding])
    easier = lae_run(2, "both")
    assert drawings["modules"].curves([*runs, easier]) == modules, "over the same orders"
    hurried = lae_run(0, "both")
    hurried["config"]["settings"]["schedule"]["learning_rate"] = 1.0
    assert drawings["modules"].curves([*runs, hurried]) == modules


def test_the_curve_of_pruning_needs_two_sizes(generate: types.ModuleType) -> None:
    whole, half = der_run(None), der_run(0.5)
    assert generate.figures.pruning_curves([whole]) == {}
    assert generate.figures.pruning_curves([whole, half]) == {
        "average over tasks": ([0.5, 1.0], [half["average_incremental_accuracy"]] * 2),
        "after the last task": ([0.5, 1.0], [half["last_accuracy"]] * 2),
    }
    bounded, heads = der_run(None), der_run(0.25)
    bounded["config"]["settings"]["max_parameters"] = "1M"
    heads["config"]["settings"]["head_init"] = "inherit"
    curves = generate.figures.pruning_curves([whole, half, bounded, heads, half | {"codec": "png"}])
    assert curves["average over tasks"][0] == [0.5, 1.0]


def test_what_pruning_may_cost_is_judged(generate: types.ModuleType) -> None:
    whole, half, quarter = der_run(None), der_run(0.5), der_run(0.25)
    half[AVERAGE] -= 0.9
    quarter[AVERAGE] -= 2.6
    icarl = study_run("laptop", "raw", "2000")
    for rule, average in (("nme", whole[AVERAGE] - 3.5), ("network", 1.0)):
        icarl["accuracy_by_classifier"][rule] |= {
            AVERAGE: average,
            "last_accuracy": whole["last_accuracy"],
        }
    judged = plain(generate.der_study.pruning_judged([whole, half, quarter, icarl]))
    text = "DER, whole, for iCaRL by {}, in as many epochs"
    nearest, network = map(text.format, ("the nearest mean", "the network's outputs"))
    one_pair = "+0.00 | 1, fp32 | one pair, no verdict: {} is asked |"
    assert f"| {nearest} | +3.50 | {one_pair.format('+3')}" in judged
    icarl["accuracy_by_classifier"]["network"][AVERAGE] = whole[AVERAGE] - 2.5
    again = plain(generate.der_study.pruning_judged([whole, icarl]))
    assert f"| {network} | +2.50 | {one_pair.format('+3')}" in again
    cut = "{} of the weights for all | {} | {}"
    assert cut.format(0.5, "-0.90", one_pair.format("-1")) in judged
    assert cut.format(0.25, "-2.60", one_pair.format("-2.5")) in judged
    assert f"| 0.1 of the weights for all | {ABSENT} | {ABSENT} | 0 | not measured |" in judged


def test_our_curves_stand_beside_the_authors(generate: types.ModuleType) -> None:
    authors = json.loads((ROOT / "docs" / "authors.json").read_text())["der"]
    assert generate.der_study.der_paper([]).count("not yet measured") == 4
    run = der_run(0.077, "paper")
    curve = [value + 0.5 for value in authors["cifar100/b0-inc10"]["pruned"]]
    run |= {"accuracy_by_classifier": {"network": {"accuracy_per_task": curve}}}
    run["parameters"] = [4_900_000] * 10
    (row,) = [
        each for each in generate.der_study.der_paper([run]).splitlines() if "engram, seed0" in each
    ]
    assert "| pruned, keep=0.077 | engram, seed0, n = 1 |" in row
    assert row.endswith("| +0.50 / +0.50: within 0.7 | 4.90 M: within 5.00 M |")
    curve[-1] += 1
    run["parameters"] = [5_100_000] * 10
    again = generate.der_study.der_paper([run])
    assert "| +0.60 / +1.50: not within 0.7 | 5.10 M: not within 5.00 M |" in again
    for foreign in ({"evaluate_on": "validation"}, {"codec": "jpeg:75"}):
        assert "engram, seed0" not in generate.der_study.der_paper([run | foreign])
    run["config"]["settings"]["schedule"]["epochs"] = 17
    assert "engram, seed0" not in generate.der_study.der_paper([run])


def test_without_the_authors_curves_nothing_is_told(
    generate: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate.der_study, "of_benchmark", lambda name: None)
    assert generate.der_study.der_paper([]) == generate.NOTHING


def test_equal_bytes_are_those_that_are_held(generate: types.ModuleType) -> None:
    def cells(run: dict[str, Any]) -> list[str]:
        row = generate.der_study.equal_bytes([run]).splitlines()[2]
        return [cell.strip() for cell in row.split("|")[1:-1]]

    run = der_run(0.25)
    run["config"]["budget"] = "15080000B"
    run |= {"memory_bytes": 15_000_000, "parameters": [1_200_000] * 10, "updates": 4000}
    found = cells(run)
    assert found[:3] == ["laptop", "der, laptop, keep=0.25", "`raw`"]
    assert found[3] == found[5] == ABSENT
    assert found[4].endswith("in 19.8 MB, 4,000 updates, n = 1")
    assert "equal_bytes/quick.yaml" in generate.der_study.equal_bytes([run]), (
        "what is not measured is named"
    )
    run["parameters"] = [3_000_000] * 10
    assert cells(run)[3] == "cannot be: 12.0 MB are parameters"
    run |= {"codec": "jpeg:75", "parameters": [1_200_000] * 10}
    assert cells(run)[5] == "cannot be: all images take 18.7 MB"


def test_the_table_of_pruning_tells_what_it_costs(generate: types.ModuleType) -> None:
    run = der_run(0.5)
    run |= {"multiply_adds": [70_000_000] * 10, "latency_ms": [7.0] * 10}
    row = generate.der_study.pruning([run]).splitlines()[-1]
    assert row.startswith("| cifar100/b0-inc10, laptop | keep=0.5 | 1 |")
    assert re.search(r"\| 70.00 M \| 7.0 \| .* min \d+ s \| AMD EPYC in (bf16|fp32) \|$", row)


def test_runs_stand_under_the_weights_they_started_from(generate: types.ModuleType) -> None:
    titles = re.findall(r"^#+ .*", generate.table(generate.committed()), re.MULTILINE)
    starts = [title for title in titles if title.startswith("### ")]
    assert starts[0] == "### From random weights"
    assert starts[1].startswith("### From vit_tiny_patch16_224, pretrained")
    assert titles.index(starts[1]) > titles.index("#### cifar100/b0-inc10, test images")


def test_every_run_is_listed_once(generate: types.ModuleType) -> None:
    shown = study_run("laptop", "raw", "2000")
    other = study_run("best-quick", "klt:32", "6144000B")
    assert "| laptop |" in generate.table([shown, other])
    assert "best-quick" not in generate.table([shown, other])
    assert "| best-quick |" in generate.table_of_studies([shown, other])
    assert "| laptop |" not in generate.table_of_studies([shown, other])


def test_what_compares_stands_under_one_heading(generate: types.ModuleType) -> None:
    summaries = [s for s in generate.committed() if s["method"] in ("lae", "ranpac")]
    text = generate.lae_study.lae_votes(summaries)
    laptop, quick = re.split(r"^### Preset quick.*$", text, flags=re.MULTILINE)
    assert laptop.startswith("### Preset laptop, test images: vit_tiny_patch16_224.augreg")
    assert re.match(r".* at 112 pixels, in (bf16|fp32)\n", laptop)
    assert "RanPAC alone | seed0, seed1, seed2 |" in laptop
    assert "RanPAC" not in quick
    assert f"| adapter 5, msa | {ABSENT} | seed0 | all three | 79.02" in quick


def test_the_readme_shows_its_own_grid(generate: types.ModuleType) -> None:
    listed = generate.short_table(generate.committed())
    assert re.search(r"\| icarl \| best, (precision=\w+, )?1,693 updates a task", listed)
    assert "quick" not in listed
    other = study_run("best-quick", "klt:32", "6144000B")
    assert "best-quick" not in generate.short_table([*generate.committed(), other])


def der_run(keep: float | None, preset: str = "laptop") -> dict[str, Any]:
    """A published summary, as if it were one of DER."""
    found = study_run("quick", "raw", "6144000B")
    settings = as_mapping(preset_settings("der", preset)) | {"keep": keep}
    found |= {"method": "der", "preset": preset, "classifier": "network"}
    found["config"] |= {"budget": "2000", "settings": settings}
    return found


def test_claims_of_lae_are_judged_order_by_order(generate: types.ModuleType) -> None:
    runs = [
        claimed_run(seed, published, place=place)
        for seed in (0, 1)
        for place, published in (("msa", 60.0 + 10 * seed), ("both", 62.0 + 10 * seed - seed))
    ]
    runs += [claimed_run(0, 80.0, stream="cifar100/100"), ranpac_run(0, 64.0), ranpac_run(1, 76.0)]
    rows = plain(generate.lae_study.lae_claims(runs)).splitlines()
    cells = {row.split("|")[1].strip(): row for row in rows if row.startswith("|")}

    def judged(text: str) -> list[str]:
        return [cell.strip() for cell in cells[text].split("|")[2:-1]]

    assert judged("ridge regression as third expert") == [
        *("+5.00 [+4.87, +5.13]", "2 of 2", "bf16", "25 %"),
        "gains, but less than 50 % of the gap",
    ]
    # By seed 1 and then -1: the third expert has 65 and 75, RanPAC 64 and 76.
    ranpac = "the three experts, for RanPAC as it is"
    assert judged(ranpac) == ["+0.00 [-12.83, +12.83]", "1 of 2", "bf16", ABSENT, "undecided"]
    adapted = "the three experts, for RanPAC on modules of the first task"
    assert judged(adapted) == [*[ABSENT] * 4, "not measured"]
    assert judged("mean for the moving average") == [
        "-1.00 [-1.13, -0.87]",
        "0 of 2",
        "bf16",
        ABSENT,
        "does not hold",
    ]
    gained = "+3.00 [+2.75, +3.25]"
    assert judged("ties:0.5 for the plain mean") == [gained, "2 of 2", "bf16", ABSENT, "holds"]
    branch = "plain adapters beside the MLP too, at equal parameters"
    assert judged(branch)[-1] == "not measured"
    runs += [claimed_run(seed, 61.0 + 10 * seed, size=10) for seed in (0, 1)]
    again = plain(generate.lae_study.lae_claims(runs))
    assert f"| {branch} | +0.50 [-5.85, +6.85] | 1 of 2 | bf16 | {ABSENT} | undecided |" in again
    # A seed counts once, in float32, and so does everything at once; RanPAC is in float32 alone.
    again = claimed_run(0, 63.0)
    runs = [claimed_run(0, 60.0), claimed_run(1, 60.0), claimed_run(0, 80.0, stream="cifar100/100")]
    runs += [again, *(ranpac_run(seed, 64.0, precision="fp32") for seed in (0, 1))]
    again["config"]["precision"] = "fp32"
    mixed = plain(generate.lae_study.lae_claims(runs))
    assert f"| {ranpac} | +2.50 [-16.69, +21.69] | 2 of 2 | bf16 against fp32, fp32 |" in mixed
    third = "ridge regression as third expert"
    assert f"| {third} | +5.00 [+4.87, +5.13] | 2 of 2 | bf16, fp32 | {ABSENT} |" in mixed


def test_the_best_on_validation_images_is_judged_on_test(generate: types.ModuleType) -> None:
    runs = [quick_run(0, 60.0), quick_run(0, 66.0, place="both")]
    choice = generate.lae_study.chosen(runs)
    assert choice.density == "ties:0.5"
    assert choice.best.changed == ("place=both",)
    assert choice.best.rule == "online + offline ema + ridge"
    runs += [claimed_run(0, 60.0), claimed_run(0, 55.5, place="both")]
    text = plain(generate.lae_study.lae_claims(runs))
    best = "the best on validation images (online + offline ema + ridge, place=both)"
    assert f"| {best} | +0.51 | 1 of 1 | bf16 | {ABSENT} | one pair, no verdict |" in text
    more = [claimed_run(1, 60.0), claimed_run(1, 55.5, place="both")]
    text = plain(generate.lae_study.lae_claims([*runs, *more]))
    twice = "+0.50 [+0.37, +0.63] | 2 of 2 | bf16"
    assert f"| {best} | {twice} | {ABSENT} | gains; no gap to close is measured |" in text
    runs += [claimed_run(0, 61.0, stream="cifar100/100")]
    judged = f"| {twice} | 51 % | gains, but less than 1 point |"
    assert f"| {best} {judged}" in plain(generate.lae_study.lae_claims([*runs, *more]))
    # What lacks a class order of the published modules is not compared with them.
    assert generate.lae_study.chosen([*runs, quick_run(1, 50.0)]).best is None
    nothing = generate.lae_study.chosen([])
    assert (nothing.density, nothing.best) == (None, None)
    assert "(not chosen yet) |" in plain(generate.lae_study.lae_claims([claimed_run(0, 60.0)]))
    # Everything at once is no ceiling where it is lower.
    runs[-1] = claimed_run(0, 60.0, stream="cifar100/100")
    once = f"| {best} | +0.51 | 1 of 1 | bf16 | {ABSENT} |"
    assert once in plain(generate.lae_study.lae_claims(runs))


def quick_run(seed: int, published: float, **modules: Any) -> dict[str, Any]:
    """The same of a run of preset quick, on validation images."""
    run = claimed_run(seed, published, **modules)
    modules = run["config"]["settings"]["modules"]
    settings = as_mapping(preset_settings("lae", "quick")) | {"modules": modules}
    return run | {
        "preset": "quick",
        "evaluate_on": "validation",
        "config": {"settings": settings, "precision": "bf16"},
    }


def ranpac_run(seed: int, accuracy: float, precision: str = "bf16") -> dict[str, Any]:
    """What the claims read of a run of RanPAC as it is."""
    run = claimed_run(seed, accuracy)
    rule = {"ridge": {"last_accuracy": accuracy}}
    settings = as_mapping(preset_settings("ranpac", "laptop"))
    return run | {
        "method": "ranpac",
        "config": {"settings": settings, "precision": precision},
        "accuracy_by_classifier": rule,
    }


def claimed_run(
    seed: int, published: float, stream: str = "cifar100/b0-inc10", **modules: Any
) -> dict[str, Any]:
    """What the claims read of a run of LAE."""
    settings = as_mapping(preset_settings("lae", "laptop"))
    settings["modules"] |= modules
    # Differences that are equal to the last digit would say nothing.
    slight = 0.01 - 0.02 * seed
    accuracies = {
        "online + offline ema": published,
        "online + offline mean": published - 1 - slight,
        "online + offline ties:0.5": published + 2 + slight,
        "online + offline ema + ridge": published + 5 + slight,
        "online": published,
        "ridge": published + 4,
    }
    return {
        "method": "lae",
        "preset": "laptop",
        "stream": stream,
        "evaluate_on": "test",
        "seed": seed,
        "order": f"seed{seed}",
        "config": {"settings": settings, "precision": "bf16"},
        "accuracy_by_classifier": {
            rule: {"last_accuracy": value} for rule, value in accuracies.items()
        },
    }


def test_attempts_and_claims_are_judged_seed_by_seed(generate: types.ModuleType) -> None:
    whole = [study_run("quick", "float32", "24576000B", seed) for seed in (0, 1)]
    half = [study_run("quick", "float16", "24576000B", seed) for seed in (0, 1, 2)]
    for run, gain in zip(half, (1.0, 3.0, 9.0), strict=True):
        run["average_incremental_accuracy"] += gain
        run["last_accuracy"] -= gain
    judged = plain(generate.memory_study.attempts_judged([*whole, *half]))
    pairs = "| float16 for float32 | {} | 2, fp32 | {} |"
    assert (
        pairs.format(
            "+2.00 [-10.71, +14.71] | -2.00 [-14.71, +10.71]", "undecided, gains in 2 of 2"
        )
        in judged
    )
    assert f"| uint8 for float16 | {ABSENT} | {ABSENT} | 0 | not measured |" in judged
    half[0]["average_incremental_accuracy"] += 1.9
    judged = plain(generate.memory_study.attempts_judged([*whole, *half]))
    assert "| +2.95 [+2.31, +3.59] | -2.00 [-14.71, +10.71] | 2, fp32 | gains |" in judged
    half[0]["config"]["precision"] = "bf16"
    judged = plain(generate.memory_study.attempts_judged([*whole, *half]))
    assert "| float16 for float32 | +3.00 | -3.00 | 1, fp32 | one pair, no verdict |" in judged
    small = study_run("quick", "resize:16", "6144000B")
    through = copy.deepcopy(small)
    through["config"]["settings"]["codec_augmentation"] = 1.0
    through["average_incremental_accuracy"] -= 2
    raw = study_run("quick", "raw", "6144000B")
    judged = plain(generate.memory_study.attempts_judged([small, through, raw]))
    assert (
        "all new images through 16x16 | -2.00 | +0.00 | 1, fp32 | one pair, no verdict |" in judged
    )


def test_what_best_was_chosen_by_has_both_rules(generate: types.ModuleType) -> None:
    run = study_run("laptop", "jpeg:75", "3072000B")
    run |= {"stream": "cifar100/10,10,10,10,10", "evaluate_on": "validation"}
    run["config"]["settings"]["schedule"]["epochs"] = 8
    run["config"]["settings"]["exemplar_targets"] = "label"
    by_rule = run["accuracy_by_classifier"]
    for rule, last in (("nme", 41.0), ("network", 39.0)):
        by_rule[rule] |= {"last_accuracy": last, "average_incremental_accuracy": 50.0}
    row = generate.memory_study.choice([run]).splitlines()[-1]
    assert row.startswith("| `jpeg:75` | exemplar_targets=label | 2,000 | ")
    assert row.endswith("| 50.00 / 39.00 | 50.00 / 41.00 |")


def test_what_is_asked_of_a_memory_is_met_or_missed(generate: types.ModuleType) -> None:
    published = study_run("laptop", "raw", "2000")
    best = study_run("best", "klt:32", "6144000B")
    again = {"seed": 1, "order": "seed1"}
    for gain, verdict in ((9.9, "missed"), (10.1, "met")):
        better = best | {AVERAGE: published[AVERAGE] + gain}
        judged = plain(generate.memory_study.best_judged([published, better]))
        told = f"| {gain:+.2f} | +0.00 | 1, fp32 | one pair, no verdict: +10 is asked |"
        assert f"at equal epochs: three times the updates {told}" in judged
        second = better | again | {AVERAGE: better[AVERAGE] + 0.002}
        runs = [published, published | again, better, second]
        assert f"| {verdict}: +10 is asked |" in generate.memory_study.best_judged(runs)
    recipe = [study_run("best", codec, "6144000B") for codec in ("klt:32", "raw")]
    for run in recipe:
        run["config"]["settings"]["schedule"] |= {"epochs": None, "updates": 1693}
    absent = plain(generate.memory_study.best_judged([published, best | again, *recipe]))
    told = f"| {ABSENT} | {ABSENT} | 0 | not measured; +10 is asked |"
    assert f"at equal epochs: three times the updates {told}" in absent


@pytest.mark.parametrize(
    ("differences", "told"),
    [
        ((11.0, 11.2), "met: +10 is asked, within the interval"),
        ((11.0, 11.02), "met: +10 is asked"),
        ((8.0, 8.02), "missed: +10 is asked"),
    ],
)
def test_a_target_may_lie_within_the_interval(
    generate: types.ModuleType, differences: tuple[float, float], told: str
) -> None:
    claims = importlib.import_module("claims")
    assert claims.verdict(differences, 10.0) == told


def test_runs_of_a_pair_have_one_precision_and_pairs_may_have_two(
    generate: types.ModuleType,
) -> None:
    claims = importlib.import_module("claims")

    def run(seed: int, precision: str) -> dict[str, Any]:
        return {"seed": seed, "order": f"seed{seed}", "config": {"precision": precision}}

    ours = [run(0, "bf16"), run(0, "fp32"), run(1, "bf16"), run(2, "fp32"), run(3, "bf16")]
    theirs = [run(0, "fp32"), run(0, "bf16"), run(1, "bf16"), run(2, "bf16")]
    pairs = claims.matched(ours, theirs)
    found = [(one["seed"], one["config"]["precision"]) for one, _ in pairs]
    assert found == [(0, "fp32"), (1, "bf16")]
    assert all(one["config"] == other["config"] for one, other in pairs)
    assert claims.precisions(pairs) == "bf16, fp32"
    *same, apart = claims.matched(ours, theirs, across=True)
    assert same == pairs
    assert claims.precisions([apart]) == "fp32 against bf16"


def test_a_run_that_is_there_twice_is_no_pair_of_its_own(generate: types.ModuleType) -> None:
    run = study_run("quick", "raw", "6144000B")
    with pytest.raises(ValueError, match="Two runs of icarl, quick"):
        generate.memory_study.attempts_judged([run, dict(run)])


AVERAGE = "average_incremental_accuracy"


def plain(table: str) -> str:
    """With hyphens for minus signs, as a keyboard has them."""
    return table.replace("\N{MINUS SIGN}", "-")


def lae_run(
    seed: int, place: str, preset: str = "quick", images: str = "validation"
) -> dict[str, Any]:
    """What the figures read of a run of LAE."""
    settings = as_mapping(preset_settings("lae", preset))
    settings["modules"]["place"] = place
    high = 80.0 + seed + (place == "both")
    curves = {"online + offline ema": high, "online + offline ties:0.2": high - 10, "ridge": high}
    return {
        "method": "lae",
        "preset": preset,
        "stream": "cifar100/b0-inc10",
        "evaluate_on": images,
        "order": f"seed{seed}",
        "codec": "raw",
        "config": {"budget": "0", "settings": settings},
        "task_sizes": [10, 10],
        "accuracy_by_classifier": {
            rule: {"accuracy_per_task": [first, first - 20]} for rule, first in curves.items()
        },
    }


def study_run(preset: str, codec: str, budget: str, seed: int = 0) -> dict[str, Any]:
    """A published summary, as if it were one of the memory study, in its precision."""
    path = ROOT / "results" / "icarl" / "icarl-cifar100-b0-inc10-laptop-s0.json"
    settings = as_mapping(preset_settings("icarl", preset))
    if preset == "quick":
        settings["schedule"] |= {"epochs": 2, "updates": None}
    found: dict[str, Any] = json.loads(path.read_text())
    found |= {"preset": preset, "codec": codec, "seed": seed, "order": f"seed{seed}"}
    found["config"] |= {"preset": preset, "codec": codec, "budget": budget, "settings": settings}
    found["config"] |= {"precision": "fp32"}
    return found


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_is_a_whole_summary(path: Path) -> None:
    (run,) = [run for run in find_runs(ROOT / "results").runs if run.path == path]
    summary = run.summary
    assert summary["method"] == path.parent.name
    assert path.stem.startswith(f"{summary['method']}-{summary['stream'].replace('/', '-')}-")
    assert ("validation" in path.stem) == (summary["evaluate_on"] == "validation")
    assert "dirty" not in summary["environment"]["commit"]
    assert recomputed(summary) == pytest.approx(
        {name: summary[name] for name in HEADLINES}, abs=0.01
    )


HEADLINES = ("average_incremental_accuracy", "last_accuracy", "forgetting")


WITHOUT_COMMIT = ("artefacts", "authors")
"""What was measured before commits were recorded, and what others have measured."""


def recomputed(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures that are published of a run, from its accuracies by task in another way."""
    matrix, sizes = summary["accuracy_matrix"], summary["task_sizes"]
    overall = [
        sum(accuracy * size for accuracy, size in zip(row, sizes, strict=False))
        / sum(sizes[: len(row)])
        for row in matrix
    ]
    drops = [
        max(row[task] for row in matrix[task:-1]) - matrix[-1][task]
        for task in range(len(matrix) - 1)
    ]
    forgetting = sum(drops) / len(drops) if drops else None
    return dict(zip(HEADLINES, (sum(overall) / len(overall), overall[-1], forgetting), strict=True))


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "docs").glob("*.json")),
    ids=lambda path: path.stem,
)
def test_benchmarks_were_run_on_committed_files(path: Path) -> None:
    text = path.read_text()
    assert "-dirty" not in text
    if path.stem not in WITHOUT_COMMIT:
        assert re.search(r'"commit": "[0-9a-f]{12}"', text)


@pytest.fixture(scope="module")
def published() -> list[ComparisonRow]:
    """The runs in results/, seeds together."""
    return comparison_table([dict(run.summary) for run in find_runs(ROOT / "results").runs])


@pytest.mark.parametrize(
    ("method", "preset"), [(method, preset) for method in METHODS for preset in presets_of(method)]
)
def test_presets_reach_what_was_measured(
    method: str, preset: str, published: list[ComparisonRow]
) -> None:
    measured = {
        f"{estimate.mean:.1f}"
        for row in published
        if (row.method, row.preset) == (method, preset)
        for estimate in (row.average, row.last)
    }
    for row in json.loads((ROOT / "docs" / "folders.json").read_text())["rows"]:
        starts_alike = ("from scratch" in row["name"]) == preset.endswith("-scratch")
        if row["set"] == "photos" and row["name"].startswith(method) and starts_alike:
            measured.add(f"{row['rounds'][-1]['accuracy']:.2f}".removesuffix("0"))
    for stream, reached in load_preset(method, preset).reaches.items():
        if not stream.startswith("digits/"):
            ours, *_ = reached.split("The paper")
            assert {*re.findall(r"\d+\.\d+", ours)} <= measured, stream


def test_the_readme_names_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) <= targets
    assert set(re.findall(r"`?engram (\w+)", text)) <= {*COMMANDS}
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / link).exists(), link


class UnderstoodError(Exception):
    """A command was understood."""


def documented_commands() -> list[str]:
    """Every command that is written out in the documentation, or in a comment of a preset."""
    found: set[str] = set()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text()
        blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        found |= {line for line in "".join(blocks).splitlines() if line.startswith("engram ")}
        found |= {" ".join(each.split()) for each in re.findall(r"`(engram \w+\s[^`]+)`", text)}
    for path in (ROOT / "experiments").rglob("*.yaml"):
        found |= {*re.findall(r"^# +(engram bench .*)$", path.read_text(), re.MULTILINE)}
    return sorted(found)


@pytest.mark.parametrize("line", documented_commands())
def test_every_documented_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    understand = tyro.cli

    def only_understood(*kinds: Any, **options: Any) -> None:
        understand(*kinds, **options)
        raise UnderstoodError

    monkeypatch.setattr(tyro, "cli", only_understood)
    _, command, *words = shlex.split(line, comments=True)
    assert all((ROOT / word).exists() for word in words if word.startswith("experiments/"))
    module = importlib.import_module(f"engram.{COMMANDS[command]}")
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            getattr(module, command)(words)
    else:
        with pytest.raises(UnderstoodError):
            getattr(module, command)(words)


def test_the_page_about_runs_shows_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "runs.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    matrix, right = capsys.readouterr().out.splitlines()
    (path,) = tmp_path.glob("runs/*/summary.json")
    summary = json.loads(path.read_text())
    assert matrix == str(summary["accuracy_matrix"])
    assert f"{summary['last_accuracy'] / 100:.4f}" in right
    explained = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert explained == summary["accuracy_by_classifier"]["nme"].keys()
    assert explained <= summary.keys()


def test_the_readme_shows_icarl_as_it_is() -> None:
    source = textwrap.dedent(inspect.getsource(ICaRL.learn))
    shown = re.search(r"```python\n(def learn.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1].splitlines()[1:] == source.splitlines()[1:]
