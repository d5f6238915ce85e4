// The list of jobs, newest first, refreshed regularly.

import { get } from "./api.js";
import { el, moment, seconds, show, title } from "./dom.js";

const REFRESH = 2000;
const PAGE = 25;
const STATES = [
  "queued", "validating", "selecting", "training", "pausing", "paused", "cancelling",
  "succeeded", "failed", "cancelled",
];
const COUNTING = new Set(["probing", "selecting", "training"]); // phases whose step counts up
const FINISHED = new Set(["succeeded", "failed", "cancelled"]);

export const isFinished = (job) => FINISHED.has(job.status);

export const chip = (status) => el("span", { class: `chip ${status}` }, status);

export function progressBar(progress) {
  const percent = Math.round(100 * progress.fraction);
  const bar = el("progress", { max: "100", value: String(percent), title: `${percent} %` });
  const counts = COUNTING.has(progress.phase) && progress.total_steps;
  const count = counts ? `${progress.step ?? 0} / ${progress.total_steps}` : "";
  const phase = progress.phase ? `${progress.phase} ${count}` : "";
  return el("div", { class: "progress" }, bar, el("span", { class: "muted" }, phase));
}

export function waited(job) {
  const end = job.started_at ?? job.finished_at;
  return seconds(((end ? Date.parse(end) : Date.now()) - Date.parse(job.created_at)) / 1000);
}

export function duration(job) {
  if (!job.started_at) return "–";
  const end = job.finished_at ? Date.parse(job.finished_at) : Date.now();
  return seconds((end - Date.parse(job.started_at)) / 1000);
}

function row(job) {
  const metrics = Object.entries(job.result?.metrics ?? {});
  const best = metrics.length ? `${metrics[0][0]} ${Number(metrics[0][1]).toFixed(3)}` : "–";
  return el(
    "tr",
    {},
    el("td", {}, el("a", { href: `#/jobs/${job.id}` }, job.name || job.id)),
    el("td", {}, chip(job.status)),
    el("td", {}, isFinished(job) ? "" : progressBar(job.progress)),
    el("td", {}, job.spec.model),
    el("td", {}, job.spec.task?.type ?? "–"),
    el("td", {}, best),
    el("td", {}, duration(job)),
    el("td", {}, moment(job.created_at)),
  );
}

function filter(status) {
  const choose = (event) => {
    location.hash = event.target.value ? `#/?status=${event.target.value}` : "#/";
  };
  const options = ["", ...STATES].map((state) =>
    el("option", { value: state, selected: state === status ? "" : null }, state || "all states"),
  );
  return el("select", { change: choose, "aria-label": "state" }, options);
}

export async function jobsPage({ view, signal, fail, notice }, query) {
  const status = query.get("status") || "";
  const asked = new URLSearchParams({ limit: PAGE });
  for (const name of ["status", "after"]) if (query.get(name)) asked.set(name, query.get(name));
  const rows = el("tbody");
  const foot = el("p", { class: "foot" });
  const heads = ["Job", "State", "Progress", "Backbone", "Task", "Result", "Ran", "Posted"];
  const table = el(
    "table",
    {},
    el("thead", {}, el("tr", {}, heads.map((name) => el("th", {}, name)))),
    rows,
  );
  const draw = async () => {
    const page = await get(`/jobs?${asked}`, { signal });
    const next = new URLSearchParams({ status, after: page.last_id ?? "" });
    rows.replaceChildren(...page.data.map(row));
    show(
      foot,
      page.data.length ? null : el("span", { class: "muted" }, "No jobs here yet."),
      query.get("after") ? el("a", { href: `#/?${new URLSearchParams({ status })}` }, "Newest") : null,
      page.has_more ? el("a", { href: `#/?${next}` }, "Older") : null,
    );
    notice.hidden = true;
  };
  await draw();
  title("Jobs");
  show(view, el("div", { class: "title" }, el("h1", {}, "Jobs"), filter(status)), el("div", { class: "card wide" }, table), foot);
  const timer = setInterval(() => document.hidden || draw().catch(fail), REFRESH);
  signal.addEventListener("abort", () => clearInterval(timer));
}
