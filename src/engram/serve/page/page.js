// The page: asks for the model's state, and lets every part show it.

import { Ask } from "/page/ask.js";
import { find, keepFocus, make, named, setText, several } from "/page/markup.js";
import { keeping, showChanges, showMemory, showVersions } from "/page/model.js";
import { NO_ANSWER, NeedsToken, openSession, server } from "/page/server.js";
import { Teach } from "/page/teach.js";

const WHILE_LEARNING = 400;
const AT_REST = 4000;

let timer = null;
let shownVersions = null;

// Does something that may fail, says why if it does, and shows what came of it.
async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error instanceof NeedsToken) askForToken();
    else say(error.message);
    return undefined;
  }
}

// Says something once, however often it happens, until it is dismissed or over.
function say(text) {
  if (find("messages").dataset.text === text) return;
  find("messages").dataset.text = text;
  const message = make("p", {}, text);
  const close = make("button", { type: "button", "aria-label": "Dismiss", onclick: () => dismiss(message) }, "\u2715");
  message.append(close);
  find("messages").replaceChildren(message);
}

function askForToken() {
  clearTimeout(timer);
  if (!find("token").open) find("token").showModal();
}

// Asks for the token, and goes on when it was given, or not.
function untilOpened() {
  askForToken();
  return new Promise((goOn) => find("token").addEventListener("close", goOn, { once: true }));
}

async function enterToken(event) {
  event.preventDefault();
  const problem = find("token-problem");
  try {
    if (await openSession(find("token-value").value)) find("token").close();
    else problem.textContent = "That is not the token.";
  } catch (error) {
    problem.textContent = error.message;
  }
}

function dismiss(message) {
  message.remove();
  // That the server is gone is found again and again, and was understood.
  if (find("messages").dataset.text !== NO_ANSWER) delete find("messages").dataset.text;
}

function saidNoMore(text) {
  if (find("messages").dataset.text !== text) return;
  delete find("messages").dataset.text;
  find("messages").replaceChildren();
}

async function refresh() {
  clearTimeout(timer);
  const state = await attempt(server.state);
  if (state) {
    saidNoMore(NO_ANSWER);
    await show(state);
  }
  if (!find("token").open) {
    timer = setTimeout(refresh, state?.job?.state === "running" ? WHILE_LEARNING : AT_REST);
  }
}

async function show(state) {
  document.title = `${state.name} · engram`;
  setText(find("model-name"), state.name);
  setText(find("summary"), summary(state));
  setText(find("kept"), keeping(state.memory));
  for (const place of document.querySelectorAll(".once-taught")) place.hidden = !state.version;
  ask.show(state);
  teach.show(state);
  showMemory(find("memory"), state);
  showChanges(find("changes"), state);
  const stamp = `${state.version} ${state.job?.id} ${state.job?.state}`;
  if (stamp !== shownVersions) {
    const versions = await attempt(server.versions);
    if (versions) {
      showVersions(find("versions"), versions, state, restore);
      shownVersions = stamp;
    }
  }
}

function summary(state) {
  if (!state.version) return "knows nothing yet";
  const names = state.classes.map((one) => one.name);
  return `knows ${several(names.length, "class", "classes")}: ${named(names, 6)}`;
}

async function restore(version) {
  await attempt(() => server.restore(version));
  shownVersions = null;
  await refresh();
  keepFocus(find("versions"));
}

const ask = new Ask(attempt, say);
const teach = new Teach(attempt, refresh, say, untilOpened);

find("token-form").addEventListener("submit", enterToken);
find("token").addEventListener("close", refresh);
// Pictures that are dropped beside a place for them must not replace the page.
for (const kind of ["dragover", "drop"]) {
  window.addEventListener(kind, (event) => event.preventDefault());
}

// An address with the token, opened anew or in a page that is open already.
async function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", location.pathname);
    if (await attempt(() => openSession(given))) find("token").close();
  }
  await refresh();
}

window.addEventListener("hashchange", takeToken);
takeToken();
