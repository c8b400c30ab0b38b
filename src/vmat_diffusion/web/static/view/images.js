// The tab of the planes: panes, the line of values at the crosshair, and the panel beside them.

import { ISODOSES, WINDOWS, hex, rgb, structureColour, windowTable } from "./colours.js";
import { choice, el, fill, number, swatch } from "./dom.js";
import { PLANES, Pane, differenceTable, indexAt, pixel, positionOf, sizeOf } from "./pane.js";

const AROUND_MM = 50; // of the targets, in the first view
const MODES = [["dose", "Dose"], ["difference", "Difference"], ["noise", "Noise"], ["ct", "CT"]];

export class Images {
  constructor(host, plans, complain) {
    this.host = host;
    this.plans = plans;
    const [{ facts }] = plans;
    const has = (name) => facts.volumes.some((v) => v.name === name);
    this.modes = MODES.filter(([m]) => (m !== "difference" || has("independent")) && (m !== "noise" || has("independent_error")));
    const grid = facts.grid;
    const size = sizeOf(grid);
    const centre = [0, 1, 2].map((a) => positionOf(grid, a, (size[a] - 1) / 2));
    this.view = {
      point: facts.isocenter_mm ? [...facts.isocenter_mm] : centre,
      zoom: 1,
      frame: {
        low: grid.origin_mm, high: [0, 1, 2].map((a) => positionOf(grid, a, size[a] - 1)),
      },
      fits: (pane, width, height) => this.fits(pane, width, height),
      mode: "dose",
      volume: "planned",
      reference: facts.reference_gy,
      unit: "%",
      isodoses: ISODOSES.map(([value, colour]) => ({ value, colour, on: true })),
      levels: () => this.levels(),
      bands: (volume) => this.bands(volume),
      noises: (volume) => this.noises(volume),
      differences: differenceTable(),
      range: 5,
      wash: 0.3,
      lines: true,
      contours: true,
      crosshair: true,
      visible: new Set(),
      revision: 0,
      window: {},
    };
    this.tables = new Map();
    this.setWindow(...WINDOWS[0].slice(2));
    this.act = {
      point: (p) => this.goTo(p),
      goto: (axis, index) => {
        const p = [...this.view.point];
        p[axis] = positionOf(grid, axis, Math.max(0, Math.min(size[axis] - 1, index)));
        this.goTo(p);
      },
      zoom: (factor) => {
        this.view.zoom = factor === 0 ? 1 : Math.max(0.5, Math.min(20, this.view.zoom * factor));
        if (factor === 0) this.panes.forEach((p) => { p.centre = null; });
        this.redraw();
      },
      moved: (pane) => {
        for (const other of this.panes) if (other.name === pane.name) other.centre = [...pane.centre];
        this.redraw();
      },
      complain,
    };
    this.single = matchMedia("(max-width: 760px)");
    this.build();
    this.single.addEventListener("change", () => this.layout());
  }

  build() {
    this.readout = el("div", { id: "readout", "aria-live": "off" });
    this.area = el("div", { id: "panes" });
    this.plane = "axial";
    this.planeChoice = choice("Plane", Object.entries(PLANES).map(([k, p]) => [k, p.title]), this.plane, (name) => {
      this.plane = name;
      this.layout();
    });
    this.panel = el("aside", { id: "panel", "aria-label": "What is shown" });
    fill(this.host, el("div", { id: "stage" }, this.planeChoice, this.readout, this.area), this.panel);
    this.panes = this.plans.flatMap((plan) => Object.keys(PLANES).map((name) => new Pane(name, plan, this.view, this.act)));
    this.layout();
    this.fillPanel();
  }

  // One plan: three planes, or one of them on a narrow screen. Two plans: the same plane of both.
  layout() {
    const two = this.plans.length > 1;
    const one = two || this.single.matches;
    this.planeChoice.hidden = !one;
    const shown = one ? this.panes.filter((p) => p.name === this.plane) : this.panes;
    this.area.className = two ? "two" : one ? "one" : "three";
    fill(this.area, shown.map((p) => p.node));
    this.redraw();
  }

  show() { this.redraw(); }

  structured() {
    const [{ structures }] = this.plans;
    this.fit("target");
    for (const s of structures) if (s.role !== "other") this.view.visible.add(s.name);
    this.fillStructures();
    this.redraw();
  }

  // Fill the planes with the targets and what is around them, or with the body.
  fit(what) {
    const { structures } = this.plans[0];
    const body = structures.find((s) => s.role === "body");
    const inside = structures.filter((s) => s.role === what);
    if (!body) return this.act.zoom(0);
    const wide = what === "target" && inside.length ? AROUND_MM : 5;
    const boxes = inside.length ? inside : [body];
    const edge = (side, pick) => [0, 1, 2].map((a) => pick(...boxes.map((s) => s[side][a])));
    this.view.frame = {
      low: edge("low_mm", Math.min).map((v, a) => Math.max(v - wide, body.low_mm[a] - 5)),
      high: edge("high_mm", Math.max).map((v, a) => Math.min(v + wide, body.high_mm[a] + 5)),
    };
    return this.act.zoom(0);
  }

