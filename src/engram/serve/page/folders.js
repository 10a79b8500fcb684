// What was dropped or chosen: pictures, and folders of pictures by class.

import { several } from "/page/markup.js";

const PICTURE = /\.(jpe?g|png|webp|avif|hei[cf]|hif|bmp|gif|tiff?|ppm)$/i;
const isPicture = (file) => !isHidden(file) && (file.type.startsWith("image/") || PICTURE.test(file.name));

export const picturesIn = (files) => [...files].filter(isPicture);

// A name as the server keeps it.
export const className = (name) => name.trim().split(/\s+/).join(" ").normalize("NFC");

function addTo(classes, name, file) {
  const key = className(name);
  if (!classes.has(key)) classes.set(key, []);
  classes.get(key).push(file);
}

// Folders of a data set whose classes are in them.
const PARTS = ["train", "training", "test", "testing", "val", "valid", "validation", "eval"];

// From how many folders with pictures on, a folder that has pictures of its own too holds classes and
// is none itself: photos/cover.jpg beside photos/cat and photos/dog.
const SEVERAL = 2;

// Files of an input for folders, by class. The class of photos/cat/1.jpg is cat, and so is that of
// cat/1.jpg where cat itself was chosen.
export function classesIn(files) {
  const found = [...files].map((file) => [file.webkitRelativePath.split("/"), file]).filter(isOpen);
  return { ...byClass([found.filter(hasPicture)]), others: countOthers(found.map(([, file]) => file)) };
}

// What a drop brings: single pictures, those of folders by class, and how many files are no pictures.
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = await Promise.all(entries.filter((entry) => entry.isFile).map(fileOf));
  const folders = entries.filter((entry) => entry.isDirectory);
  const found = await Promise.all(folders.map((folder) => filesBelow(folder)));
  const others = countOthers([...files, ...found.flat().map(([, file]) => file)]);
  return { pictures: picturesIn(files), ...byClass(found.map((one) => one.filter(hasPicture))), others };
}

const hasPicture = ([, file]) => isPicture(file);

// Folders that file servers and archives put beside pictures, with smaller copies or none.
const UNSEEN = ["@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found"];
const isUnseen = (folder) => folder.startsWith(".") || UNSEEN.includes(folder.toLowerCase());

// Small copies of pictures lie in hidden folders; the one that was chosen may be hidden itself.
const isOpen = ([words]) => !words.slice(1, -1).some(isUnseen);

// What programs hide beside pictures is nothing that anybody would miss.
const isHidden = (file) => /^(\.|Thumbs\.db$|desktop\.ini$)/i.test(file.name);

const countOthers = (files) => [...files].filter((file) => !isPicture(file) && !isHidden(file)).length;

export const leftOut = (others) =>
  others ? `${several(others, "file is", "files are")} left out: not JPEG, PNG, HEIC, WebP, AVIF, GIF, BMP or TIFF.` : "";

// Of folders, each a list of pictures with the words of their paths: a Map from class to files, those
// that lie beside the classes, and whether these are parts of a data set and no classes.
function byClass(folders) {
  const classes = new Map();
  const strays = [];
  for (const found of folders) {
    const own = found.filter(([words]) => words.length === 2);
    const below = new Set(found.filter(([words]) => words.length > 2).map(([words]) => words[1]));
    const isClass = own.length > 0 && below.size < SEVERAL;
    for (const [words, file] of found) {
      if (isClass) addTo(classes, words[0], file);
      else if (words.length > 2) addTo(classes, words[1], file);
      else strays.push(file);
    }
  }
  const deep = folders.flat().some(([words]) => words[1] === "train" && words.length > 3);
  const areParts = deep && [...classes.keys()].every((name) => PARTS.includes(name.toLowerCase()));
  return { classes, strays, areParts };
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

async function filesBelow(folder, above = []) {
  const words = [...above, folder.name];
  const inside = await childrenOf(folder);
  const files = await Promise.all(inside.filter((entry) => entry.isFile).map(fileOf));
  const deeper = inside.filter((entry) => entry.isDirectory && !isUnseen(entry.name));
  const found = await Promise.all(deeper.map((one) => filesBelow(one, words)));
  const own = files.map((file) => [[...words, file.name], file]);
  return [...own, ...found.flat()];
}
