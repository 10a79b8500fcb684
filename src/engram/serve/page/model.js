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

export function showMemory(place, { version, classes, memory }) {
  unless(place, [version, memory], () => {
    const share = memory.budget_bytes ? (100 * memory.bytes) / memory.budget_bytes : null;
    const of = memory.budget_bytes ? `of at most ${bytes(memory.budget_bytes)}` : `(at most ${memory.budget} pictures)`;
    const text = `${several(memory.exemplars, "small copy", "small copies")} of your pictures, and a few to check itself with, in ${bytes(memory.bytes)} ${of}.`;
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
      thumbs.append(make("button", { type: "button", className: "quiet", onclick: () => {
        showTo(one.exemplars);
        keepFocus(thumbs);
      } }, `all ${one.exemplars}`));
    }
  };
  showTo(SHOWN);
  return make("div", { className: "kept" },
    make("h3", {}, one.name, make("small", {}, `${several(one.exemplars, "picture")}, ${bytes(one.bytes)}`)), thumbs);
}

export function showChanges(place, { version, classes }) {
  unless(place, [version, classes], () => {
    const known = classes.filter((one) => one.before !== null && one.after !== null);
    const rows = classes.map((one) => make("tr", {},
      make("th", { scope: "row" }, one.name),
      make("td", { className: "number" }, one.new ? "new" : percent(one.before)),
      make("td", { className: "number" }, one.measured_on ? percent(one.after) : "not measured"),
      changeCell(one),
      make("td", { className: "number" }, one.measured_on.toLocaleString("en"))));
    const header = ["Class", "Before", "After", "Change", "Pictures"].map((text, index) =>
      make("th", { scope: "col", className: index ? "number" : "" }, text));
    return [
      make("p", {}, verdict(known, classes)),
      make("p", { className: "note" }, "Right answers on pictures of each class that were set aside as they came, and never learnt from. Classes of fewer than five pictures have none."),
      make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Accuracy by class" }, make("table", {}, make("thead", {}, make("tr", {}, header)), make("tbody", {}, rows))),
    ];
  });
}

function verdict(known, classes) {
  if (classes.every((one) => one.new)) return "These are its first classes: there was nothing to forget.";
  if (!known.length) return "That cannot be told: no class that it knew before has pictures to measure it on.";
  const lost = known.filter((one) => one.before - one.after > 0.5).sort((a, b) => b.before - b.after - (a.before - a.after));
  if (!lost.length) return `Nothing: all ${several(known.length, "class", "classes")} that it knew before are recognised as well as they were.`;
  const worst = lost[0];
  return `${several(lost.length, "class", "classes")} of ${known.length} lost something; most of all ${worst.name}, ${(worst.before - worst.after).toFixed(0)} points.`;
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
          ` · ${several(one.classes, "class", "classes")}, ${bytes(one.bytes)} of pictures`)),
      make("div", { className: "row" },
        make("a", { href: server.downloadAddress(one.number), download: "", title: "With the small copies of pictures that it keeps", "aria-label": `Download version ${one.number}` }, "Download"), back));
  }));
}
