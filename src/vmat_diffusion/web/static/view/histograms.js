// The tab of histograms and goals: curves with a cursor, figures of the structures, the scorecard.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { structureColour } from "./colours.js";
import { choice, el, fill, number, swatch } from "./dom.js";
import { seenOnScreen } from "./seen.js";

const DASH = { planned: [], independent: [7, 4] };
const STATUS = { pass: "met", acceptable: "acceptable", fail: "missed", "not evaluated": "not evaluated", excused: "excused" };

export class Histograms {
  constructor(host, { plans, complain }) {
    this.host = host;
    this.plans = plans;
    this.complain = complain;
    this.visible = new Set();
    this.curves = plans.map(() => new Map()); // by plan: number of structure -> answer
    this.options = { independent: plans.length === 1, band: false, absolute: false, percent: false };
    this.host.classList.add("tab");
    this.build();
  }

  build() {
    this.chart = el("div", { class: "chart" });
    this.cursor = el("p", { class: "quiet" }, "Move over the curves to read them.");
    this.rows = el("div", { class: "figures scroll" }, el("p", { class: "quiet" }, "Reading the structures …"));
    this.goals = el("div", { class: "card" }, el("h2", {}, "Goals"));
    const toggle = (name, text) => {
      const box = el("input", { type: "checkbox", checked: this.options[name], onchange: () => { this.options[name] = box.checked; this.draw(); } });
      return el("label", {}, box, ` ${text}`);
    };
    const has = this.plans[0].facts.volumes.some((v) => v.name === "independent");
    const tools = el("div", { class: "row" },
      choice("Volume", [["percent", "% volume"], ["cc", "cm³"]], "percent", (v) => { this.options.absolute = v === "cc"; this.draw(); }),
      choice("Dose", [["gy", "Gy"], ["percent", "% dose"]], "gy", (v) => { this.options.percent = v === "percent"; this.draw(); }),
      has ? toggle("independent", "independent dose, dashed") : null,
      has ? toggle("band", "± 1 standard error") : null);
    const page = el("div", { class: "page" },
      el("div", { class: "card" }, el("h2", {}, "Dose-volume histogram"), tools,
        el("div", { class: "plot" }, el("div", {}, this.chart, this.cursor), this.rows)),
      this.goals);
    fill(this.host, page);
    new ResizeObserver(() => this.size()).observe(this.chart);
  }

  async show() {
    if (!this.scored) {
      this.scored = true;
      await this.scorecard();
    }
    this.draw();
  }

  // At first the targets and what has a goal; without goals all organs.
  async structured() {
    const [{ source, structures }] = this.plans;
    const asked = new Set((await source.json("goals").catch(() => ({ goals: [] }))).goals.map((g) => g.structure));
    for (const s of structures) {
      if (s.role === "target" || asked.has(s.name) || (!asked.size && s.role === "organ")) this.visible.add(s.name);
    }
    this.fetch();
  }

  // The curves of the visible structures, one after the other so that the server stays free for images.
  async fetch() {
    if (this.fetching) return;
    this.fetching = true;
    try {
      for (const [p, plan] of this.plans.entries()) {
        for (const s of plan.structures) {
          if (!this.visible.has(s.name) || this.curves[p].has(s.number)) continue;
          this.curves[p].set(s.number, await plan.source.json(`dvh/${s.number}`));
          if (!this.host.hidden) this.draw();
        }
      }
    } catch (error) {
      this.complain(error);
    }
    this.fetching = false;
    this.draw();
  }

  // All series on one axis of doses.
  series() {
    const list = [];
    this.plans.forEach((plan, p) => {
      for (const s of plan.structures) {
        const answer = this.curves[p].get(s.number);
        if (!answer || !this.visible.has(s.name)) continue;
        for (const [dose, curve] of Object.entries(answer.curves)) {
          if (dose === "independent" && (!this.options.independent || p > 0)) continue;
          list.push({ structure: s, plan: p, dose, curve, colour: structureColour(s), step: answer.step_gy });
        }
      }
    });
    return list;
  }

