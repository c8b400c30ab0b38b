// The worklist: cases with their plans and jobs, uploads, and asking for a plan.

import { ask, attempt, byId, duration, el, say, when, whoAmI } from "/static/room.js";

const REFRESH_MS = 2000;
const OUTCOMES = { PASSED: "pass", FAILED: "fail", INCONCLUSIVE: "warn" };
const STATUSES = { APPROVED: "pass", REJECTED: "fail", SUPERSEDED: "", UNAPPROVED: "" };

const RUNNING = new Set(["queued", "running", "cancelling"]);

const me = await whoAmI();
const choices = await ask("GET", "/api/choices");
let shown = "";
let asking = null; // the case whose form is open

function chip(text, kind = "") {
  return el("span", { class: `chip ${kind}` }, text);
}

function plans(entry) {
  if (!entry.runs.length) return null;
  const rows = entry.runs.map((run) =>
    el("tr", {},
      el("td", {}, el("a", { href: `/review/${run.id}` }, `Version ${run.version}`)),
      el("td", {}, chip(`gate ${run.outcome.toLowerCase()}`, OUTCOMES[run.outcome])),
      el("td", {}, run.training ? chip("training", "warn") : chip(run.status.toLowerCase(), STATUSES[run.status])),
      el("td", {}, when(run.made_at)),
      el("td", {}, run.made_by, run.open_check && me.has("planner") ? checkAgain(run, entry) : null)));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...["Plan", "Gate", "State", "Made", "By"].map((t) => el("th", {}, t)))),
    el("tbody", {}, rows)));
}

/** The check of a plan that stayed undecided goes on as the next version. */
function checkAgain(run, entry) {
  const going = entry.jobs.some((job) => job.settings.check_again === run.id && RUNNING.has(job.state));
  return el("button", {
    type: "button", class: "second check-again", disabled: going,
    title: "Monte Carlo goes on from what it has; the next version has the verdict",
    onclick: (event) => attempt(async () => {
      await ask("POST", "/api/checks", { run_id: run.id });
      await refresh();
    }, event.target),
  }, "Check again");
}

function jobText(job) {
  if (job.state === "queued") return `waits, place ${job.place}`;
  if (job.state === "running") {
    const left = job.left_s === null ? "" : `, about ${duration(job.left_s)} left`;
    return `${job.stage || "starts"}${job.stage ? ` ${Math.round(100 * job.share)} %` : ""}${left}`;
  }
  return job.state;
}

function jobLine(job) {
  const over = job.state === "failed" || job.state === "cancelled";
  const cancel = !over && job.state !== "cancelling" && job.mine && el("button", {
    type: "button", class: "second",
    onclick: (event) => attempt(async () => {
      await ask("POST", `/api/jobs/${job.id}/cancel`);
      await refresh();
    }, event.target),
  }, "Cancel");
  return el("div", { class: "job" },
    el("div", { class: "row" },
      chip(job.state, job.state === "failed" ? "fail" : ""),
      el("span", { class: "grow" }, `${job.settings.check_again ? "check goes on: " : ""}${jobText(job)}; asked for by ${job.made_by}, ${when(job.made_at)}`),
      cancel || null),
    job.state === "running" ? el("progress", { max: 1, value: job.share, "aria-label": "share of the stage" }) : null,
    job.error ? el("p", { class: "quiet" }, job.error) : null);
}

function planForm(entry) {
  const goals = el("select", { name: "goals", required: true },
    choices.goals.map((g) => el("option", { value: g.name }, `${g.title} (${g.name})`)));
  const machine = el("select", { name: "machine" },
    choices.machines.map((name) => el("option", { value: name, selected: name === "generic_6mv" }, name)));
  const minutes = el("input", { type: "number", min: 0.1, max: 600, step: "any", placeholder: "as the sheet" });
  const prior = el("select", {}, el("option", { value: "goals" }, "the goals"), el("option", { value: "diffusion" }, "goals and predicted dose"));
  return el("form", {
    class: "row end",
    onsubmit: (event) => {
      event.preventDefault();
      attempt(async () => {
        const body = { case_id: entry.id, goals: goals.value, machine: machine.value, prior: prior.value };
        if (minutes.value) body.search_minutes = Number(minutes.value);
        await ask("POST", "/api/jobs", body);
        asking = null;
        await refresh(true);
      }, event.submitter);
    },
  },
    el("label", { class: "grow" }, "Goal sheet", goals),
    el("label", {}, "Machine", machine),
    el("label", {}, "Driven by", prior),
    el("label", {}, "Search, minutes", minutes),
    el("button", {}, "Plan"),
    el("button", { type: "button", class: "second", onclick: () => { asking = null; refresh(true); } }, "Close"));
}

function caseBox(entry) {
  const open = asking === entry.id;
  return el("section", { class: "panel case" },
    el("div", { class: "row" },
      el("div", {}, el("h2", {}, entry.label), el("span", { class: "quiet" }, `case ${entry.id.slice(0, 8)}, since ${when(entry.made_at)}`)),
      me.has("planner") && !open
        ? el("button", { type: "button", onclick: () => { asking = entry.id; refresh(true); } }, "New plan")
        : null),
    open ? planForm(entry) : null,
    plans(entry),
    entry.jobs.map(jobLine));
}

function draw(list) {
  const boxes = list.cases.map(caseBox);
  byId("cases").replaceChildren(...(boxes.length ? boxes : [el("p", { class: "quiet" },
    "There is no case yet. Upload one, or put a folder of DICOM files into the folder cases of the data folder.")]));
}

async function refresh(force = false) {
  const list = await ask("GET", "/api/worklist");
  const text = JSON.stringify(list);
  if (!force && (text === shown || asking)) return; // a form that is being filled in stays
  shown = text;
  draw(list);
}

async function upload(form) {
  const files = [...form.elements.files.files, ...form.elements.folder.files];
  if (!files.length) throw new Error("choose files, a zip or a folder first");
  const bar = byId("sent");
  const total = files.reduce((sum, file) => sum + file.size, 0) || 1;
  const { id } = await ask("POST", "/api/uploads", { label: form.elements.label.value });
  bar.hidden = false;
  let sent = 0;
  try {
    for (const file of files) {
      await ask("PUT", `/api/uploads/${id}/files`, file, { "Content-Type": "application/octet-stream" });
      sent += file.size;
      bar.value = sent / total;
      say(`${Math.round((100 * sent) / total)} % of ${files.length} files sent`);
    }
    await ask("POST", `/api/uploads/${id}/case`);
  } catch (error) {
    await ask("DELETE", `/api/uploads/${id}`).catch(() => {});
    throw error;
  } finally {
    bar.hidden = true;
  }
  form.reset();
  say("The case is there.");
  await refresh();
}

byId("upload").hidden = !me.has("planner");
byId("upload").addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter;
  button.disabled = true;
  say("");
  upload(event.target)
    .catch((error) => say(error.message, true))
    .finally(() => { button.disabled = false; });
});

await attempt(() => refresh());
setInterval(() => { if (!document.hidden) refresh().catch(() => {}); }, REFRESH_MS);
