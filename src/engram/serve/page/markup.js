// Elements, and words for numbers.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const find = (id) => document.getElementById(id);

// Changes a text only where it is another, so that a screen reader says it once.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Puts the focus somewhere near `place` if what had it is gone. What was disabled a moment ago is
// gone too: browsers take the focus from it only when they draw the page next.
export function keepFocus(place, ...candidates) {
  const had = document.activeElement;
  if (had && had !== document.body && !had.disabled) return;
  const next = candidates.find((element) => element && !element.disabled);
  (next ?? place.closest("section").querySelector("h2")).focus({ preventScroll: true });
}

// Lets `container` show `items`, keeping the elements of those that stay. If the focus was in one
// that goes, it moves to the next one.
export function keyed(container, items, key, create, update) {
  const there = new Map([...container.children].map((child) => [child.dataset.key, child]));
  const stay = new Set(items.map((item) => String(key(item))));
  let focused = -1;
  [...container.children].forEach((child, index) => {
    if (stay.has(child.dataset.key)) return;
    if (child.contains(document.activeElement)) focused = index;
    child.remove();
  });
  items.forEach((item, index) => {
    const name = String(key(item));
    let element = there.get(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    if (container.children[index] !== element) {
      container.insertBefore(element, container.children[index] ?? null);
    }
    update(element, item);
  });
  if (focused >= 0) {
    const near = container.children[Math.min(focused, container.children.length - 1)];
    keepFocus(container, near?.matches("button") ? near : near?.querySelector("button, input"));
  }
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const units = ["kB", "MB", "GB"];
  let value = count;
  let unit = "B";
  while (value >= 999.5 && units.length) {
    value /= 1000;
    unit = units.shift();
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${unit}`;
}

export function seconds(count) {
  if (count < 1.5) return "a second";
  if (count < 90) return `${Math.round(count)} seconds`;
  if (count < 5400) return `${Math.round(count / 60)} minutes`;
  return `${(count / 3600).toFixed(1)} hours`;
}

export function ago(moment) {
  const passed = (Date.now() - new Date(moment)) / 1000;
  if (passed < 60) return "just now";
  if (passed < 86400) return `${seconds(passed)} ago`.replace(/^1 minutes/, "1 minute");
  return new Date(moment).toLocaleDateString(undefined, { dateStyle: "medium" });
}

export const several = (count, one, many = `${one}s`) =>
  `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

export const percent = (value) => (value === null ? "–" : `${value.toFixed(0)} %`);

// Names in a row; of more than `most`, the first ones and how many more there are.
export function named(names, most) {
  if (names.length <= most) return names.join(", ");
  return `${names.slice(0, most - 1).join(", ")} and ${names.length - most + 1} more`;
}
