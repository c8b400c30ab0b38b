// One plan: the viewer at the left, at the right the checklist, the decision and what was decided before.

import { ask, attempt, byId, duration, el, say, when, whoAmI } from "/static/room.js";
import { seenFor, seenOnScreen } from "/static/view/seen.js";

const run = location.pathname.split("/").pop();
const path = `/api/reviews/${run}`;
const NAMES = { goals: "goals", dvh: "histograms", difference: "difference of the doses", complexity: "complexity", report: "report" };
const GATES = { PASSED: "pass", FAILED: "fail", INCONCLUSIVE: "warn" };
const STATES = { APPROVED: "pass", REJECTED: "fail" };
// What may follow a state: button, what it says, its look.
const WAYS = {
  UNAPPROVED: [["APPROVED", "Approve", ""], ["REJECTED", "Reject", "bad"]],
  APPROVED: [["UNAPPROVED", "Take the approval back", "bad"]],
  REJECTED: [["UNAPPROVED", "Take the rejection back", "second"]],
  SUPERSEDED: [],
};

const me = await whoAmI();
let plan = null;

/** Slices as `PTV 12-15, 18`; checks and views by their names. */
function missingText(keys) {
  const slices = {};
  const parts = [];
  for (const key of keys) {
    const [kind, ...rest] = key.split(":");
    if (kind === "slice") (slices[rest.slice(0, -1).join(":")] ??= []).push(Number(rest.at(-1)));
    else if (kind === "beam") parts.push(`arc ${rest[0]} played to its end`);
    else if (kind === "check") parts.push(`check “${rest.join(":")}”`);
    else parts.push(NAMES[key] || key);
  }
  for (const [target, numbers] of Object.entries(slices)) parts.unshift(`${target}: slices ${ranges(numbers)}`);
  return parts.length > 6 ? `${parts.slice(0, 6).join("; ")} and ${parts.length - 6} more` : parts.join("; ");
}

function ranges(numbers) {
  const found = [];
  for (const k of [...numbers].sort((a, b) => a - b)) {
    const last = found.at(-1);
    if (last && last[1] === k - 1) last[1] = k;
    else found.push([k, k]);
  }
  return found.map(([a, b]) => (a === b ? a + 1 : `${a + 1}–${b + 1}`)).join(", ");
}

function itemBox(line) {
  const ready = !line.missing.length;
  const fixed = plan.status !== "UNAPPROVED" || !plan.may_decide;
  const note = el("input", { class: "line-note", maxlength: 500, placeholder: "note", value: line.note, "aria-label": "note", disabled: fixed });
  const choose = (answer) => (event) => attempt(async () => {
    try {
      redraw(await ask("POST", `${path}/answers`, { item: line.id, answer, note: note.value }));
    } catch (refused) {
      event.target.checked = false;
      throw refused;
    }
  });
  const radio = (answer) => el("label", {}, el("input", {
    type: "radio", name: line.id, checked: line.answer === answer,
    disabled: fixed || (!ready && answer !== "no"), onchange: choose(answer),
  }), ` ${answer}`);
  const state = line.answer === "no" ? "no" : line.answer ? "yes" : ready ? "open" : "waits";
  return el("div", { class: `item ${state}`, id: `item-${line.id}` },
    el("p", {}, line.text),
    el("p", { class: "source" }, line.source),
    ready ? null : el("p", { class: "missing" }, `Look first: ${missingText(line.missing)}`),
    el("div", { class: "answers" }, radio("yes"), radio("no"), radio("not applicable")),
    fixed && !line.note ? null : note);
}

function checklist(lines) {
  const parts = [];
  let section = "";
  for (const line of lines) {
    if (line.section !== section) parts.push(el("h3", {}, (section = line.section)));
    parts.push(itemBox(line));
  }
  return parts;
}

/** Of an exercise nothing is decided: the reviewer says what is wrong, and is told what was. */
function guess() {
  const { faults, answer } = plan.training;
  if (answer) {
    return el("p", { id: "told" }, `${answer.right ? "Right" : `You said “${answer.found}”`}: ${answer.what}.`);
  }
  if (!plan.may_decide) return el("p", { class: "quiet" }, "A reviewer answers this exercise.");
  const found = el("select", { id: "fault", required: true }, el("option", { value: "" }, "choose"),
    ...Object.keys(faults).map((kind) => el("option", { value: kind }, kind)));
  const reason = el("textarea", { maxlength: 500, id: "reason" });
  return el("form", {
    id: "guess",
    onsubmit: (event) => {
      event.preventDefault();
      attempt(async () => {
        await ask("POST", `/api/exercises/${run}/answer`, { found: found.value, reason: reason.value });
        await load();
      }, event.submitter);
    },
  }, el("label", {}, "What is wrong with the plan", found), el("label", {}, "Why", reason), el("button", {}, "Answer"));
}

