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

// Files of an input for folders, as a Map from class to files. The class of photos/cat/1.jpg is cat,
// and so is that of cat/1.jpg where there are no folders below.
export function classesIn(files) {
  const found = picturesIn(files).map((file) => [file.webkitRelativePath.split("/"), file]);
  const depth = found.some(([words]) => words.length === 2) ? 0 : 1;
  const classes = new Map();
  for (const [words, file] of found) addTo(classes, words[depth], [file]);
  return classes;
}

// What a drop brings: single pictures, a Map from class to files, and how many files are neither.
// A folder that has pictures of its own is a class; else each folder in it is one.
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = await Promise.all(entries.filter((entry) => entry.isFile).map(fileOf));
  const pictures = picturesIn(files);
  const classes = new Map();
  for (const folder of entries.filter((entry) => entry.isDirectory)) {
    const inside = await childrenOf(folder);
    const own = await Promise.all(inside.filter((entry) => entry.isFile).map(fileOf));
    const isClass = picturesIn(own).length > 0;
    const below = isClass ? [folder] : inside.filter((entry) => entry.isDirectory);
    for (const one of below) addTo(classes, one.name, picturesIn(await filesBelow(one)));
  }
  return { pictures, classes, others: files.length - pictures.length };
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