  // Pixels a millimetre at which the frame fills a plane along each of its sides.
  fits(pane, width, height) {
    const { low, high } = this.view.frame;
    const { column, row } = pane.plane;
    return { width: width / (high[column] - low[column]), height: height / (high[row] - low[row]) };
  }

  goTo(point) {
    const grid = this.plans[0].facts.grid;
    const size = sizeOf(grid);
    this.view.point = point.map((v, a) => {
      const ends = [positionOf(grid, a, 0), positionOf(grid, a, size[a] - 1)];
      return Math.max(ends[0], Math.min(ends[1], v));
    });
    this.redraw();
  }

  look({ place, mode, volume }) {
    if (mode && this.modes.some(([m]) => m === mode)) this.setMode(mode);
    if (volume) this.setVolume(volume);
    if (place) this.goTo(place);
  }

  redraw() {
    for (const pane of this.panes) if (pane.node.isConnected) pane.redraw();
    clearTimeout(this.later);
    this.values();
    this.later = setTimeout(() => this.values(true), 150);
  }

  changed() {
    this.view.revision++;
    this.tables.clear();
    this.redraw();
  }

  // HU and every dose at the crosshair: those of the pixel that it lies in.
  values(fetching = false) {
    const { point } = this.view;
    const grid = this.plans[0].facts.grid;
    const [i, j, k] = [0, 1, 2].map((a) => indexAt(grid, a, point[a]));
    const at = j * grid.shape[2] + i;
    const parts = [part("Position", `${point.map((v) => number(v)).join(", ")} mm`)];
    const read = (plan, path, get) => {
      const values = plan.source.peek(path);
      if (values) return values[at];
      if (fetching) get().then(() => this.values(), this.act.complain);
      return undefined;
    };
    const { source } = this.plans[0];
    const hu = read(this.plans[0], `ct/axial/${k}`, () => source.ct("axial", k));
    parts.push(part("CT", hu === undefined ? "…" : `${hu} HU`.replace("-", "−")));
    for (const plan of this.plans) {
      const gy = {};
      for (const volume of plan.facts.volumes) {
        const steps = read(plan, `dose/${volume.name}/axial/${k}`, () => plan.source.dose(volume.name, "axial", k));
        if (steps !== undefined) gy[volume.name] = steps * volume.step_gy;
      }
      const percent = (v) => number((100 * v) / this.view.reference);
      const has = (name) => plan.facts.volumes.some((v) => v.name === name);
      parts.push(part(`${plan.label}Planned`, gy.planned === undefined ? "…" : `${number(gy.planned, 2)} Gy  ${percent(gy.planned)} %`));
      if (has("independent")) {
        const error = gy.independent_error === undefined ? "" : ` ± ${number(gy.independent_error, 2)}`;
        parts.push(part(`${plan.label}Independent`, gy.independent === undefined ? "…" : `${number(gy.independent, 2)}${error} Gy`));
        const difference = gy.independent - gy.planned;
        parts.push(part("Difference", Number.isNaN(difference) ? "…" : `${difference > 0 ? "+" : ""}${percent(difference)} %`));
      }
    }
    fill(this.readout, parts);
  }

  levels() {
    const { unit, reference } = this.view;
    return this.view.isodoses
      .filter((l) => l.on && l.value > 0)
      .map((l) => ({ gy: unit === "%" ? (l.value / 100) * reference : l.value, colour: l.colour }))
      .sort((a, b) => a.gy - b.gy);
  }

  bands(volume) {
    const key = `bands ${volume.step_gy} ${volume.name}`;
    if (!this.tables.has(key)) {
      const table = new Uint32Array(65536);
      const levels = this.levels();
      levels.forEach(({ gy, colour }, k) => {
        const next = k + 1 < levels.length ? levels[k + 1].gy : Infinity;
        table.fill(pixel(rgb(colour), this.view.wash), Math.min(65536, Math.ceil(gy / volume.step_gy)), Math.min(65536, Math.ceil(next / volume.step_gy)));
      });
      this.tables.set(key, table);
    }
    return this.tables.get(key);
  }

  noises(volume) {
    const key = `noise ${volume.step_gy}`;
    if (!this.tables.has(key)) {
      const table = new Uint32Array(65536);
      const whole = (this.view.range / 100) * this.view.reference;
      for (let v = 0; v < 65536; v++) {
        const share = Math.min(1, (v * volume.step_gy) / whole);
        table[v] = pixel([255, Math.round(220 - 150 * share), Math.round(90 * (1 - share))], share < 0.05 ? 0 : 0.15 + 0.6 * share);
      }
      this.tables.set(key, table);
    }
    return this.tables.get(key);
  }