  draw() {
    if (this.host.hidden || !this.chart.clientWidth) return;
    this.figures();
    const list = this.series();
    if (!list.length) return;
    const { step } = list[0];
    const length = Math.max(...list.map((s) => Math.max(s.curve.percent.length, (s.curve.high || []).length)));
    const scale = this.options.percent ? 100 / this.plans[0].facts.reference_gy : 1;
    const x = Float64Array.from({ length }, (_, k) => k * step * scale);
    const of = (entry, values) => {
      const factor = this.options.absolute ? entry.curve.volume_cc / 100 : 1;
      return Array.from({ length }, (_, k) => (k < values.length ? values[k] * factor : 0));
    };
    const data = [x], series = [{}], bands = [];
    for (const entry of list) {
      const dash = entry.plan ? [2, 3] : DASH[entry.dose];
      series.push({ label: entry.structure.name, stroke: entry.colour, width: entry.structure.role === "target" ? 2.4 : 1.6, dash, points: { show: false } });
      data.push(of(entry, entry.curve.percent));
      if (this.options.band && entry.curve.high && entry.plan === 0 && this.options.independent) {
        for (const edge of ["high", "low"]) {
          series.push({ stroke: "transparent", points: { show: false } });
          data.push(of(entry, entry.curve[edge]));
        }
        bands.push({ series: [data.length - 2, data.length - 1], fill: `${entry.colour}44` });
      }
    }
    this.listed = list;
    this.step = step * scale;
    this.plot?.destroy();
    const axis = { stroke: "#c4ced8", grid: { stroke: "#2b3540", width: 1 }, ticks: { stroke: "#2b3540" }, font: "13px system-ui" };
    this.plot = new uPlot({
      width: this.chart.clientWidth,
      height: this.chart.clientHeight || 400,
      scales: { x: { time: false }, y: { range: (_, low, high) => [0, this.options.absolute ? high * 1.03 : 103] } },
      axes: [{ ...axis, label: this.options.percent ? "Dose, % of the prescription" : "Dose, Gy", labelSize: 22, labelFont: "13px system-ui" },
        { ...axis, label: this.options.absolute ? "Volume, cm³" : "Volume, %", labelSize: 22, labelFont: "13px system-ui" }],
      series, bands,
      legend: { show: false },
      cursor: { y: true, points: { show: false }, drag: { x: true, y: false } },
      hooks: { setCursor: [(plot) => this.read(plot)] },
    }, data, this.chart);
    this.told(list);
  }

  // The histograms count as seen when the curves of all targets were drawn.
  told(list) {
    const drawn = new Set(list.filter((s) => s.plan === 0).map((s) => s.structure.name));
    if (this.plans[0].structures.some((s) => s.role === "target" && !drawn.has(s.name))) return;
    this.watched ??= seenOnScreen(this.chart, "dvh");
  }

  size() {
    if (this.plot && this.chart.clientWidth && Math.abs(this.plot.width - this.chart.clientWidth) > 2) this.draw();
  }

  // What the cursor is on: the nearest curve at its dose, with its volume by both engines.
  read(plot) {
    const { idx, top } = plot.cursor;
    if (idx === null || idx === undefined || top < 0) return;
    const dose = idx * this.step;
    const volume = plot.posToVal(top, "y");
    const value = (e) => ((e.curve.percent[idx] || 0) * (this.options.absolute ? e.curve.volume_cc / 100 : 1));
    const near = [...this.listed].sort((a, b) => Math.abs(value(a) - volume) - Math.abs(value(b) - volume))[0];
    const same = this.listed.filter((e) => e.structure.name === near.structure.name);
    const unit = this.options.absolute ? "cm³" : "%";
    const said = same.map((e) => `${this.title(e)} ${number(value(e), 1)} ${unit}`).join(", ");
    fill(this.cursor, swatch(near.colour), ` ${near.structure.name} at ${number(dose, 1)} ${this.options.percent ? "%" : "Gy"}: ${said}`);
  }

  title(entry) {
    if (this.plans.length > 1) return entry.plan ? "B" : entry.dose === "independent" ? "A independent" : "A";
    return entry.dose;
  }