function decision(obstacles) {
  if (plan.training) return guess();
  if (!plan.may_decide) return el("p", { class: "quiet" }, "A reviewer decides on this plan.");
  const ways = WAYS[plan.status];
  if (!ways.length) return null;
  const reason = el("textarea", { maxlength: 2000, required: true, id: "reason" });
  const password = el("input", { type: "password", maxlength: 128, required: true, autocomplete: "current-password", id: "signature" });
  return el("form", {
    id: "decision",
    onsubmit: (event) => {
      event.preventDefault();
      attempt(async () => {
        const status = event.submitter.value;
        await ask("POST", `${path}/decision`, { status, reason: reason.value, password: password.value });
        password.value = reason.value = "";
        await load();
        say(`The plan is ${plan.status.toLowerCase()}.`);
      }, event.submitter);
    },
  },
    plan.status === "UNAPPROVED" && obstacles.length
      ? el("ul", { class: "history" }, obstacles.map((sentence) => el("li", {}, sentence))) : null,
    el("input", { type: "text", name: "name", value: me.name, autocomplete: "username", hidden: true, readonly: true }),
    el("label", {}, "Reason", reason),
    el("label", {}, "Your password, as the signature", password),
    el("div", { class: "row" }, ways.map(([status, text, look]) => el("button", {
      value: status, class: look, disabled: status === "APPROVED" && obstacles.length > 0,
    }, text))));
}

function redraw({ lines, obstacles }) {
  plan.lines = lines;
  plan.obstacles = obstacles;
  const side = byId("side");
  const before = side.scrollTop;
  const kept = { reason: byId("reason")?.value, signature: byId("signature")?.value };
  const answered = lines.filter((line) => line.answer).length;
  byId("content").replaceChildren(...[
    el("h2", {}, `Checklist, ${answered} of ${lines.length} answered`),
    ...checklist(lines),
    el("h2", {}, plan.training ? "Your finding" : "Decision"),
    decision(obstacles),
    plan.status === "APPROVED" && plan.exports.length
      ? el("p", {}, "Files: ", plan.exports.map((name) => [el("a", { href: `${path}/files/${name}`, download: name }, name), " "]).flat()) : null,
    plan.decisions.length ? el("h3", {}, "Decisions") : null,
    el("ol", { class: "history" }, plan.decisions.map((d) =>
      el("li", {}, `${d.status.toLowerCase()} by ${d.by}, ${when(d.at)}: ${d.reason}`))),
  ].filter(Boolean));
  for (const [id, value] of Object.entries(kept)) if (value && byId(id)) byId(id).value = value;
  side.scrollTop = before;
}

function chip(text, kind = "") {
  return el("span", { class: `chip ${kind}` }, text);
}

async function load() {
  plan = await ask("GET", path);
  document.title = `${plan.training ? "TRAINING · " : ""}Version ${plan.version} · review`;
  byId("training").hidden = !plan.training;
  byId("title").textContent = `${plan.case}, version ${plan.version}`;
  byId("state").replaceChildren(
    chip(`gate ${plan.outcome.toLowerCase()}`, GATES[plan.outcome]), " ", chip(plan.status.toLowerCase(), STATES[plan.status]));
  byId("facts").textContent = [
    `made by ${plan.made_by}, ${when(plan.made_at)}`,
    plan.mu ? `${plan.mu.toFixed(0)} MU in ${plan.arcs} arc${plan.arcs === 1 ? "" : "s"}` : "",
    plan.delivery_s ? duration(plan.delivery_s) : "",
    plan.open_check ? "its check is open: “Check again” in the worklist goes on with it" : "",
  ].filter(Boolean).join(" · ");
  redraw(plan);
}

/** What the viewer says was seen it has told the server itself; the list is drawn anew when it rests. */
let timer = null;
addEventListener("message", (event) => {
  if (event.origin !== location.origin || !event.data || !event.data.seen) return;
  clearTimeout(timer);
  timer = setTimeout(update, 600);
});

async function update() {
  if (me.has("reviewer")) redraw(await ask("GET", `${path}/lines`));
}

// The report counts as seen when it is there and has stood on the screen for a while.
seenFor(run);
document.addEventListener("seen", () => attempt(update));
byId("open-report").addEventListener("click", () => attempt(async () => {
  const report = byId("report");
  byId("report-box").showModal();
  if (!report.src) {
    await ask("GET", `${path}/report`); // a refusal would be drawn in the frame like a report
    const drawn = new Promise((resolve) => report.addEventListener("load", resolve, { once: true }));
    report.src = `${path}/report`;
    await drawn;
  }
  seenOnScreen(report, "report");
}));
byId("close-report").addEventListener("click", () => byId("report-box").close());

await attempt(load);
if (plan) {
  const other = byId("other");
  other.append(el("option", { value: "" }, "no other"), ...plan.versions.map((v) => el("option", { value: v.id }, `version ${v.version}`)));
  other.closest("label").hidden = !plan.versions.length;
  const show = () => { byId("viewer").src = `/static/viewer.html?run=${run}${other.value ? `&with=${other.value}` : ""}`; };
  other.addEventListener("change", show);
  show();
}
