// Teach it something new: cards of classes that wait, and the job that learns them.

import { Camera, hasCamera } from "/page/camera.js";
import { acceptDrops } from "/page/drop.js";
import { classesIn, dropped, picturesIn } from "/page/folders.js";
import { find, keyed, make, seconds, several } from "/page/markup.js";
import { server } from "/page/server.js";

const SHOWN = 11;
const AT_ONCE = 3;
const BURST = 350;
const FEW = 5;

const STAGES = {
  starting: "Getting ready",
  reading: "Looking at the pictures",
  measuring: "Checking what was forgotten",
  saving: "Saving",
};

export class Teach {
  constructor(attempt, refresh, say) {
    this.attempt = attempt;
    this.refresh = refresh;
    this.say = say;
    this.uploads = new Map();
    this.waiting = [];
    this.dismissed = null;
    find("new-class").addEventListener("submit", (event) => this.makeClass(event));
    acceptDrops(find("new-class"), (transfer) => this.takeDrop(transfer));
    find("folders").addEventListener("change", (event) => this.takeClasses(classesIn(event.target.files)));
    find("learn").addEventListener("click", () => this.change(() => server.learn()));
    this.shooting = new Shooting((blobs) => this.add(this.shooting.id, blobs));
  }

  async change(work) {
    await this.attempt(work);
    await this.refresh();
  }

  show(state) {
    this.waiting = state.waiting;
    const running = state.job?.state === "running";
    const learning = new Set(running ? Object.keys(state.job.lessons) : []);
    const cards = state.waiting.filter((one) => one.pictures.length || !learning.has(one.name));
    keyed(find("cards"), cards, (one) => one.id, (one) => this.card(one), (card, one) => this.update(card, one));
    const pictures = state.waiting.reduce((sum, one) => sum + one.pictures.length, 0);
    const busy = [...this.uploads.values()].some((upload) => upload.left);
    find("learn").disabled = running || busy || !pictures;
    find("learn-note").textContent = this.advice(state, pictures, running);
    this.showJob(state.job);
  }

  advice(state, pictures, running) {
    if (running) return "You can go on asking, and add pictures for the next time.";
    if (!pictures) return "";
    const filled = state.waiting.filter((one) => one.pictures.length);
    const fresh = filled.filter((one) => !one.known);
    if (state.classes.length + fresh.length < 2) return "It needs a second class to tell this one from.";
    const few = filled.filter((one) => !one.known && one.pictures.length < FEW);
    const count = `${several(pictures, "picture")} of ${several(filled.length, "class", "classes")}.`;
    return few.length ? `${count} More pictures of ${few[0].name} would help.` : count;
  }

  showJob(job) {
    const place = find("job");
    const running = job?.state === "running" && job.kind === "learn";
    const failed = ["failed", "interrupted"].includes(job?.state) && this.dismissed !== job.id;
    place.hidden = !running && !failed;
    if (place.hidden) return;
    const key = `${job.id} ${job.state}`;
    if (place.dataset.key !== key) {
      place.dataset.key = key;
      place.className = running ? "" : "ended";
      place.replaceChildren(...(running ? this.runningJob(job) : this.endedJob(job)));
    }
    if (!running) return;
    const left = job.seconds_left === null ? "" : `: about ${seconds(job.seconds_left)} left`;
    place.querySelector("p").textContent = `${STAGES[job.stage] ?? "Learning"}${left}`;
    const bar = place.querySelector("progress");
    if (job.share > 0) bar.value = job.share;
    else bar.removeAttribute("value");
  }

  runningJob(job) {
    const cancel = make("button", { type: "button", className: "quiet", onclick: () => this.change(() => server.cancel(job.id)) }, "Cancel");
    const bar = make("progress", { max: 1, "aria-label": "Learning" });
    return [make("div", { className: "row" }, make("p", { role: "status" }), cancel), bar];
  }

  endedJob(job) {
    const dismiss = () => {
      this.dismissed = job.id;
      find("job").hidden = true;
    };
    const title = job.state === "failed" ? "That was not learnt" : "Learning was interrupted";
    const again = make("button", { type: "button", className: "quiet", onclick: dismiss }, "Dismiss");
    return [make("div", { className: "row" }, make("h3", {}, title), again), make("p", { role: "alert" }, job.message)];
  }

