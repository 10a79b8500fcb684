// Asks the server. What it refuses becomes an Error with its message.

export class NeedsToken extends Error {}

export const NO_ANSWER = "The server does not answer. Is it still running?";

async function ask(method, path, body, type = "application/json") {
  const response = await fetch(`/api/${path}`, {
    method,
    body,
    headers: body === undefined ? {} : { "Content-Type": type },
  }).catch(() => {
    throw new Error(NO_ANSWER);
  });
  if (response.status === 401) throw new NeedsToken();
  const kind = response.headers.get("content-type") ?? "";
  if (response.ok && kind.startsWith("image/")) return response.blob();
  const text = await response.text();
  // An answer without content may still say that it is JSON.
  const answer = text && kind.includes("json") ? JSON.parse(text) : {};
  if (!response.ok) throw new Error(answer.message ?? `The server answered ${response.status}.`);
  return answer;
}

const name = (text) => JSON.stringify({ name: text });
const picture = (blob) => [blob, blob.type || "application/octet-stream"];

export const server = {
  state: () => ask("GET", "state"),
  versions: () => ask("GET", "versions"),
  predict: (blob) => ask("POST", "predict?top=5", ...picture(blob)),
  addClass: (text) => ask("POST", "classes", name(text)),
  renameClass: (id, text) => ask("PATCH", `classes/${id}`, name(text)),
  removeClass: (id) => ask("DELETE", `classes/${id}`),
  addPicture: (id, blob) => ask("POST", `classes/${id}/pictures`, ...picture(blob)),
  picture: (id) => ask("GET", `pictures/${id}`),
  removePicture: (id) => ask("DELETE", `pictures/${id}`),
  learn: () => ask("POST", "jobs"),
  cancel: (id) => ask("DELETE", `jobs/${id}`),
  restore: (version) => ask("POST", `versions/${version}/restore`),
  pictureAddress: (id) => `/api/pictures/${id}`,
  exemplarAddress: (version, label, rank) => `/api/versions/${version}/exemplars/${label}/${rank}`,
  downloadAddress: (version) => `/api/versions/${version}/model.zip`,
};

// The token becomes a cookie, since pictures are fetched by the browser itself.
export async function openSession(token) {
  if (!/^[ -~]+$/.test(token)) return false;
  const response = await fetch("/api/session", {
    method: "POST",
    headers: { Authorization: `Bearer ${token}` },
  }).catch(() => {
    throw new Error(NO_ANSWER);
  });
  return response.ok;
}
