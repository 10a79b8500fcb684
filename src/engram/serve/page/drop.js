// A place where something can be dropped.

export function acceptDrops(place, take) {
  let inside = 0;
  const mark = (change) => {
    inside = Math.max(0, inside + change);
    place.classList.toggle("over", inside > 0);
  };
  place.addEventListener("dragenter", () => mark(1));
  place.addEventListener("dragleave", () => mark(-1));
  place.addEventListener("dragover", (event) => event.preventDefault());
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    mark(-inside);
    take(event.dataTransfer);
  });
}
