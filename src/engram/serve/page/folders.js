// What was dropped or chosen: pictures, and folders of pictures by class.

const isPicture = (file) => file.type.startsWith("image/") || /\.(jpe?g|png|webp|bmp|gif|tiff?|ppm)$/i.test(file.name);

// An input's files, or those of a drop without folders.
export const picturesIn = (files) => [...files].filter(isPicture);

// Files of an input for folders, as a Map from class to files. The class of photos/cat/1.jpg is cat,
// and so is that of cat/1.jpg where there are no folders below.
export function classesIn(files) {
  const found = picturesIn(files).map((file) => [file.webkitRelativePath.split("/"), file]);
  const depth = found.some(([words]) => words.length > 2) ? 1 : 0;
  const classes = new Map();
  for (const [words, file] of found.filter(([words]) => words.length > depth + 1)) {
    classes.set(words[depth], [...(classes.get(words[depth]) ?? []), file]);
  }
  return classes;
}

// What a drop brings: single pictures, and a Map from class to files.
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folders = entries.filter((entry) => entry.isDirectory);
  const classes = new Map();
  const pictures = picturesIn(await Promise.all(entries.filter((entry) => entry.isFile).map(fileOf)));
  for (const folder of folders) {
    const inside = await childrenOf(folder);
    const below = inside.filter((entry) => entry.isDirectory);
    for (const one of below.length ? below : [folder]) {
      classes.set(one.name, picturesIn(await filesBelow(one)));
    }
  }
  return { pictures, classes };
}

const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

async function childrenOf(folder) {
  const reader = folder.createReader();
  const found = [];
  // A reader gives a hundred at a time, and none when it is done.
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...some);
  }
}

async function filesBelow(folder) {
  const inside = await childrenOf(folder);
  const files = await Promise.all(inside.filter((entry) => entry.isFile).map(fileOf));
  const deeper = await Promise.all(inside.filter((entry) => entry.isDirectory).map(filesBelow));
  return [...files, ...deeper.flat()];
}