  setWindow(level, width) {
    const table = windowTable(level, width);
    const grey = new Uint32Array(65536);
    for (let k = 0; k < 65536; k++) grey[k] = pixel([table[k], table[k], table[k]], 1);
    this.view.window = { level, width, table, grey };
  }

  setMode(mode) {
    this.view.mode = mode;
    this.modeChoice.show(mode);
    this.volumeChoice.hidden = mode !== "dose";
    this.legend.hidden = mode !== "difference" && mode !== "noise";
    this.fillLegend();
    this.changed();
  }

  setVolume(volume) {
    this.view.volume = volume;
    this.volumeChoice.show(volume);
    this.changed();
  }

  fillPanel() {
    const { view } = this;
    const [{ facts }] = this.plans;
    this.modeChoice = choice("Shown over the CT", this.modes, view.mode, (m) => this.setMode(m));
    const names = { planned: "Planned", independent: "Independent" };
    const offered = facts.volumes.filter((v) => names[v.name]).map((v) => [v.name, names[v.name]]);
    this.volumeChoice = choice("Dose", offered, view.volume, (v) => this.setVolume(v));
    this.legend = el("div", { class: "legend", hidden: true });
    const jump = el("div", { class: "row" },
      el("button", { type: "button", title: "Go to the highest dose shown", onclick: () => this.toMaximum() }, "Maximum"),
      facts.isocenter_mm ? el("button", { type: "button", onclick: () => this.goTo(facts.isocenter_mm) }, "Isocentre") : null,
      el("button", { type: "button", onclick: () => this.fit("target") }, "Fit targets"),
      el("button", { type: "button", onclick: () => this.fit("body") }, "Fit body"),
    );
    this.structureList = el("div", { class: "list structures" }, el("p", { class: "quiet" }, "Reading the structures …"));
    fill(this.panel,
      section("Shown", this.modeChoice, this.volumeChoice, this.legend, jump, this.windowRow()),
      section("Structures", this.structureTools(), this.structureList),
      section("Isodoses", this.isodoseRows()),
    );
  }

  toMaximum() {
    const name = this.view.mode === "noise" ? "independent_error" : this.view.volume;
    const volume = this.plans[0].facts.volumes.find((v) => v.name === name);
    this.goTo(volume.hottest_mm);
  }

  fillLegend() {
    const { mode } = this.view;
    const bar = el("canvas", { class: "gradient", width: 256, height: 12 });
    const context = bar.getContext("2d");
    for (let i = 0; i < 256; i++) {
      const share = mode === "noise" ? i / 255 : (i - 127.5) / 127.5;
      const strength = Math.abs(share);
      const [r, g, b] = mode === "noise" ? [255, 220 - 150 * share, 90 * (1 - share)]
        : rgb(hex(paint(this.view.differences[Math.max(0, Math.min(510, Math.round(255 + 255 * share)))])));
      context.fillStyle = `rgba(${r},${g},${b},${strength < (mode === "noise" ? 0.05 : 0.1) ? 0 : 0.25 + 0.75 * strength})`;
      context.fillRect(i, 0, 1, 12);
    }
    const range = el("select", { "aria-label": "Range", onchange: (e) => { this.view.range = Number(e.target.value); this.fillLegend(); this.changed(); } },
      [1, 2, 3, 5, 10, 20].map((v) => el("option", { value: String(v), selected: v === this.view.range }, `${v} %`)));
    const text = mode === "noise"
      ? "Standard error of the independent dose, of the reference dose"
      : "Independent less planned, of the reference dose; nothing below 10 % of it";
    fill(this.legend, el("div", { class: "row" }, el("span", {}, mode === "noise" ? "0" : `−${this.view.range} %`), bar, el("span", {}, `${mode === "noise" ? "" : "+"}${this.view.range} %`)),
      el("label", { class: "row" }, "Range ", range), el("p", { class: "quiet" }, text));
  }

  windowRow() {
    const level = el("input", { type: "number", step: "10", title: "Level, HU", value: String(this.view.window.level), "aria-label": "Level, HU" });
    const width = el("input", { type: "number", step: "10", title: "Width, HU", min: "1", value: String(this.view.window.width), "aria-label": "Width, HU" });
    const select = el("select", { "aria-label": "Window" }, [...WINDOWS.map(([k, t]) => el("option", { value: k }, t)), el("option", { value: "own" }, "Own")]);
    const apply = () => { this.setWindow(Number(level.value) || 0, Math.max(1, Number(width.value) || 1)); this.redraw(); };
    select.addEventListener("change", () => {
      const found = WINDOWS.find(([k]) => k === select.value);
      if (!found) return;
      [level.value, width.value] = found.slice(2).map(String);
      apply();
    });
    for (const input of [level, width]) input.addEventListener("input", () => { select.value = "own"; apply(); });
    return el("div", { class: "row" }, select, level, width);
  }

