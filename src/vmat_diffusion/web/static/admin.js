// Users and the audit, for admins.

import { ask, attempt, byId, el, say, when, whoAmI } from "/static/room.js";

const ROLES = ["planner", "reviewer", "admin"];
const me = await whoAmI();
let oldest = null;

function userRow(user) {
  const boxes = ROLES.map((role) => el("label", {}, el("input", { type: "checkbox", checked: user.roles.includes(role), value: role }), ` ${role}`));
  const roles = () => boxes.map((box) => box.firstChild).filter((box) => box.checked).map((box) => box.value);
  const change = (body) => attempt(async () => {
    await ask("PATCH", `/api/users/${user.id}`, body);
    say(`${user.name} was changed.`);
    await Promise.all([showUsers(), showAudit(true)]);
  });
  const password = el("input", { type: "password", maxlength: 128, placeholder: "new password", autocomplete: "new-password", "aria-label": `new password of ${user.name}` });
  return el("tr", {},
    el("td", {}, user.name),
    el("td", {}, el("div", { class: "answers" }, boxes)),
    el("td", {}, user.disabled ? "shut out" : "active"),
    el("td", {}, el("div", { class: "row" },
      el("button", { type: "button", class: "second", onclick: () => change({ roles: roles() }) }, "Save roles"),
      user.id === me.id ? null : el("button", { type: "button", class: "second", onclick: () => change({ disabled: !user.disabled }) }, user.disabled ? "Let in" : "Shut out"),
      el("div", { class: "grow" }, password),
      el("button", { type: "button", class: "second", onclick: () => change({ password: password.value }) }, "Set"))));
}

async function showUsers() {
  byId("users").replaceChildren(...(await ask("GET", "/api/users")).map(userRow));
}

async function showAudit(anew = false) {
  if (anew) oldest = null;
  const { entries, names } = await ask("GET", `/api/audit${oldest ? `?before=${oldest}` : ""}`);
  const rows = entries.map((one) => el("tr", {},
    el("td", {}, String(one.seq)), el("td", {}, when(one.at)), el("td", {}, names[one.actor] || one.actor),
    el("td", {}, one.action), el("td", { class: "code" }, names[one.subject] || one.subject.slice(0, 8)),
    el("td", { class: "code" }, one.detail === "{}" ? "" : one.detail)));
  if (anew) byId("entries").replaceChildren(...rows);
  else byId("entries").append(...rows);
  oldest = entries.length ? entries.at(-1).seq : oldest;
  byId("more").hidden = !entries.length || oldest === 1;
}

async function showExercises() {
  const { exercises, runs } = await ask("GET", "/api/exercises");
  byId("exercise").elements.run.replaceChildren(...runs.map((run) =>
    el("option", { value: run.id }, `case ${run.case}, version ${run.version}, ${when(run.made_at)}`)));
  byId("exercises").replaceChildren(...exercises.map((one) => el("tr", {},
    el("td", {}, `${one.run_id.slice(0, 8)}, ${when(one.made_at)}`), el("td", {}, one.fault),
    el("td", {}, one.answers.map((a) => `${a.by}: ${a.right ? "found" : `said ${a.found}`}`).join("; ") || "none yet"))));
}

byId("exercise").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const { run, seed } = event.target.elements;
    await ask("POST", "/api/exercises", { run_id: run.value, seed: Number(seed.value) });
    say("The exercise is in the worklist of the reviewers.");
    await Promise.all([showExercises(), showAudit(true)]);
  }, event.submitter);
});
byId("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  attempt(async () => {
    const data = new FormData(form);
    await ask("POST", "/api/users", { name: data.get("name"), password: data.get("password"), roles: data.getAll("role") });
    say(`${data.get("name")} was added.`);
    form.reset();
    await Promise.all([showUsers(), showAudit(true)]);
  }, event.submitter);
});
byId("more").addEventListener("click", (event) => attempt(() => showAudit(), event.target));
byId("check").addEventListener("click", (event) => attempt(async () => {
  const found = await ask("GET", "/api/audit/check");
  byId("chain").textContent = found.faults.length
    ? `FAULTS: ${found.faults.join("; ")}`
    : `${found.entries} entries, the chain is whole. Newest hash, to be noted down elsewhere: ${found.head}`;
}, event.target));

await attempt(() => Promise.all([showUsers(), showExercises(), showAudit(true)]));
