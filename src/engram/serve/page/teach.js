// Teach it something new: cards of classes that wait, and the job that learns them.

import { Camera, hasCamera } from "/page/camera.js";
import { acceptDrops } from "/page/drop.js";
import { classesIn, className, dropped, leftOut } from "/page/folders.js";
import { find, keepFocus, keyed, make, named, seconds, setText, several } from "/page/markup.js";
import { NeedsToken, server } from "/page/server.js";

const SHOWN = 11;
const AT_ONCE = 3;
const BURST = 350;
const FEW = 5;
const REFUSED_SHOWN = 5;

const STAGES = {
  starting: "Getting ready",
  reading: "Looking at the pictures",
  measuring: "Checking what was forgotten",
  saving: "Saving",
};

export class Teach {
  constructor(attempt, refresh, say, untilOpened) {
    this.attempt = attempt;
    this.refresh = refresh;
    this.say = say;
    this.untilOpened = untilOpened;
    this.taking = 0;
    this.watched = null;
    this.uploads = new Map();
    this.waiting = [];
    this.opened = new Set();
    this.unfolded = new Set();
    this.removed = new Map();
    this.dismissed = null;
    this.changing = Promise.resolve();
    find("new-class").addEventListener("submit", (event) => this.makeClass(event));
    acceptDrops(find("new-class"), (transfer) => this.attempt(() => this.whileTaking(() => this.takeDrop(transfer))));
    const folders = find("folders");
    folders.addEventListener("change", async () => {
      await this.whileTaking(() => this.takeClasses(classesIn(folders.files)));
      folders.value = "";
    });
    find("learn").addEventListener("click", () => this.learn());
    this.shooting = new Shooting((id, blob) => this.whileTaking(() => this.persist(() => server.addPicture(id, blob))));
  }

  // Changes are made one after the other: a name that was typed is sent before Learn is.
  change(work) {
    this.changing = this.changing.then(async () => {
      await this.attempt(work);
      await this.refresh();
    });
    return this.changing;
  }

  async learn() {
    await this.change(() => server.learn());
    keepFocus(find("learn"), find("job").hidden ? null : find("job"));
  }

  show(state) {
    this.waiting = state.waiting;
    const running = state.job?.state === "running";
    const learning = new Set(running ? Object.keys(state.job.lessons) : []);
    const isShown = (one) => one.pictures.length || !learning.has(one.name) || this.opened.has(one.id);
    const cards = state.waiting.filter(isShown);
    keyed(find("cards"), cards, (one) => one.id, (one) => this.card(one), (card, one) => this.update(card, one));
    const pictures = state.waiting.reduce((sum, one) => sum + one.pictures.length, 0);
    find("learn").disabled = running || this.taking > 0 || !pictures;
    setText(find("learn-note"), this.advice(state, pictures, running));
    this.showJob(state.job);
    if (running) this.watched = state.job.id;
    setText(find("learnt"), this.outcome(state.job));
  }

  // Said once it is over, to who was there meanwhile.
  outcome(job) {
    if (job?.id !== this.watched || job?.kind !== "learn" || job.state !== "done") return "";
    return `Done: it has learnt ${named(Object.keys(job.lessons), 4)}.`;
  }

  advice(state, pictures, running) {
    if (running) return "You can go on asking, and add pictures for the next time.";
    if (this.taking) return "Pictures are on their way.";
    if (!pictures) return "";
    const filled = state.waiting.filter((one) => one.pictures.length);
    const fresh = filled.filter((one) => !one.known);
    if (state.classes.length + fresh.length < 2) return "It needs a second class to tell this one from.";
    const alike = firstAlike(state.classes, fresh);
    if (alike) return `${alike.join(" and ")} will be two classes. If they are the same, give all pictures to one of them.`;
    const few = filled.filter((one) => !one.known && one.pictures.length < FEW);
    const count = `${several(pictures, "picture")} of ${several(filled.length, "class", "classes")}.`;
    return few.length ? `${count} More pictures of ${few[0].name} would help.` : count;
  }

