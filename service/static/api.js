// The HTTP API: JSON calls, a job's live events, and downloads, all with the caller's key.

const KEY = "hifi-key";

export class Problem extends Error {
  constructor(status, document) {
    super(document.detail || `the server answered ${status}`);
    this.status = status;
    this.code = document.code;
  }
}

// The key is kept until the tab closes. It is sent as a header and never as a cookie, so that other
// sites cannot make this browser use it.
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (secret) => sessionStorage.setItem(KEY, secret),
  clear: () => sessionStorage.removeItem(KEY),
};

async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  throw new Problem(response.status, await response.json().catch(() => ({})));
}

export async function get(path, options) {
  return (await ask(path, options)).json();
}

export async function post(path) {
  return (await ask(path, { method: "POST" })).json();
}

export async function remove(path) {
  await ask(path, { method: "DELETE" });
}

// Read server-sent events as messages {event, id, data}. EventSource cannot send a key.
async function* messages(path, lastId, signal) {
  const headers = { Accept: "text/event-stream" };
  if (lastId) headers["Last-Event-ID"] = lastId;
  const response = await ask(path, { headers, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const message = { event: "message", id: null, data: "" };
      for (const line of block.split("\n")) {
        const [, field, text] = line.match(/^([^:]*):? ?(.*)$/);
        if (field === "data") message.data += text;
        else if (field === "event" || field === "id") message[field] = text;
      }
      if (message.data) yield { ...message, data: JSON.parse(message.data) };
    }
  }
}

const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

// Follow a job to its end, with as many connections as needed.
export async function follow(job, { signal, onEvent, onProgress, isOver }) {
  let lastId = null;
  for (let failures = 0; !signal.aborted; ) {
    try {
      for await (const message of messages(`${job}/events`, lastId, signal)) {
        failures = 0;
        if (message.id) lastId = message.id;
        if (message.event === "progress") onProgress(message.data);
        else onEvent(message.data);
      }
      if (await isOver()) return;
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status < 500) throw error;
    }
    await pause(Math.min(500 * 2 ** failures, 10000), signal);
    failures += 1;
  }
}

// Save a file. Without a key the browser downloads it directly; with a key it is fetched first.
export async function download(path) {
  const link = document.createElement("a");
  link.download = "";
  link.href = path;
  if (key.get()) {
    const response = await ask(path, { headers: { Accept: "*/*" } });
    const disposition = response.headers.get("Content-Disposition") || "";
    const encoded = disposition.match(/filename\*=UTF-8''([^;]+)/);
    const plain = disposition.match(/filename="([^"]+)"/);
    link.download = encoded ? decodeURIComponent(encoded[1]) : plain ? plain[1] : "download";
    link.href = URL.createObjectURL(await response.blob());
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
  link.click();
}
