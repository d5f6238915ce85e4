// The page: routing, sign-in and errors.

import { Problem, key } from "./api.js";
import { el, show, title } from "./dom.js";
import { jobPage } from "./job.js";
import { jobsPage } from "./jobs.js";

const view = document.getElementById("view");
const notice = document.getElementById("notice");
const health = document.getElementById("health");
const signOut = document.getElementById("sign-out");
let leave = new AbortController();

function fail(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.status === 401) {
    const reason = key.get() ? error.message : "";
    key.clear();
    signIn(reason);
    return;
  }
  notice.textContent = error instanceof Problem ? error.message : `The server cannot be reached: ${error}`;
  notice.hidden = false;
}

function signIn(reason) {
  leave.abort();
  signOut.hidden = true;
  title("Sign in");
  const secret = el("input", {
    id: "key", type: "password", autocomplete: "current-password", placeholder: "hifi_…",
    required: "", spellcheck: "false",
  });
  const form = el(
    "form",
    {
      class: "card sign-in",
      submit: (event) => {
        event.preventDefault();
        key.set(secret.value.trim());
        route();
      },
    },
    el("h1", {}, "Sign in"),
    el("p", { class: "muted" }, "The key stays in this tab and is forgotten when it closes."),
    el("label", { for: "key" }, "API key"),
    secret,
    el("p", { class: "error" }, reason),
    el("button", { class: "primary" }, "Sign in"),
  );
  show(view, form);
  secret.focus();
}

async function showHealth() {
  const state = await fetch("/readyz", { cache: "no-store" })
    .then((response) => response.json())
    .catch(() => ({ failing: ["server"] }));
  const away = [...(state.failing || []), ...(state.degraded || [])];
  health.textContent = away.length ? `missing: ${away.join(", ")}` : "all systems up";
  health.className = state.failing ? "bad" : away.length ? "warn" : "good";
}

function route() {
  leave.abort();
  leave = new AbortController();
  notice.hidden = true;
  title();
  show(view);
  signOut.hidden = !key.get();
  const page = { view, signal: leave.signal, fail, notice };
  const address = location.hash.slice(1) || "/";
  const job = address.match(/^\/jobs\/([^/]+)$/);
  if (job) jobPage(page, decodeURIComponent(job[1])).catch(fail);
  else jobsPage(page, new URLSearchParams(address.split("?")[1])).catch(fail);
}

signOut.addEventListener("click", () => {
  key.clear();
  location.hash = "#/";
  route();
});
window.addEventListener("hashchange", route);
route();
showHealth();
setInterval(() => document.hidden || showHealth(), 10000);