  showJob(job) {
    const place = find("job");
    const running = job?.state === "running" && job.kind === "learn";
    const failed = ["failed", "interrupted"].includes(job?.state) && this.dismissed !== job.id;
    if (!running && !failed) {
      this.hideJob();
      return;
    }
    place.hidden = false;
    const key = `${job.id} ${job.state}`;
    if (place.dataset.key !== key) {
      place.dataset.key = key;
      place.className = running ? "" : "ended";
      const had = place.contains(document.activeElement);
      place.replaceChildren(...(running ? this.runningJob(job) : this.endedJob(job)));
      if (had) place.focus({ preventScroll: true });
    }
    if (!running) return;
    const left = job.seconds_left === null ? "" : `: about ${seconds(job.seconds_left)} left of this step`;
    setText(place.querySelector(".stage-said"), STAGES[job.stage] ?? "Learning");
    setText(place.querySelector(".left"), left);
    const bar = place.querySelector("progress");
    if (job.share > 0) bar.value = job.share;
    else bar.removeAttribute("value");
  }

  hideJob() {
    const place = find("job");
    const had = place.contains(document.activeElement);
    place.hidden = true;
    if (!had) return;
    document.activeElement.blur();
    keepFocus(place, find("learn"));
  }

  runningJob(job) {
    const end = () => this.change(() => server.cancel(job.id));
    const cancel = make("button", { type: "button", className: "quiet", onclick: end }, "Cancel");
    const bar = make("progress", { max: 1, "aria-label": "Learning" });
    // Only the stage is read out; the time changes too often.
    const text = make("p", {}, make("span", { className: "stage-said", role: "status" }), make("span", { className: "left" }));
    return [make("div", { className: "row" }, text, cancel), bar];
  }

  endedJob(job) {
    const dismiss = () => {
      this.dismissed = job.id;
      this.hideJob();
    };
    const [failure, interruption] = job.kind === "learn"
      ? ["That was not learnt", "Learning was interrupted"]
      : ["That version was not restored", "Going back was interrupted"];
    const title = job.state === "failed" ? failure : interruption;
    const again = make("button", { type: "button", className: "quiet", onclick: dismiss }, "Dismiss");
    return [make("div", { className: "row" }, make("h3", {}, title), again), make("p", { role: "alert" }, job.message)];
  }

  card(one) {
    const name = make("input", {
      className: "name", value: one.name, "aria-label": "Name of the class", autocomplete: "off",
      onchange: async () => {
        await this.change(() => server.renameClass(one.id, name.value));
        // Refused or not, it shows what the class is called.
        name.value = this.found(one.id)?.name ?? name.value;
      },
    });
    const remove = make("button", { type: "button", className: "quiet remove", onclick: () => this.remove(one.id) }, "Remove");
    const files = make("input", {
      type: "file", multiple: true, accept: "image/*",
      onchange: () => {
        this.add(one.id, [...files.files]);
        files.value = "";
      },
    });
    const camera = make("button", {
      type: "button", hidden: !hasCamera, onclick: () => this.attempt(() => this.shooting.open(this.found(one.id))),
    }, "Camera");
    const card = make("article", { className: "card" },
      make("div", { className: "row" }, name, remove),
      make("div", { className: "row said-of" },
        make("p", { className: "status", role: "status" }),
        make("button", { type: "button", className: "quiet undo", onclick: () => this.undo(one.id) }, "Undo")),
      make("div", { className: "thumbs" },
        make("div", { className: "shown" }),
        make("button", { type: "button", className: "more", onclick: () => this.fold(one.id) })),
      make("ul", { className: "refused", hidden: true }),
      make("div", { className: "buttons" }, make("label", { className: "button" }, files, "Add pictures"), camera));
    acceptDrops(card, (transfer) => this.attempt(() => this.whileTaking(async () => {
      const { pictures, classes, strays, others } = await dropped(transfer);
      if (others) this.say(leftOut(others));
      await this.send(one.id, [...pictures, ...strays, ...[...classes.values()].flat()]);
    })));
    return card;
  }

