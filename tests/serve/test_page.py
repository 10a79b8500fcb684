"""The page in a real browser: taught, asked, taught more, rolled back, found again after a restart.

`ENGRAM_SCREENSHOTS=docs/page` keeps the pictures that are taken on the way.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pillow_heif
import pytest
import torch
from playwright.sync_api import Browser, Page, expect, sync_playwright

from engram.files import data_folder, save_tensors
from engram.models.pretrained import BackboneConfig
from engram.models.vit import create_vit

sys.path.insert(0, str(Path(__file__).parent))
from drawings import drawing, file_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WEIGHTS = Path("weights", f"{BackboneConfig().backbone}.safetensors")
PATIENCE = 120_000

Shoot = Callable[..., None]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with weights: the real ones where they are, else drawn ones."""
    if (data_folder() / WEIGHTS).exists():
        return data_folder()
    folder = tmp_path_factory.mktemp("data")
    (folder / "weights").mkdir()
    network = create_vit(BackboneConfig().backbone, 224)
    network.draw(torch.Generator().manual_seed(0))
    save_tensors(folder / WEIGHTS, network.state_dict(), {})
    return folder


FOLDERS: list[tuple[list[str], dict[str, int], int, int]] = [
    (["cat/1.jpg", "cat/2.jpg", "cat/notes.txt", "cat/.hidden"], {"cat": 2}, 0, 1),
    (["cat/1.jpg", "cat/old/2.jpg"], {"cat": 2}, 0, 0),
    (["cat/1.jpg", "cat/.a/1.jpg", "cat/.b/1.jpg"], {"cat": 1}, 0, 0),
    (["photos/cat/1.jpg", "photos/dog/1.jpg", "photos/.small/1.jpg"], {"cat": 1, "dog": 1}, 0, 0),
    (["photos/cat/1.jpg", "photos/cat/old/2.jpg", "photos/dog/1.jpg"], {"cat": 2, "dog": 1}, 0, 0),
    (["photos/cover.jpg", "photos/cat/1.jpg", "photos/dog/1.jpg"], {"cat": 1, "dog": 1}, 1, 0),
    (["photos/train/1.jpg", "photos/test/1.jpg"], {"train": 1, "test": 1}, 0, 0),
    (["photos/cat/1.jpg", "photos/cat/@eaDir/1.jpg", "photos/__MACOSX/1.jpg"], {"cat": 1}, 0, 0),
    (
        ["photos/cat/1.HEIC", "photos/cat/old/2.heic", "photos/dog/1.jpg"],
        {"cat": 2, "dog": 1},
        0,
        0,
    ),
    (["photos/cat/1.DNG", "photos/cat/old/2.dng", "photos/dog/1.jpg"], {"dog": 1}, 0, 2),
]
"""Paths of files in a folder, the pictures of each class in it, those that are in none, and how
many files are no pictures that are read."""

CHOSEN_AND_DROPPED = """async (paths) => {
    const { classesIn, dropped } = await import("/page/folders.js");
    const chosen = paths.map((path) => {
        const file = new File(["x"], path.split("/").at(-1));
        return Object.defineProperty(file, "webkitRelativePath", { value: path });
    });
    const entry = (name, inside) => {
        const files = inside.filter((path) => path.length === 1);
        const names = [...new Set(inside.filter((path) => path.length > 1).map(([name]) => name))];
        const below = (name) => inside.filter(([first, ...rest]) => first === name && rest.length);
        const file = (name) => (give) => give(new File(["x"], name));
        const children = [
            ...files.map(([name]) => ({ name, isFile: true, file: file(name) })),
            ...names.map((name) => entry(name, below(name).map((path) => path.slice(1)))),
        ];
        const createReader = () => ({ readEntries: (give) => give(children.splice(0)) });
        return { name, isDirectory: true, createReader };
    };
    const words = paths.map((path) => path.split("/"));
    const folder = entry(words[0][0], words.map((path) => path.slice(1)));
    const transfer = { items: [{ webkitGetAsEntry: () => folder }] };
    const counted = ({ classes, strays, areParts, others }) => ({
        classes: Object.fromEntries([...classes].map(([name, files]) => [name, files.length])),
        strays: strays.length,
        areParts,
        others,
    });
    return [counted(classesIn(chosen)), counted(await dropped(transfer))];
}"""
"""What the page makes of such a folder if it is chosen, and if it is dropped."""

DISABLED = """async () => {
    const { keepFocus } = await import("/page/markup.js");
    const button = document.querySelector("#new-class button");
    button.focus();
    button.disabled = true;
    keepFocus(document.getElementById("learn"));
    button.disabled = false;
    return document.activeElement.id;
}"""
"""Where the focus is when what had it has been disabled, before the page is drawn again."""