  isodoseRows() {
    const { view } = this;
    const rows = el("div", { class: "list" });
    const draw = () => fill(rows, view.isodoses.map((l, k) => {
      const box = el("input", { type: "checkbox", checked: l.on, "aria-label": `Isodose ${l.value} ${view.unit}`, onchange: () => { l.on = box.checked; this.changed(); } });
      const other = el("span", { class: "quiet" });
      const tell = () => { other.textContent = view.unit === "%" ? `${number((l.value / 100) * view.reference)} Gy` : `${number((100 * l.value) / view.reference)} %`; };
      const value = el("input", { type: "number", min: "0", step: "any", value: String(l.value), "aria-label": "Level", oninput: () => { l.value = Number(value.value) || 0; tell(); this.changed(); } });
      const colour = el("input", { type: "color", value: l.colour, "aria-label": "Colour", oninput: () => { l.colour = colour.value; this.changed(); } });
      const less = el("button", { type: "button", class: "mini", "aria-label": "Remove", onclick: () => { view.isodoses.splice(k, 1); draw(); this.changed(); } }, "×");
      tell();
      return el("div", { class: "row isodose" }, box, colour, value, el("span", {}, view.unit), other, less);
    }));
    const unit = choice("Unit", [["%", "%"], ["Gy", "Gy"]], view.unit, (u) => {
      if (u === view.unit) return;
      for (const l of view.isodoses) l.value = Number((u === "Gy" ? (l.value / 100) * view.reference : (100 * l.value) / view.reference).toFixed(2));
      view.unit = u;
      draw();
      this.changed();
    });
    const more = el("button", { type: "button", onclick: () => { view.isodoses.push({ value: view.unit === "%" ? 60 : Number((0.6 * view.reference).toFixed(1)), colour: "#ffffff", on: true }); draw(); this.changed(); } }, "Add");
    const lines = el("input", { type: "checkbox", checked: view.lines, onchange: () => { view.lines = lines.checked; this.changed(); } });
    const wash = el("input", { type: "range", min: "0", max: "0.9", step: "0.05", value: String(view.wash), "aria-label": "Strength of the dose wash", oninput: () => { view.wash = Number(wash.value); this.changed(); } });
    draw();
    return [el("div", { class: "row" }, unit, el("span", { class: "quiet" }, `100 % = ${number(view.reference)} Gy`)), rows,
      el("div", { class: "row" }, more, el("label", {}, lines, " Lines"), el("label", { class: "row" }, "Wash ", wash))];
  }

  structureTools() {
    const set = (test) => {
      this.view.visible = new Set(this.plans[0].structures.filter(test).map((s) => s.name));
      this.fillStructures();
      this.redraw();
    };
    return el("div", { class: "row" },
      el("button", { type: "button", onclick: () => set(() => true) }, "All"),
      el("button", { type: "button", onclick: () => set((s) => s.role === "target") }, "Targets"),
      el("button", { type: "button", onclick: () => set(() => false) }, "None"));
  }

  fillStructures() {
    const rank = { target: 0, organ: 1, other: 2, body: 3 };
    const listed = [...this.plans[0].structures].sort((a, b) => rank[a.role] - rank[b.role] || (b.prescribed_gy || 0) - (a.prescribed_gy || 0) || a.name.localeCompare(b.name));
    fill(this.structureList, listed.map((s) => {
      const box = el("input", { type: "checkbox", checked: this.view.visible.has(s.name), onchange: () => {
        if (box.checked) this.view.visible.add(s.name);
        else this.view.visible.delete(s.name);
        this.redraw();
      } });
      const centre = s.low_mm.map((v, a) => (v + s.high_mm[a]) / 2);
      const title = s.alias && s.alias !== s.name ? `in the file: ${s.alias}` : undefined;
      return el("div", { class: "row structure" },
        el("label", { title }, box, swatch(structureColour(s)), el("span", { class: "name" }, s.name), s.prescribed_gy ? el("span", { class: "quiet" }, `${s.prescribed_gy} Gy`) : null),
        el("button", { type: "button", class: "mini", "aria-label": `Go to ${s.name}`, title: "Go to its middle", onclick: () => this.goTo(centre) }, "◎"));
    }));
  }
}

const paint = (value) => [value & 255, (value >> 8) & 255, (value >> 16) & 255];
const part = (name, value) => el("span", { class: "value" }, el("b", {}, name), " ", value);
const section = (title, ...children) => el("details", { open: true }, el("summary", {}, title), ...children.flat());