  figures() {
    const rank = { target: 0, organ: 1, other: 2, body: 3 };
    const [plan] = this.plans;
    const listed = [...plan.structures].sort((a, b) => rank[a.role] - rank[b.role] || (b.prescribed_gy || 0) - (a.prescribed_gy || 0) || a.name.localeCompare(b.name));
    const head = ["Structure", "cm³", "Min", "Mean", "Max", "D98%", "D2%"];
    const rows = listed.map((s) => {
      const box = el("input", { type: "checkbox", checked: this.visible.has(s.name), onchange: () => {
        if (box.checked) this.visible.add(s.name);
        else this.visible.delete(s.name);
        this.fetch();
      } });
      const found = this.curves[0].get(s.number)?.curves.planned;
      const cells = found ? [number(found.volume_cc, 1), ...["min_gy", "mean_gy", "max_gy", "d98_gy", "d2_gy"].map((k) => number(found[k], 1))] : Array(6).fill("");
      return el("tr", {}, el("td", {}, el("label", {}, box, swatch(structureColour(s)), s.name)), cells.map((c) => el("td", { class: "n" }, c)));
    });
    fill(this.rows, el("table", {}, el("thead", {}, el("tr", {}, head.map((h, k) => el("th", { class: k ? "n" : "" }, h)))), el("tbody", {}, rows)),
      el("p", { class: "quiet" }, "Planned dose, Gy."));
  }

  async scorecard() {
    const scored = await Promise.all(this.plans.map((p) => p.source.json("goals")));
    const [own, other] = scored;
    const beside = new Map((other?.goals || []).map((g) => [`${g.structure} ${g.goal}`, g]));
    const head = ["Status", "Structure", "Goal", "Variation", "Planned", "Independent", ...(other ? ["Plan B", "Change"] : []), "Priority"];
    const rows = own.goals.map((g) => {
      const b = beside.get(`${g.structure} ${g.goal}`);
      const cells = [
        ["", chip(g)],
        ["Structure", g.structure],
        ["Goal", [g.goal, g.note ? el("div", { class: "quiet" }, g.note) : null, g.source ? el("div", { class: "quiet source" }, g.source) : null]],
        ["Variation", amount(g.variation, g.unit)],
        ["Planned", amount(g.value, g.unit)],
        ["Independent", [amount(g.check_value, g.unit), g.check_status && g.check_status !== g.status ? el("span", { class: "near" }, ` ${STATUS[g.check_status]}`) : null]],
        ...(other ? [["Plan B", amount(b?.value, g.unit)], ["Change", b && b.value !== null && g.value !== null ? `${b.value > g.value ? "+" : ""}${number(b.value - g.value, 2)}` : "–"]] : []),
        ["Priority", { 1: "must", 2: "should", 3: "wish" }[g.priority] || String(g.priority ?? "")],
      ];
      return el("tr", { class: g.missed ? "missed" : "" }, cells.map(([name, content]) => el("td", { "data-name": name || null }, content)));
    });
    const delivery = own.delivery_goals.map((g) => el("tr", { class: g.missed ? "missed" : "" }, [
      ["", chip(g)], ["Structure", "delivery"], ["Goal", g.goal], ["Variation", amount(g.variation, g.unit)], ["Planned", amount(g.value, g.unit)], ["Independent", "–"],
      ...(other ? [["Plan B", "–"], ["Change", "–"]] : []), ["Priority", { 1: "must", 2: "should", 3: "wish" }[g.priority] || ""],
    ].map(([name, content]) => el("td", { "data-name": name || null }, content))));
    const groups = own.groups.map((g) => el("p", {}, chip(g), ` ${g.group}: at least ${g.at_least} of ${g.of.join(", ")} (${g.met} met)`));
    const sources = el("input", { type: "checkbox", onchange: () => this.goals.classList.toggle("sources", sources.checked) });
    fill(this.goals, el("div", { class: "row" }, el("h2", {}, "Goals"), el("label", { class: "quiet" }, sources, " with their sources")),
      own.conflicts.map((c) => el("p", { class: "near" }, c)),
      el("div", { class: "scroll" }, el("table", { class: "cards" }, el("thead", {}, el("tr", {}, head.map((h) => el("th", {}, h)))), el("tbody", {}, rows, delivery))),
      groups, own.remarks.map((r) => el("p", { class: "quiet" }, r)));
    seenOnScreen([...rows, ...delivery].at(-1) || this.goals, "goals"); // who sees the last has passed the others
  }
}

const amount = (value, unit) => (value === null || value === undefined ? "–" : `${number(value, Math.abs(value) < 10 ? 2 : 1)} ${unit || ""}`);

function chip(goal) {
  const status = goal.excused && goal.status !== "pass" ? "excused" : goal.status;
  const look = { pass: "pass", acceptable: "acceptable", fail: "fail", excused: "reported", "not evaluated": goal.missed ? "fail" : "reported" }[status] || "reported";
  return el("span", { class: `chip ${look}` }, STATUS[status] || status);
}
