// What is this? A picture or the camera goes in, names with scores come out.

import { Camera, hasCamera } from "/page/camera.js";
import { acceptDrops } from "/page/drop.js";
import { dropped, picturesIn } from "/page/folders.js";
import { find, keyed, make, setText } from "/page/markup.js";
import { server } from "/page/server.js";

const BETWEEN_FRAMES = 300;

export class Ask {
  constructor(attempt, say) {
    this.attempt = attempt;
    this.say = say;
    this.camera = new Camera(find("ask-video"));
    this.version = null;
    this.picture = null;
    this.isShown = false;
    this.last = null;
    this.watching = 0;
    const input = find("ask-file");
    input.addEventListener("change", () => {
      this.take([...input.files]);
      input.value = "";
    });
    acceptDrops(find("ask-stage"), (transfer) =>
      this.attempt(async () => {
        const { pictures } = await dropped(transfer);
        if (pictures.length) await this.take(pictures);
        else this.say("That is no picture. Drop a JPEG, PNG or WebP file.");
      }),
    );
    document.addEventListener("paste", (event) => this.take(event.clipboardData.files));
    find("ask-picture").addEventListener("error", () => this.hidePicture());
    find("ask-camera").hidden = !hasCamera;
    find("ask-camera").addEventListener("click", () => this.toggleCamera());
  }

  show(state) {
    const changed = this.version !== state.version;
    this.version = state.version;
    const note = state.version
      ? "It knows only the classes it was taught. Anything else gets one of their names too: the percentages rank its classes, and do not say how likely it is to be right."
      : "Nothing has been learnt yet. Make two classes below, then ask.";
    const camera = hasCamera ? "" : ' Browsers allow the camera only over https or on this computer; on a phone, "Choose a picture" can take one too.';
    setText(find("ask-note"), note + camera);
    if (!state.version) this.answer([]);
    else if (changed && this.picture && !this.camera.open) this.predict(this.picture);
  }

  async take(files) {
    const [file] = picturesIn(files);
    if (!file) return;
    if (this.camera.open) this.stopCamera();
    URL.revokeObjectURL(find("ask-picture").src);
    find("ask-picture").src = URL.createObjectURL(file);
    this.picture = file;
    this.isShown = true;
    this.showStage();
    this.answer([]);
    await this.predict(file);
  }

  // Of several pictures that are asked about at once, the last one's answer stays.
  async predict(blob) {
    this.last = blob;
    const found = await this.attempt(() => server.predict(blob));
    if (found && this.last === blob) this.answer(found.labels);
    return found;
  }

  answer(labels) {
    keyed(find("answers"), labels, (one) => one.label, answerRow, (row, one) => {
      const share = `${(100 * one.score).toFixed(1)} %`;
      row.querySelector("b").textContent = share;
      row.querySelector("i").style.width = share.replace(" ", "");
    });
    setText(find("answer-said"), labels.length ? `It looks like ${labels[0].label}.` : "");
  }

  showStage() {
    find("ask-video").hidden = !this.camera.open;
    find("ask-picture").hidden = this.camera.open || !this.isShown;
    find("ask-hint").hidden = this.camera.open || this.isShown;
    setText(find("ask-camera"), this.camera.open ? "Stop the camera" : "Use the camera");
  }

  // Not every browser shows HEIC, which the server may read all the same.
  hidePicture() {
    this.isShown = false;
    setText(find("ask-hint"), "This browser cannot show the picture. Drop another, paste one, or:");
    this.showStage();
  }

  async toggleCamera() {
    if (this.camera.open) {
      this.stopCamera();
      this.answer([]);
      if (this.picture) await this.predict(this.picture);
      return;
    }
    await this.attempt(() => this.camera.start());
    this.showStage();
    if (this.camera.open) await this.watch();
  }

  stopCamera() {
    this.watching += 1;
    this.camera.stop();
    this.last = null;
    this.showStage();
  }

  // Asks about one frame after the other, until the camera stops or something goes wrong.
  async watch() {
    const mine = ++this.watching;
    while (mine === this.watching) {
      const frame = this.version && !document.hidden ? await this.camera.frame() : null;
      if (frame && mine === this.watching && !(await this.predict(frame))) {
        this.stopCamera();
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, BETWEEN_FRAMES));
    }
  }
}

function answerRow(one) {
  return make("li", {}, make("span", {}, one.label), make("b"), make("span", { className: "bar" }, make("i")));
}
