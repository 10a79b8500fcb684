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

// Lets `container` show `items`, keeping the elements of those that stay.
export function keyed(container, items, key, create, update) {
  const there = new Map([...container.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const name = String(key(item));
    let element = there.get(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    there.delete(name);
    if (container.children[index] !== element) {
      container.insertBefore(element, container.children[index] ?? null);
    }
    update(element, item);
  });
  for (const gone of there.values()) gone.remove();
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