  cardOf(id) {
    return find("cards").querySelector(`.card[data-key="${id}"]`);
  }

  found(id) {
    return this.waiting.find((one) => one.id === id);
  }

  remove(id) {
    const { name, pictures } = this.found(id);
    const sure = !pictures.length || confirm(`Remove ${name} and its ${several(pictures.length, "picture")}?`);
    if (sure) this.change(() => server.removeClass(id));
  }

  update(card, one) {
    const upload = this.uploads.get(one.id);
    const name = card.querySelector("input.name");
    if (document.activeElement !== name) name.value = one.name;
    card.setAttribute("aria-label", one.name);
    card.querySelector(".remove").setAttribute("aria-label", `Remove ${one.name}`);
    const known = one.known ? "Known already: it will learn further. " : "";
    const count = one.pictures.length ? several(one.pictures.length, "picture") : "Drop pictures here";
    const removed = this.removed.get(one.id)?.length ?? 0;
    const gone = removed ? `; ${removed === 1 ? "one was" : `${removed} were`} removed` : "";
    setText(card.querySelector(".status"), upload?.left ? `Adding pictures: ${upload.left} to go` : known + count + gone);
    const undo = card.querySelector(".undo");
    undo.hidden = !removed;
    undo.setAttribute("aria-label", `Undo: put the last picture of ${one.name} back`);
    this.showThumbnails(card, one);
    const refused = card.querySelector(".refused");
    const reasons = upload?.refused ?? [];
    refused.hidden = !reasons.length;
    const more = reasons.length - REFUSED_SHOWN;
    const shown = [...reasons.slice(0, REFUSED_SHOWN), ...(more > 0 ? [`${more.toLocaleString("en")} more`] : [])];
    refused.replaceChildren(...shown.map((text) => make("li", {}, text)));
  }

  // The newest first; a button in the place of one picture would hide what has room.
  showThumbnails(card, one) {
    const count = one.pictures.length;
    const unfolded = this.unfolded.has(one.id);
    const newest = unfolded || count === SHOWN + 1 ? one.pictures : one.pictures.slice(-SHOWN);
    const numbers = new Map(one.pictures.map((id, index) => [id, index + 1]));
    keyed(card.querySelector(".shown"), [...newest].reverse(), (id) => id, (id) => this.thumbnail(one.id, id), (element, id) => {
      const name = `picture ${numbers.get(id)} of ${count} of ${one.name}`;
      element.querySelector("img").alt = name;
      element.querySelector("button").setAttribute("aria-label", `Remove ${name}`);
    });
    const more = card.querySelector(".more");
    more.hidden = count <= SHOWN + 1;
    setText(more, unfolded ? "fewer" : `+${count - SHOWN}`);
    more.setAttribute("aria-label", `Show ${unfolded ? "fewer" : `all ${count}`} pictures of ${one.name}`);
  }

  thumbnail(of, id) {
    const image = make("img", { src: server.pictureAddress(id), loading: "lazy" });
    const remove = make("button", { type: "button", onclick: () => this.removePicture(of, id) }, "×");
    return make("span", { className: "thumb" }, image, remove);
  }

  fold(id) {
    if (!this.unfolded.delete(id)) this.unfolded.add(id);
    this.update(this.cardOf(id), this.found(id));
  }

  // What is removed stays here until the page is left, so that it can be put back.
  removePicture(of, id) {
    return this.change(async () => {
      const picture = await server.picture(id);
      await server.removePicture(id);
      this.removed.set(of, [...(this.removed.get(of) ?? []), picture]);
    });
  }

  async undo(of) {
    await this.change(async () => {
      const removed = this.removed.get(of);
      if (!removed?.length) return; // a second click came before the button was gone
      await server.addPicture(of, removed.at(-1));
      removed.pop();
    });
    keepFocus(find("cards"), this.cardOf(of)?.querySelector(".thumb button"));
  }

  async makeClass(event) {
    event.preventDefault();
    const field = find("class-name");
    await this.change(async () => {
      const made = await server.addClass(className(field.value));
      this.opened.add(made.id);
      field.value = "";
    });
  }

