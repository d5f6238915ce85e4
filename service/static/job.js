// The page of one job: live progress, curves, heads, events and downloads.

import { Problem, download, follow, get, post, remove } from "./api.js";
import { bars, curve, heatMap, report } from "./charts.js";
import { bytes, el, moment, number, seconds, show, title } from "./dom.js";
import { chip, duration, isFinished, progressBar, waited } from "./jobs.js";

const SHOWN_EVENTS = 200;
const LOSS = "loss"; // has an axis of its own: it is no share
const RELOADED = new Set(["status", "selection", "warning"]); // events that change the job
// The fields of a task that name its columns.
const INPUTS = ["text", "image", "tokens", "question", "context", "choices"];
const LABELS = ["label", "tags", "spans", "answers"];
const ACTIONS = {
  cancel: ["queued", "validating", "selecting", "training", "pausing", "paused"],
  pause: ["training"],
  resume: ["paused"],
};

function facts(pairs) {
  return el(
    "dl",
    {},
    pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

// A setting is a number, a text, none, or an object such as the weights of classes.
function setting(value) {
  return value !== null && typeof value === "object" ? JSON.stringify(value) : (value ?? "none");
}

function columns(task, fields) {
  return fields.flatMap((field) => task[field] ?? []);
}

function card(title, ...content) {
  return el("section", { class: "card" }, el("h2", {}, title), content);
}

// An address has a job's id, or its name if no other job has it.
async function find(reference, signal) {
  if (/^job_[a-z0-9]+$/.test(reference)) return reference;
  const { data } = await get(`/jobs?${new URLSearchParams({ name: reference, limit: 2 })}`, { signal });
  if (data.length === 1) return data[0].id;
  throw new Problem(404, { detail: `${data.length ? "Several jobs are" : "No job is"} named ${reference}.` });
}

export async function jobPage(page, reference) {
  const path = `/jobs/${await find(reference, page.signal)}`;
  const job = await get(path, { signal: page.signal });
  const live = new JobView(page, path, job);
  live.nameDataset().catch(page.fail);
  await follow(path, {
    signal: page.signal,
    onEvent: (event) => live.take(event),
    onProgress: (progress) => live.progress(progress),
    isOver: async () => isFinished(await live.reload()),
  });
}

class JobView {
  constructor(page, path, job) {
    this.page = page;
    this.path = path;
    const { dataset } = job.spec;
    this.dataset = typeof dataset === "string" ? dataset : JSON.stringify(dataset);
    this.losses = [];
    this.metrics = new Map();
    this.yardsticks = null;
    this.compared = el("div");
    this.classes = el("div");
    this.head = el("div");
    this.spec = el("div");
    this.curves = el("div", { class: "charts" }, el("p", { class: "muted" }, "No step yet."));
    this.heads = el("div", {}, el("p", { class: "muted" }, "Not selected yet."));
    this.files = el("div", {}, el("p", { class: "muted" }, "Available when the job has succeeded."));
    this.log = el("ol", { class: "log" });
    this.waiting = null;
    show(
      page.view,
      this.head,
      el(
        "div",
        { class: "grid" },
        el("div", {}, card("Training", this.curves, this.compared), card("Job", this.spec)),
        el("div", {}, card("Heads", this.heads), card("Downloads", this.files)),
      ),
      this.classes,
      card("Events", this.log),
    );
    this.draw(job);
  }

  // A data set that was deleted meanwhile keeps its id only.
  async nameDataset() {
    const { dataset } = this.job.spec;
    if (typeof dataset !== "string") return;
    const known = await get(`/datasets/${dataset}`, { signal: this.page.signal }).catch((error) => {
      if (error instanceof Problem && error.status === 404) return null;
      throw error;
    });
    if (!known?.name) return;
    this.dataset = `${known.name} (${dataset})`;
    this.drawSpec();
  }

  async reload() {
    const job = await get(this.path, { signal: this.page.signal });
    this.draw(job);
    return job;
  }

  draw(job) {
    this.job = job;
    this.drawHead();
    this.drawSpec();
    this.yardsticks = job.result?.yardsticks ?? this.yardsticks;
    this.drawComparison();
    if (job.result?.report) show(this.classes, card("Classes", report(job.result.report)));
    if (job.selection) this.showHeads();
    if (job.artifact) this.drawFiles();
  }

  drawHead() {
    const { job } = this;
    const buttons = Object.entries(ACTIONS)
      .filter(([, states]) => states.includes(job.status))
      .map(([action]) => el("button", { type: "button", click: () => this.act(action) }, action));
    if (isFinished(job)) {
      buttons.push(el("button", { type: "button", click: () => this.delete() }, "delete"));
    }
    title(job.name || job.id, job.status);
    this.bar = el("div", {}, isFinished(job) ? null : this.drawnProgress(job.progress));
    show(
      this.head,
      el("div", { class: "title" }, el("h1", {}, job.name || job.id), chip(job.status), buttons),
      el("p", { class: "muted" }, job.id),
      this.bar,
      job.error ? el("p", { class: "error" }, `${job.error.code}: ${job.error.message}`) : null,
      job.warnings.length
        ? el("ul", { class: "warnings" }, job.warnings.map(({ message }) => el("li", {}, message)))
        : null,
    );
  }

  drawnProgress(progress) {
    const left = progress.eta_seconds === null ? "" : `, about ${seconds(progress.eta_seconds)} left`;
    const bar = progressBar(progress);
    bar.lastChild.append(left);
    return bar;
  }

  drawSpec() {
    const { job } = this;
    const { spec, result, selection } = job;
    const task = spec.task ?? {};
    const settings = Object.entries(spec.training ?? {});
    const metrics = (of, prefix) => Object.entries(of ?? {}).map(([k, v]) => [prefix + k, number(v)]);
    const results = [...metrics(result?.metrics, ""), ...metrics(result?.test, "test ")];
    show(
      this.spec,
      facts([
        ["backbone", spec.model],
        ["data set", this.dataset],
        ["task", `${task.type ?? "–"}, ${columns(task, INPUTS).join(" + ")} → ${columns(task, LABELS).join(", ")}`],
        ["score", spec.score ?? "pagerank"],
        ["heads", `${spec.budget == null ? `k = ${spec.k}` : `budget ${spec.budget}`}, ξ = ${spec.xi}, d = ${spec.d}, ${spec.strategy}`],
        ["trained weights", selection ? `${number(selection.trainable_parameters)} (${(100 * selection.fraction).toFixed(2)} %)` : "–"],
        ["posted", moment(job.created_at)],
        ["waited", waited(job)],
        ["ran", duration(job)],
        ["trained", seconds(result?.train_seconds)],
        ["samples/s", number(result?.samples_per_second ?? null, 3)],
        ...results,
      ]),
      el("h3", {}, "Settings"),
      facts(settings.map(([name, value]) => [name.replaceAll("_", " "), setting(value)])),
    );
  }

  // The task's metric: of the simple models, and of the best step so far.
  drawComparison() {
    const metric = this.job.spec.task?.metric;
    const entry = (name, value) => (Number.isFinite(value) ? [{ name, value }] : []);
    const known = Object.entries(this.yardsticks ?? {}).flatMap(([name, all]) => entry(name, all?.[metric]));
    if (!known.length) return;
    const seen = (this.metrics.get(metric) ?? []).map(([, value]) => value);
    const tuned = this.job.result?.metrics[metric] ?? (seen.length ? Math.max(...seen) : null);
    show(this.compared, bars(metric, [...known, ...entry("tuned", tuned)]));
  }

  async showHeads() {
    if (this.hasHeads) return;
    this.hasHeads = true;
    try {
      show(this.heads, heatMap(await get(`${this.path}/heads`, { signal: this.page.signal })));
    } catch (error) {
      this.hasHeads = false;
      this.page.fail(error);
    }
  }

  drawFiles() {
    const entry = (name, path, size) => {
      const click = async (event) => {
        event.preventDefault();
        await download(path).catch(this.page.fail);
      };
      return el("li", {}, el("a", { href: path, click }, name), " ", el("span", { class: "muted" }, size));
    };
    const delta = `${this.path}/heads/delta`;
    const { encodings } = this.job.artifact;
    show(
      this.files,
      el(
        "ul",
        { class: "files" },
        ["float32", "bfloat16", "int8"]
          .filter((encoding) => encodings[encoding])
          .map((encoding) =>
            entry(`head delta, ${encoding}`, `${delta}?encoding=${encoding}`, bytes(encodings[encoding].bytes)),
          ),
        encodings.lora
          ? entry("PEFT adapter (LoRA)", `${this.path}/heads/lora`, bytes(encodings.lora.bytes))
          : null,
        entry("merged model", `${this.path}/merged`, "created on request"),
      ),
      el("p", { class: "hash" }, `sha256 ${this.job.artifact.sha256}`),
    );
  }

  take(event) {
    this.log.prepend(
      el("li", { class: event.level }, moment(event.created_at), " ", el("b", {}, event.type), " ", event.message),
    );
    while (this.log.childElementCount > SHOWN_EVENTS) this.log.lastChild.remove();
    if (event.type === "step" || event.type === "metrics") this.note(event);
    if (event.type === "yardsticks") {
      this.yardsticks = event.data;
      this.drawComparison();
    }
    // Many past events arrive at once: reload the job after the last of them.
    if (RELOADED.has(event.type)) {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.reload().catch(this.page.fail), 100);
    }
  }

  note({ type, data: { step, ...values } }) {
    if (type === "step") {
      if (Number.isFinite(values.loss)) this.losses.push([step, values.loss]);
    } else {
      for (const [name, value] of Object.entries(values)) {
        if (!Number.isFinite(value)) continue;
        if (!this.metrics.has(name)) this.metrics.set(name, []);
        this.metrics.get(name).push([step, value]);
      }
    }
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = null;
      const line = (name, points) => (points?.length ? [{ name, points }] : []);
      const losses = [...line("training", this.losses), ...line("validation", this.metrics.get(LOSS))];
      const others = [...this.metrics].filter(([name]) => name !== LOSS);
      const shares = others.flatMap(([name, points]) => line(name, points));
      show(
        this.curves,
        losses.length ? curve(LOSS, losses) : null,
        shares.length ? curve("validation", shares) : null,
      );
      this.drawComparison();
    });
  }

  progress(progress) {
    this.job.progress = progress;
    if (!isFinished(this.job)) show(this.bar, this.drawnProgress(progress));
  }

  async act(action) {
    try {
      this.draw(await post(`${this.path}/${action}`));
    } catch (error) {
      this.page.fail(error);
    }
  }

  async delete() {
    if (!confirm("Delete this job with its artifact and events?")) return;
    try {
      await remove(this.path);
      location.hash = "#/";
    } catch (error) {
      this.page.fail(error);
    }
  }
}
