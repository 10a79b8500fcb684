// What was dropped or chosen: pictures, and folders of pictures by class.

const PICTURE = /\.(jpe?g|png|webp|bmp|gif|tiff?|ppm)$/i;
const isPicture = (file) => file.type.startsWith("image/") || PICTURE.test(file.name);

export const picturesIn = (files) => [...files].filter(isPicture);

// A name as the server keeps it.
export const className = (name) => name.trim().split(/\s+/).join(" ").normalize("NFC");

function addTo(classes, name, files) {
  const key = className(name);
  if (files.length) classes.set(key, [...(classes.get(key) ?? []), ...files]);
}

// From how many folders with pictures on, a folder that has pictures of its own too holds classes and
// is none itself: photos/cover.jpg beside photos/cat and photos/dog.
const SEVERAL = 2;

// Files of an input for folders: a Map from class to files, and those that lie beside the classes. The
// class of photos/cat/1.jpg is cat, and so is that of cat/1.jpg where cat itself was chosen.
export function classesIn(files) {
  const found = picturesIn(files).map((file) => [file.webkitRelativePath.split("/"), file]);
  const own = found.filter(([words]) => words.length === 2);
  const below = new Set(found.filter(([words]) => words.length > 2).map(([words]) => words[1]));
  const isClass = own.length > 0 && below.size < SEVERAL;
  const classes = new Map();
  for (const [words, file] of found) {
    if (isClass) addTo(classes, words[0], [file]);
    else if (words.length > 2) addTo(classes, words[1], [file]);
  }
  return { classes, strays: isClass ? [] : own.map(([, file]) => file) };
}

// What a drop brings: single pictures, a Map from class to files, pictures that lie beside the classes,
// and how many single files are no pictures.
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = await Promise.all(entries.filter((entry) => entry.isFile).map(fileOf));
  const pictures = picturesIn(files);
  const classes = new Map();
  const strays = [];
  for (const folder of entries.filter((entry) => entry.isDirectory)) {
    const inside = await childrenOf(folder);
    const own = picturesIn(await Promise.all(inside.filter((entry) => entry.isFile).map(fileOf)));
    const below = new Map();
    for (const one of inside.filter((entry) => entry.isDirectory)) {
      addTo(below, one.name, picturesIn(await filesBelow(one)));
    }
    if (own.length && below.size < SEVERAL) {
      addTo(classes, folder.name, [...own, ...[...below.values()].flat()]);
    } else {
      for (const [name, found] of below) addTo(classes, name, found);
      strays.push(...own);
    }
  }
  return { pictures, classes, strays, others: files.length - pictures.length };
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