  async takeDrop(transfer) {
    const { pictures, ...found } = await dropped(transfer);
    if (pictures.length) this.say("Make a class first, and drop the pictures on its card.");
    else await this.takeClasses(found);
  }

  async takeClasses({ classes, strays, areParts, others }) {
    const beside = `${several(strays.length, "picture lies", "pictures lie")} beside the folders, in no class.`;
    const none = "There are no folders of pictures in there. Drop JPEG, PNG or WebP files.";
    if (areParts) {
      this.say(`These folders are parts of a data set, not classes: ${[...classes.keys()].join(", ")}. Give one of them.`);
      return;
    }
    const said = [strays.length ? beside : "", leftOut(others), classes.size ? "" : none].filter(Boolean);
    if (said.length) this.say(said.join(" "));
    for (const [name, files] of classes) {
      const made = await this.attempt(() => this.persist(() => server.addClass(name)));
      if (made) await this.add(made.id, files);
    }
  }

  add(id, files) {
    return this.whileTaking(() => this.send(id, files));
  }

  // What was begun is learnt with all of its pictures: Learn waits for those that are on their way.
  async whileTaking(work) {
    this.taking += 1;
    find("learn").disabled = true;
    try {
      await work();
    } finally {
      this.taking -= 1;
      await this.refresh();
    }
  }

  // Asks for the token as often as it is missing, so that nothing of what was given is lost.
  async persist(work) {
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof NeedsToken)) throw error;
        await this.untilOpened();
      }
    }
  }

  // Sends pictures, a few at a time, and remembers which were refused and why.
  async send(id, files) {
    const upload = this.uploads.get(id) ?? { left: 0, refused: [] };
    if (!upload.left) upload.refused = [];
    upload.left += files.length;
    this.uploads.set(id, upload);
    const queue = [...files];
    const sendQueued = async () => {
      for (let file = queue.shift(); file; file = queue.shift()) {
        try {
          await this.persist(() => server.addPicture(id, file));
        } catch (error) {
          upload.refused.push(`${file.name}: ${error.message}`);
          if (!this.found(id)) this.say(`${file.name}: ${error.message}`);
        }
        upload.left -= 1;
        if (upload.left % 10 === 0) await this.refresh();
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, sendQueued));
  }
}

// Names of a class that is there and of one that is new, which differ in their case alone.
function firstAlike(known, fresh) {
  const names = new Map(known.map(({ name }) => [name.toLowerCase(), name]));
  for (const { name } of fresh) {
    const other = names.get(name.toLowerCase());
    if (other) return [other, name];
    names.set(name.toLowerCase(), name);
  }
  return null;
}

// The dialog in which pictures are taken for a class.
class Shooting {
  constructor(send) {
    this.send = send;
    this.camera = new Camera(find("camera-video"));
    this.id = null;
    this.count = 0;
    this.burst = null;
    const shoot = find("shoot");
    shoot.addEventListener("pointerdown", (event) => event.button === 0 && this.hold());
    for (const kind of ["pointerup", "pointerleave", "pointercancel", "blur"]) shoot.addEventListener(kind, () => this.release());
    // From a keyboard, a voice or a screen reader; a pointer's clicks were seen when it went down.
    shoot.addEventListener("click", (event) => event.detail === 0 && this.shoot());
    find("camera-close").addEventListener("click", () => find("camera").close());
    find("camera").addEventListener("close", () => this.close());
  }

  async open(one) {
    this.id = one.id;
    this.count = 0;
    await this.camera.start();
    setText(find("camera-title"), `Pictures of ${one.name}`);
    setText(find("camera-count"), "Hold the button for several pictures.");
    setText(find("camera-problem"), "");
    find("camera").showModal();
  }

  async shoot() {
    const picture = await this.camera.frame();
    if (!picture) return;
    try {
      await this.send(this.id, picture);
      this.count += 1;
      setText(find("camera-count"), several(this.count, "picture"));
    } catch (error) {
      this.release();
      setText(find("camera-problem"), error.message);
    }
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
