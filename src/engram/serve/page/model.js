// What the model remembers, what it forgot, and its versions.

import { ago, bytes, keepFocus, keyed, make, named, percent, several } from "/page/markup.js";
import { server } from "/page/server.js";

const SHOWN = 12;

// Replaces what is shown only where it changed, so that nothing loses the focus meanwhile.
function unless(place, stamp, parts) {
  const key = JSON.stringify(stamp);
  if (place.dataset.stamp === key) return;
  place.dataset.stamp = key;
  place.replaceChildren(...parts());
}

// What is kept of pictures that are taught.
export function keeping(memory) {
  if (parseFloat(memory.budget) === 0) return "It keeps no copies of your pictures.";
  const until = memory.budget_bytes === null ? atMost(memory.budget) : `all of them until they fill ${bytes(memory.budget_bytes)}, then fewer of each class`;
  return `It keeps small copies of your pictures, ${until}; downloaded versions contain them.`;
}

// A budget that counts pictures, as --budget takes it: 2000, 20/class or all.
function atMost(budget) {
  if (budget === "all") return "without a limit";
  const [count, each] = budget.split("/");
  return `at most ${Number(count).toLocaleString("en")}${each ? " of each class" : ""}`;
}

export function showMemory(place, { version, classes, memory }) {
  unless(place, [version, memory], () => {
    const share = memory.budget_bytes ? (100 * memory.bytes) / memory.budget_bytes : null;
    const of = memory.budget_bytes === null ? `(${atMost(memory.budget)})` : `of ${bytes(memory.budget_bytes)}`;
    const text = `${several(memory.exemplars, "small copy", "small copies")} of your pictures, and a few to check itself with, using ${bytes(memory.bytes)} ${of}.`;
    const bar = make("div", { className: "meter", role: "img", "aria-label": `${share?.toFixed(0)} % of the memory is used` }, make("i"));
    if (share !== null) bar.firstChild.style.width = `${share}%`;
    return [make("p", {}, text), share === null ? "" : bar, ...classes.map((one, label) => keptRow(version, one, label))];
  });
}

function keptRow(version, one, label) {
  const thumbs = make("div", { className: "thumbs" });
  const showTo = (count) => {
    const ranks = Array.from({ length: Math.min(count, one.exemplars) }, (_, rank) => rank);
    keyed(thumbs, ranks, (rank) => rank, (rank) => make("img", {
      src: server.exemplarAddress(version, label, rank), loading: "lazy", width: 54, height: 54,
      alt: `${one.name}, picture ${rank + 1}`,
    }), () => {});
    if (one.exemplars > count) {
      thumbs.append(make("button", { type: "button", className: "quiet", "aria-label": `Show all ${one.exemplars} pictures of ${one.name}`, onclick: () => {
        showTo(one.exemplars);
        keepFocus(thumbs);
      } }, `all ${one.exemplars}`));
    }
  };
  // A button in the place of one picture would hide what has room.
  showTo(one.exemplars === SHOWN + 1 ? SHOWN + 1 : SHOWN);
  return make("div", { className: "kept" },
    make("h3", {}, one.name, make("small", {}, `${several(one.exemplars, "picture")}, ${bytes(one.bytes)}`)), thumbs);
}

export function showChanges(place, { version, classes, verdict }) {
  unless(place, [version, classes, verdict], () => {
    const rows = classes.map((one) => make("tr", {},
      make("th", { scope: "row" }, one.name),
      make("td", { className: "number" }, one.new ? "new" : percent(one.before)),
      make("td", { className: "number" }, one.measured_on ? percent(one.after) : "not measured"),
      changeCell(one),
      make("td", { className: "number" }, one.measured_on.toLocaleString("en"))));
    const header = ["Class", "Before", "After", "Change", "Pictures"].map((text, index) =>
      make("th", { scope: "col", className: index ? "number" : "" }, text));
    return [
      make("p", {}, verdict),
      make("p", { className: "note" }, "Right answers on pictures of each class that were set aside as they came, and never learnt from. Classes of fewer than five pictures have none."),
      make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Accuracy by class" }, make("table", {}, make("thead", {}, make("tr", {}, header)), make("tbody", {}, rows))),
    ];
  });
}

function changeCell(one) {
  if (one.before === null || one.after === null) return make("td", { className: "number" }, "–");
  const change = one.after - one.before;
  const kind = change < -0.5 ? "lost" : change > 0.5 ? "gained" : "";
  const text = change > 0.5 ? `+${change.toFixed(0)}` : change < -0.5 ? `−${(-change).toFixed(0)}` : "0";
  return make("td", { className: `number ${kind}` }, text);
}

export function showVersions(place, versions, state, restore) {
  const busy = state.job?.state === "running";
  place.replaceChildren(...versions.map((one) => {
    const back = one.current
      ? make("span", { className: "badge" }, "in use")
      : make("button", { type: "button", disabled: busy, onclick: () => restore(one.number), "aria-label": `Go back to version ${one.number}` }, "Go back to this");
    return make("li", { "aria-label": `Version ${one.number}` },
      make("div", {},
        make("h3", {}, `Version ${one.number}: ${one.learnt.length ? named(one.learnt, 4) : "more pictures"}`),
        make("p", { className: "note" },
          make("time", { dateTime: one.created, title: new Date(one.created).toLocaleString() }, ago(one.created)),
          ` · ${several(one.classes, "class", "classes")}, ${bytes(one.bytes)} of pictures · ${bytes(one.disk_bytes)} on disk`)),
      make("div", { className: "row" },
        make("a", { href: server.downloadAddress(one.number), download: "", "aria-label": `Download version ${one.number}` }, "Download"), back));
  }));
}