class Served:
    """A server in a process of its own."""

    def __init__(self, model: Path, data: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engram", "serve", str(model), "--port", "0", *words],
            env={**os.environ, "ENGRAM_DATA": str(data)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        found = re.search(r"http://\S+", self.process.stdout.readline())
        assert found is not None, "the server did not start"
        self.address = found[0]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*options, *quiet, *camera]
        )
        yield opened
        opened.close()


@pytest.fixture
def shoot(tmp_path: Path) -> Shoot:
    folder = Path(os.environ.get("ENGRAM_SCREENSHOTS", tmp_path)).resolve()
    folder.mkdir(parents=True, exist_ok=True)

    def taken(page: Page, name: str, *, whole: bool = True, last: str = "body") -> None:
        page.evaluate("scrollTo(0, 0)")
        page.mouse.move(0, 0)
        box = page.locator(last).bounding_box()
        assert box is not None
        end = {"x": 0, "y": 0, "width": page.evaluate("innerWidth")}
        clip = {**end, "height": box["y"] + box["height"] + 8} if last != "body" else None
        page.screenshot(path=folder / f"{name}.png", full_page=whole, clip=clip)

    return taken


def files(thing: str, seeds: Iterable[int]) -> list[dict[str, object]]:
    return [
        {"name": f"{thing}-{seed}.jpg", "mimeType": "image/jpeg", "buffer": file_of(thing, seed)}
        for seed in seeds
    ]


def give(page: Page, thing: str, count: int = 14) -> None:
    """Make a class and add pictures of it."""
    page.get_by_label("New class").fill(thing)
    page.get_by_role("button", name="Make it").click()
    card = page.get_by_role("article", name=thing)
    card.locator("input[type=file]").set_input_files(files(thing, range(count)))
    counted = f"{count} picture{'s' if count > 1 else ''}"
    expect(card.get_by_role("status")).to_have_text(counted)


FOCUSED = """() => addEventListener("focusin", ({target}) => {
    window.onceFocused = {role: target.role, progress: target.querySelector("progress") !== null};
}, {once: true})"""
"""Learning may be over before anyone has looked where the focus was."""


def learn(page: Page, version: int) -> None:
    button = page.get_by_role("button", name="Learn", exact=True)
    button.focus()
    page.evaluate(FOCUSED)
    button.click()
    made = page.get_by_role("listitem", name=f"Version {version}")
    expect(made).to_contain_text("in use")
    # Who does not see it is told, and finds the place again.
    expect(page.locator("#learnt")).to_contain_text("Done: it has learnt")
    expect(page.get_by_role("heading", name="Teach it something new")).to_be_focused()
    assert page.evaluate("onceFocused") == {"role": "group", "progress": True}


def ask(page: Page, thing: str, seed: int) -> str:
    """The name that the page gives to a picture."""
    with page.expect_response(re.compile("/api/predict")):
        page.locator("#ask-file").set_input_files(files(thing, [seed]))
    first = page.locator("#answers li").first
    expect(first).to_be_visible()
    return first.locator("span").first.inner_text()


def ask_what_is_not_shown(page: Page, seed: int) -> None:
    """Chromium shows no HEIC; the answer comes all the same."""
    file = io.BytesIO()
    pillow_heif.from_pillow(drawing("mug", seed)).save(file)
    photo = {"name": "mug.heic", "mimeType": "", "buffer": file.getvalue()}
    page.locator("#ask-file").set_input_files([photo])
    expect(page.get_by_text("This browser cannot show the picture.")).to_be_visible()
    expect(page.get_by_text("It looks like mug.")).to_be_attached()
    assert ask(page, "mug", seed) == "mug"
    expect(page.get_by_alt_text("The picture you asked about")).to_be_visible()
    expect(page.locator("#ask-hint")).to_be_hidden()


def test_two_classes_then_a_third_then_back(
    browser: Browser, data: Path, tmp_path: Path, shoot: Shoot
) -> None:
    # Weights that were drawn recognise what they saw, and no more.
    seed = 100 if data == data_folder() else 0
    page = browser.new_page(viewport={"width": 1200, "height": 1080})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    with Served(tmp_path / "things", data) as served:
        page.goto(served.address)
        teach_and_ask(page, shoot, seed)
        page.goto("about:blank")
    with Served(tmp_path / "things", data) as served:
        page.goto(served.address)
        expect(page.get_by_text("knows 2 classes: mug, leaf")).to_be_visible()
        assert ask(page, "mug", seed) == "mug"
        page.get_by_role("button", name="Go back to version 2").click()
        expect(page.get_by_text("knows 3 classes: mug, leaf, fish")).to_be_visible()
        page.close()
        assert problems == []
        on_a_phone(browser, served.address, shoot, seed)