  card(one) {
    const name = make("input", {
      className: "name", value: one.name, "aria-label": "Name of the class", autocomplete: "off",
      onchange: () => this.change(() => server.renameClass(one.id, name.value)),
    });
    const remove = make("button", {
      type: "button", className: "quiet", "aria-label": `Remove ${one.name}`,
      onclick: () => this.change(() => server.removeClass(one.id)),
    }, "Remove");
    const files = make("input", {
      type: "file", multiple: true, accept: "image/*",
      onchange: () => this.add(one.id, [...files.files]),
    });
    const camera = make("button", {
      type: "button", hidden: !hasCamera, onclick: () => this.attempt(() => this.shooting.open(one)),
    }, "Camera");
    const card = make("article", { className: "card", "aria-label": one.name },
      make("div", { className: "row" }, name, remove),
      make("p", { className: "status", role: "status" }),
      make("div", { className: "thumbs" }),
      make("ul", { className: "refused", hidden: true }),
      make("div", { className: "buttons" }, make("label", { className: "button" }, files, "Add pictures"), camera));
    acceptDrops(card, async (transfer) => {
      const { pictures, classes } = await dropped(transfer);
      this.add(one.id, [...pictures, ...[...classes.values()].flat()]);
    });
    return card;
  }

  update(card, one) {
    const upload = this.uploads.get(one.id);
    const known = one.known ? "Known already: it will learn further. " : "";
    card.querySelector(".status").textContent = upload?.left
      ? `Adding pictures: ${upload.left} to go`
      : `${known}${one.pictures.length ? several(one.pictures.length, "picture") : "Drop pictures here"}`;
    const newest = one.pictures.slice(-SHOWN).reverse();
    const items = one.pictures.length > SHOWN ? [...newest, "more"] : newest;
    keyed(card.querySelector(".thumbs"), items, (id) => id, (id) => this.thumbnail(id, one.name), (element, id) => {
      if (id === "more") element.textContent = `+${one.pictures.length - SHOWN}`;
    });
    const refused = card.querySelector(".refused");
    refused.hidden = !upload?.refused.length;
    refused.replaceChildren(...(upload?.refused ?? []).slice(0, 5).map((text) => make("li", {}, text)));
  }

  thumbnail(id, name) {
    if (id === "more") return make("span", { className: "more" });
    const image = make("img", { src: server.pictureAddress(id), alt: "", loading: "lazy" });
    return make("button", {
      type: "button", className: "thumb", "aria-label": `Remove a picture of ${name}`,
      onclick: () => this.change(() => server.removePicture(id)),
    }, image);
  }

  async makeClass(event) {
    event.preventDefault();
    const field = find("class-name");
    const made = await this.attempt(() => server.addClass(field.value));
    if (made) field.value = "";
    await this.refresh();
  }

  async takeDrop(transfer) {
    const { pictures, classes } = await dropped(transfer);
    if (classes.size) await this.takeClasses(classes);
    else if (pictures.length) this.say("Make a class first, and drop the pictures on its card.");
  }

  async takeClasses(classes) {
    if (!classes.size) this.say("There are no pictures in there.");
    for (const [name, files] of classes) {
      if (!files.length) continue;
      const there = this.waiting.find((one) => one.name === name);
      const made = there ?? (await this.attempt(() => server.addClass(name)));
      if (made) await this.add(made.id, files);
    }
  }

  // Sends pictures, a few at a time, and remembers which were refused and why.
  async add(id, files) {
    const upload = this.uploads.get(id) ?? { left: 0, refused: [] };
    if (!upload.left) upload.refused = [];
    upload.left += files.length;
    this.uploads.set(id, upload);
    const queue = [...files];
    const send = async () => {
      for (let file = queue.shift(); file; file = queue.shift()) {
        try {
          await server.addPicture(id, file);
        } catch (error) {
          upload.refused.push(`${file.name ?? "A picture"}: ${error.message}`);
        }
        upload.left -= 1;
        if (upload.left % 10 === 0) await this.refresh();
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, send));
    await this.refresh();
  }
}

// The dialog in which pictures are taken for a class.
class Shooting {
  constructor(take) {
    this.take = take;
    this.camera = new Camera(find("camera-video"));
    this.id = null;
    this.count = 0;
    this.burst = null;
    const shoot = find("shoot");
    shoot.addEventListener("pointerdown", () => this.hold());
    shoot.addEventListener("keydown", (event) => [" ", "Enter"].includes(event.key) && !event.repeat && this.hold());
    for (const kind of ["pointerup", "pointerleave", "keyup", "blur"]) shoot.addEventListener(kind, () => this.release());
    find("camera-close").addEventListener("click", () => find("camera").close());
    find("camera").addEventListener("close", () => this.close());
  }

  async open(one) {
    this.id = one.id;
    this.count = 0;
    await this.camera.start();
    find("camera-title").textContent = `Pictures of ${one.name}`;
    find("camera-count").textContent = "Hold the button for several pictures.";
    find("camera").showModal();
  }

  async shoot() {
    this.count += 1;
    find("camera-count").textContent = several(this.count, "picture");
    this.take([await this.camera.frame()]);
  }

  hold() {
    this.release();
    this.shoot();
    this.burst = setInterval(() => this.shoot(), BURST);
  }

  release() {
    clearInterval(this.burst);
  }

  close() {
    this.release();
    this.camera.stop();
  }
}
