// What is this? A picture or the camera goes in, names with scores come out.

import { Camera, hasCamera } from "/page/camera.js";
import { acceptDrops } from "/page/drop.js";
import { dropped, picturesIn } from "/page/folders.js";
import { find, keyed, make } from "/page/markup.js";
import { server } from "/page/server.js";

const BETWEEN_FRAMES = 300;

export class Ask {
  constructor(attempt) {
    this.attempt = attempt;
    this.camera = new Camera(find("ask-video"));
    this.version = null;
    this.last = null;
    find("ask-file").addEventListener("change", (event) => this.take(event.target.files));
    acceptDrops(find("ask-stage"), async (transfer) => this.take((await dropped(transfer)).pictures));
    document.addEventListener("paste", (event) => this.take(event.clipboardData.files));
    find("ask-camera").hidden = !hasCamera;
    find("ask-camera").addEventListener("click", () => this.toggleCamera());
  }

  show(state) {
    const changed = this.version !== state.version;
    this.version = state.version;
    find("ask-note").textContent = state.version
      ? "It knows the classes below and no others: anything else is called by one of their names."
      : "Nothing has been learnt yet. Make two classes below, then ask.";
    if (!state.version) this.answer([]);
    else if (changed && this.last) this.predict(this.last);
  }

  async take(files) {
    const [file] = picturesIn(files);
    if (!file) return;
    if (this.camera.open) this.toggleCamera();
    find("ask-picture").src = URL.createObjectURL(file);
    find("ask-picture").hidden = false;
    find("ask-hint").hidden = true;
    this.answer([]);
    await this.predict(file);
  }

  // Of several pictures that are asked about at once, the last one's answer stays.
  async predict(blob) {
    this.last = blob;
    const found = await this.attempt(() => server.predict(blob));
    if (found && this.last === blob) this.answer(found.labels);
  }

  answer(labels) {
    keyed(find("answers"), labels, (one) => one.label, answerRow, (row, one) => {
      const share = `${(100 * one.score).toFixed(1)} %`;
      row.querySelector("b").textContent = share;
      row.querySelector("i").style.width = share.replace(" ", "");
    });
  }

  async toggleCamera() {
    const button = find("ask-camera");
    if (this.camera.open) {
      this.camera.stop();
    } else {
      await this.attempt(() => this.camera.start());
    }
    find("ask-video").hidden = !this.camera.open;
    find("ask-picture").hidden = this.camera.open || !find("ask-picture").src;
    find("ask-hint").hidden = this.camera.open || !find("ask-picture").hidden;
    button.textContent = this.camera.open ? "Stop the camera" : "Use the camera";
    while (this.camera.open) {
      if (this.version && !document.hidden) await this.predict(await this.camera.frame());
      await new Promise((resolve) => setTimeout(resolve, BETWEEN_FRAMES));
    }
  }
}

function answerRow(one) {
  return make("li", {}, make("span", {}, one.label), make("b"), make("span", { className: "bar" }, make("i")));
}