def teach_and_ask(page: Page, shoot: Shoot, seed: int) -> None:
    """Two classes, then a third, then back to two."""
    expect(page.get_by_text("knows nothing yet")).to_be_visible()
    expect(page.get_by_role("button", name="Learn", exact=True)).to_be_disabled()
    shoot(page, "empty")

    give(page, "mug")
    expect(page.get_by_text("It needs a second class")).to_be_visible()
    give(page, "leaf")
    shoot(page, "teaching")
    learn(page, 1)
    expect(page.get_by_text("knows 2 classes: mug, leaf")).to_be_visible()
    assert ask(page, "leaf", seed) == "leaf"
    ask_what_is_not_shown(page, seed)
    give(page, "fish")
    card = page.get_by_role("article", name="fish")
    card.get_by_role("button", name="Show all 14 pictures of fish").click()
    expect(card.get_by_role("img")).to_have_count(14)
    card.get_by_role("button", name="Show fewer pictures of fish").click()
    expect(card.get_by_role("img")).to_have_count(11)
    shoot(page, "page", last="#teach")
    learn(page, 2)
    expect(page.get_by_text("knows 3 classes: mug, leaf, fish")).to_be_visible()
    assert [ask(page, thing, seed) for thing in ("mug", "leaf", "fish")] == ["mug", "leaf", "fish"]
    for name, before in (("mug", r"\d+ %"), ("leaf", r"\d+ %"), ("fish", "new")):
        row = page.locator("#forgotten").get_by_role("row", name=re.compile(f"^{name} {before} "))
        expect(row).to_be_visible()
    verdict = page.locator("#changes > p").first
    expect(verdict).to_contain_text("of both classes that it knew before (1 a class; so few that")
    pictures = page.locator("#remembered img")
    expect(pictures).to_have_count(39)
    pictures.last.scroll_into_view_if_needed()
    expect(pictures.last).to_have_js_property("complete", True)
    shoot(page, "taught")

    page.get_by_role("button", name="Go back to version 1").click()
    expect(page.get_by_text("knows 2 classes: mug, leaf")).to_be_visible()
    assert ask(page, "fish", seed) in ("mug", "leaf")


