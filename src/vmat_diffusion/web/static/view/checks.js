// The tab of checks: the gate with each check's evidence behind a click, and complexity beside published ranges.

import { el, fill, number } from "./dom.js";
import { seenOnScreen } from "./seen.js";

const ORDER = { fail: 0, undecided: 1, warning: 2, pass: 3, reported: 4 };

export class Checks {
  constructor(host, { plans, look }) {
    this.host = host;
    this.plan = plans[0];
    this.look = look;
    this.gate = el("div", { class: "card" });
    this.complexity = el("div", { class: "card" });
    fill(host, el("div", { class: "page" }, this.gate, this.complexity));
  }

  async show() {
    if (this.filled) return;
    this.filled = true;
    const [found, metrics] = await Promise.all([this.plan.source.json("checks"), this.plan.source.json("complexity")]);
    this.fillGate(found);
    this.fillComplexity(metrics);
  }

  fillGate({ checks, violations, corrected }) {
    const sorted = [...checks].sort((a, b) => ORDER[a.result] - ORDER[b.result]);
    const count = (word) => checks.filter((c) => c.result === word).length;
    const summary = Object.keys(ORDER).filter((w) => count(w)).map((w) => `${count(w)} ${w}`).join(", ");
    fill(this.gate, el("h2", {}, "The gate's checks"),
      el("p", { class: "quiet" }, `${summary}. Open a check to see what it rests on.`),
      corrected ? el("p", { class: "near" }, "The plan was optimised again after the engines disagreed; these are the checks of the corrected plan.") : null,
      violations.map((v) => el("p", { class: "over" }, v)),
      sorted.map((c) => this.check(c)));
  }

  check(c) {
    const evidence = el("div", { class: "evidence", hidden: true });
    const places = el("div", { class: "row" });
    if (c.place_mm) places.append(el("button", { type: "button", onclick: () => this.look({ place: c.place_mm, mode: c.difference ? "difference" : "dose" }) }, "Show the place"));
    else if (c.difference) places.append(el("button", { type: "button", onclick: () => this.look({ mode: "difference" }) }, "Show the difference map"));
    fill(evidence, c.evidence.map((line) => el("p", {}, line)), places.children.length ? places : null);
    const mark = el("span", { class: "unseen" }, c.result === "fail" || c.result === "warning" || c.result === "undecided" ? " not opened yet" : "");
    let end = null;
    const button = el("button", { type: "button", "aria-expanded": "false", onclick: () => {
      evidence.hidden = !evidence.hidden;
      button.setAttribute("aria-expanded", String(!evidence.hidden));
      mark.textContent = "";
      end?.();
      end = evidence.hidden ? null : seenOnScreen(evidence, "check", { key: c.key });
    } },
      el("span", { class: `chip ${c.result}` }, c.result),
      el("span", {}, c.name, mark),
      el("span", { class: "amount" }, amount(c)),
      el("span", { class: "arrow" }, "›"));
    return el("div", { class: "check" }, button, evidence);
  }

  fillComplexity({ metrics, sources }) {
    if (!metrics.length) {
      fill(this.complexity, el("h2", {}, "Complexity"), el("p", { class: "quiet" }, "The record holds none."));
      return void seenOnScreen(this.complexity, "complexity");
    }
    const head = ["Metric", "This plan", "Range", "Published"];
    const rows = metrics.map((m) => el("tr", { class: m.outside ? "missed" : "" },
      [["Metric", m.title], ["This plan", m.value === null ? "–" : `${figure(m.value)} ${m.unit}`],
        ["Range", m.range ? [el("span", { class: m.outside ? "over" : "" }, m.outside ? `outside: ${m.range}` : m.range), el("div", { class: "quiet" }, m.source)] : "–"],
        ["Published", m.published || "–"]].map(([name, content]) => el("td", { "data-name": name }, content))));
    fill(this.complexity, el("h2", {}, "Complexity beside published plans"),
      el("div", { class: "scroll" }, el("table", { class: "cards" }, el("thead", {}, el("tr", {}, head.map((h) => el("th", {}, h)))), el("tbody", {}, rows))),
      sources.map((s) => el("p", { class: "quiet" }, s)));
    seenOnScreen(rows.at(-1), "complexity"); // the last row: who sees it has passed the others
  }
}

function amount({ value, limit, unit }) {
  if (value === null || value === undefined) return "";
  const shown = `${figure(value)} ${unit || ""}`.trim();
  return limit === null || limit === undefined ? shown : `${shown}, limit ${figure(limit)}`;
}

// Counts without decimals, other figures with three digits or so.
const figure = (value) => (Number.isInteger(value) ? String(value) : decimals(value)).replace("-", "−");
const decimals = (value) => number(value, Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) < 0.1 && value ? 3 : 2);