def test_a_name_that_is_taken_and_a_picture_that_is_none(
    browser: Browser, data: Path, tmp_path: Path
) -> None:
    with Served(tmp_path / "things", data, "--token", "a+b c") as served:
        page = browser.new_page()
        page.goto(served.address)
        give(page, "mug", 2)
        give(page, "leaf", 1)
        # A name that another class has is refused, and the old one stands again.
        name = page.get_by_role("article", name="leaf").get_by_label("Name of the class")
        name.fill("mug")
        name.press("Enter")
        expect(page.get_by_role("alert").get_by_text("Another class mug waits")).to_be_visible()
        expect(name).to_have_value("leaf")
        name.fill("fish")
        name.press("Enter")
        fish = page.get_by_role("article", name="fish")
        expect(fish.get_by_role("button", name="Remove fish")).to_be_visible()
        # Names that differ in their case alone are two, and probably a mistake.
        fish.get_by_label("Name of the class").fill("Mug")
        page.keyboard.press("Enter")
        expect(page.get_by_text("mug and Mug will be two classes")).to_be_visible()
        upper = page.get_by_role("article", name="Mug", exact=True)
        upper.get_by_label("Name of the class").fill("fish")
        page.keyboard.press("Enter")
        broken = [
            {"name": f"broken-{number}.jpg", "mimeType": "image/jpeg", "buffer": b"broken"}
            for number in range(7)
        ]
        fish.locator("input[type=file]").set_input_files(broken)
        expect(fish.get_by_text("broken-0.jpg: The picture cannot be read")).to_be_visible()
        expect(fish.get_by_role("listitem")).to_have_count(6)
        expect(fish.get_by_text("2 more", exact=True)).to_be_visible()
        # Without a pointer: the picture goes, and the focus is where the next thing is.
        mug = page.get_by_role("article", name="mug")
        remove = mug.get_by_role("button", name="Remove picture")
        mug.get_by_role("button", name="Remove picture 2 of 2 of mug").focus()
        page.keyboard.press("Enter")
        expect(remove).to_have_count(1)
        expect(remove.first).to_be_focused()
        expect(mug.get_by_role("status")).to_have_text("1 picture; one was removed")
        # What was removed can be put back.
        mug.get_by_role("button", name="Undo").click()
        expect(mug.get_by_role("status")).to_have_text("2 pictures")
        expect(mug.get_by_role("button", name="Undo")).to_be_hidden()
        expect(mug.get_by_role("img", name="picture 2 of 2 of mug")).to_be_visible()
        # Of a folder of folders, each is a class; what lies beside them is in none.
        for place in ("cup/1.jpg", "plate/1.jpg", "cover.jpg"):
            path = tmp_path / "photos" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file_of("mug", len(place)))
        page.locator("#folders").set_input_files(tmp_path / "photos")
        for made in ("cup", "plate"):
            card = page.get_by_role("article", name=made)
            expect(card.get_by_role("status")).to_have_text("1 picture")
        expect(page.get_by_text("1 picture lies beside the folders")).to_be_visible()
        expect(page.get_by_role("article", name="photos")).to_have_count(0)
        # Parts of a data set are no classes.
        for place in ("train/cup/1.jpg", "test/cup/1.jpg"):
            path = tmp_path / "tableware" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file_of("mug", len(place)))
        page.locator("#folders").set_input_files(tmp_path / "tableware")
        parts = re.compile("are parts of a data set, not classes: (test, train|train, test)")
        expect(page.get_by_text(parts)).to_be_visible()
        expect(page.get_by_role("article", name="train")).to_have_count(0)
        assert page.evaluate(DISABLED) == "teach-title"
        for paths, classes, strays, others in FOLDERS:
            found = page.evaluate(CHOSEN_AND_DROPPED, paths)
            expected = {"classes": classes, "strays": strays, "others": others, "areParts": False}
            assert found == [expected] * 2, paths
        # Pictures that come after the token is gone wait until it is given again.
        page.context.clear_cookies()
        mug.locator("input[type=file]").set_input_files(files("mug", [7, 8, 9, 10]))
        expect(page.get_by_role("heading", name="needs a token")).to_be_visible()
        page.get_by_role("textbox", name="Token").fill("a+b c")
        page.get_by_role("button", name="Open").click()
        expect(mug.get_by_role("status")).to_have_text("6 pictures")
        page.context.clear_cookies()
        (tmp_path / "photos" / "bowl").mkdir()
        (tmp_path / "photos" / "bowl" / "1.jpg").write_bytes(file_of("mug", 1))
        page.locator("#folders").set_input_files(tmp_path / "photos")
        expect(page.get_by_role("heading", name="needs a token")).to_be_visible()
        page.get_by_role("textbox", name="Token").fill("a+b c")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("article", name="bowl").get_by_role("status")).to_have_text(
            "1 picture"
        )
        page.get_by_role("link", name="REST").click()
        expect(page.get_by_role("heading", name="POST /api/predict")).to_be_visible()
        page.close()
        # Another browser has to be told the token.
        stranger = browser.new_context().new_page()
        stranger.goto(served.address.partition("#")[0])
        expect(stranger.get_by_role("heading", name="needs a token")).to_be_visible()
        stranger.get_by_role("textbox", name="Token").fill("wrong")
        stranger.get_by_role("button", name="Open").click()
        expect(stranger.get_by_text("That is not the token")).to_be_visible()
        stranger.get_by_role("textbox", name="Token").fill("a+b c")
        stranger.get_by_role("button", name="Open").click()
        expect(stranger.get_by_role("article", name="mug")).to_be_visible()
        stranger.context.close()
        # An address with the token opens a page that is there already.
        another = browser.new_context().new_page()
        another.goto(served.address.partition("#")[0])
        expect(another.get_by_role("heading", name="needs a token")).to_be_visible()
        another.goto(served.address)
        expect(another.get_by_role("article", name="mug")).to_be_visible()
        expect(another.get_by_role("heading", name="needs a token")).to_be_hidden()
        another.context.close()


def test_pictures_from_the_camera(browser: Browser, data: Path, tmp_path: Path) -> None:
    with Served(tmp_path / "things", data) as served:
        page = browser.new_page()
        page.goto(served.address)
        give(page, "mug", 1)
        card = page.get_by_role("article", name="mug")
        card.get_by_role("button", name="Camera").click()
        shoot = page.get_by_role("button", name="Take a picture")
        expect(page.get_by_role("dialog", name="Pictures of mug")).to_be_visible()
        shoot.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_text("1 picture", exact=True)).to_be_visible()
        page.get_by_role("button", name="Done").click()
        expect(card.get_by_role("status")).to_have_text("2 pictures")
        page.close()
        # What a browser gives to a page that came over http from elsewhere.
        without = browser.new_page()
        without.add_init_script("Object.defineProperty(navigator, 'mediaDevices', {value: null})")
        without.goto(served.address)
        expect(without.get_by_text("Browsers allow the camera only over https")).to_be_visible()
        expect(without.get_by_role("button", name="Use the camera")).to_be_hidden()
        without.close()


def on_a_phone(browser: Browser, address: str, shoot: Shoot, seed: int) -> None:
    """In the dark, and narrow."""
    phone = browser.new_page(
        viewport={"width": 390, "height": 844}, color_scheme="dark", device_scale_factor=2
    )
    phone.goto(address)
    expect(phone.get_by_text("knows 3 classes")).to_be_visible()
    ask(phone, "fish", seed)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390, "it scrolls sideways"
    shoot(phone, "phone", whole=False)
    phone.close()
