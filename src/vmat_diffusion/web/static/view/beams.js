// The tab of beams: the beam's eye view that plays over the control points, and what limits the delivery.

import { rim, structureColour } from "./colours.js";
import { choice, el, fill, number, swatch } from "./dom.js";
import { seen, watchScreen } from "./seen.js";

const FRAMES_A_SECOND = 8;
const FAILED = "failed"; // outlines that the server did not give
const NEAR = 0.98; // of a limit: highlighted; above the limit by 0.1 %: broken
const OVER = 1.001;
const STRIPS = [
  ["dose_rate_mu_min", "Dose rate", "MU/min", "dose_rate_mu_min", 0],
  ["gantry_speed_deg_s", "Gantry speed", "°/s", "gantry_speed_deg_s", 2],
  ["leaf_speed_mm_s", "Fastest leaf", "mm/s", "leaf_speed_mm_s", 1],
  ["mu_per_deg", "MU per degree", "MU/°", "mu_per_deg_max", 2],
];

export class Beams {
  constructor(host, { plans, complain }) {
    this.host = host;
    this.plan = plans[0];
    this.complain = complain;
    this.arc = 0;
    this.point = 0;
    this.chosen = new Set();
    this.projected = new Map();
    this.canvas = el("canvas", { class: "bev", role: "img", "aria-label": "Beam's eye view" });
    this.facts = el("dl", { class: "facts" });
    this.strips = STRIPS.map((strip) => el("canvas", { class: "strip", role: "img", "aria-label": `${strip[1]} along the arc`, onclick: (e) => this.pick(e) }));
    this.list = el("div", { class: "list" });
    this.slider = el("input", { type: "range", min: "0", step: "1", "aria-label": "Control point", oninput: () => { this.stop(); this.go(Number(this.slider.value)); } });
    this.button = el("button", { type: "button", onclick: () => (this.timer ? this.stop() : this.play()) }, "Play");
    this.arcs = el("div");
    fill(host, el("div", { class: "page" }, el("div", { class: "view" },
      el("div", { class: "card" }, this.arcs, this.canvas, el("div", { class: "row play" }, this.button, this.slider)),
      el("div", { class: "card" }, this.facts, this.strips, el("h2", {}, "Structures"), this.list))));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    watchScreen(this.canvas, this, () => this.draw());
  }

  async show() {
    if (!this.data) {
      this.data = await this.plan.source.json("arcs");
      const options = this.data.arcs.map((a, k) => [k, `${a.number}  ${a.name}`.trim()]);
      fill(this.arcs, choice("Arc", options, 0, (k) => { this.stop(); this.arc = Number(k); this.go(0); this.open(); }));
      this.open();
    }
    this.draw();
  }

  open() {
    this.slider.max = String(this.current.gantry_deg.length - 1);
    this.half = this.extent();
    this.visited = new Set();
    this.go(this.point < this.current.gantry_deg.length ? this.point : 0);
  }

  get current() { return this.data.arcs[this.arc]; }

  structured() {
    const rank = { target: 0, organ: 1 };
    const listed = this.plan.structures.filter((s) => s.role in rank).sort((a, b) => rank[a.role] - rank[b.role] || a.name.localeCompare(b.name));
    listed.filter((s) => s.role === "target").forEach((s) => this.chosen.add(s.number));
    fill(this.list, listed.map((s) => {
      const box = el("input", { type: "checkbox", checked: this.chosen.has(s.number), onchange: () => {
        if (box.checked) this.chosen.add(s.number);
        else this.chosen.delete(s.number);
        this.draw();
      } });
      return el("div", { class: "row structure" }, el("label", {}, box, swatch(structureColour(s)), el("span", { class: "name" }, s.name)));
    }));
    this.draw();
  }

  go(point) {
    this.point = point;
    this.slider.value = String(point);
    this.tell();
    this.draw();
  }

  play() {
    this.button.textContent = "Pause";
    this.timer = setInterval(() => {
      if (!this.visited.has(this.point) && this.outlines(this.point) !== FAILED) return; // not drawn whole yet
      const last = this.current.gantry_deg.length - 1;
      this.go(this.point >= last ? 0 : this.point + 1);
      if (this.point === last) this.stop();
    }, 1000 / FRAMES_A_SECOND);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
  }

  // Half the width that holds every opening of the arc, mm.
  extent() {
    let most = 40;
    for (const jaws of this.current.jaws_mm) most = Math.max(most, ...jaws.map(Math.abs));
    return Math.min(most + 15, 220);
  }

  // Outlines of the chosen structures at a control point, fetched with those of the next ones.
  outlines(point) {
    const numbers = [...this.chosen].sort((a, b) => a - b);
    const key = `${this.arc} ${point} ${numbers}`;
    if (!numbers.length) return {};
    if (!this.projected.has(key)) {
      this.projected.set(key, null);
      this.plan.source.json(`arcs/${this.arc}/projections/${point}?structures=${numbers}`).then((found) => {
        this.projected.set(key, found);
        if (this.projected.size > 800) this.projected.delete(this.projected.keys().next().value);
        if (point === this.point) this.draw();
      }, (error) => {
        this.projected.set(key, FAILED);
        this.complain(error);
      });
    }
    return this.projected.get(key);
  }

  share(name, limit, k) {
    const values = this.current[name], most = this.data.limits?.[limit];
    return values && most && k < values.length ? values[k] / most : 0;
  }

  tell() {
    const a = this.current, k = this.point, last = a.gantry_deg.length - 1;
    const fact = (name, value, share = 0) => el("div", {}, el("dt", {}, name), el("dd", { class: share > OVER ? "over" : share >= NEAR ? "near" : "" }, value));
    const of = (name, unit, digits) => (a[name] && k < last ? `${number(a[name][k], digits)} ${unit}` : "–");
    const [x1, x2, y1, y2] = a.jaws_mm[k];
    fill(this.facts,
      fact("Control point", `${k + 1} of ${last + 1}`),
      fact("Gantry", `${number(a.gantry_deg[k])}°`),
      fact("Collimator, couch", `${number(a.collimator_deg)}°, ${number(a.couch_deg)}°`),
      fact("MU so far", `${number(a.cumulative_mu[k], 1)} of ${number(a.cumulative_mu[last], 1)}`),
      ...STRIPS.map(([name, title, unit, limit, digits]) => fact(title, of(name, unit, digits), this.share(name, limit, k))),
      fact("Jaws X, Y", `${number(x1, 0)} to ${number(x2, 0)}, ${number(y1, 0)} to ${number(y2, 0)} mm`));
  }

  draw() {
    if (this.host.hidden || !this.data) return;
    this.eye();
    this.stands();
    STRIPS.forEach((strip, n) => this.strip(this.strips[n], strip));
    for (let k = 0; k <= 4; k++) if (this.point + k < this.current.gantry_deg.length) this.outlines(this.point + k);
  }

  // A control point counts when its picture with the outlines has stood on the screen for a frame at least.
  stands() {
    const { arc, point } = this;
    requestAnimationFrame(() => requestAnimationFrame(() => {
      if (this.arc !== arc || this.point !== point || this.host.hidden || !this.onScreen) return;
      const lines = this.outlines(point);
      if (!lines || lines === FAILED || document.visibilityState !== "visible") return;
      this.visited.add(point);
      if (this.visited.size >= this.current.gantry_deg.length) seen("arc", { arc: this.current.number });
    }));
  }

  eye() {
    const [context, width, height] = fitted(this.canvas);
    const a = this.current, k = this.point;
    const scale = Math.min(width, height) / (2 * this.half);
    const px = (u) => width / 2 + u * scale, py = (v) => height / 2 - v * scale;
    context.fillStyle = "#05080b";
    context.fillRect(0, 0, width, height);
    this.axes(context, width, height, scale);
    const [x1, x2, y1, y2] = a.jaws_mm[k];
    context.fillStyle = "rgba(255, 244, 200, 0.13)";
    let first = 0;
    for (const layer of this.data.layers) {
      const edges = layer.boundaries_mm;
      for (let p = 0; p + 1 < edges.length; p++) {
        const low = Math.max(edges[p], y1), high = Math.min(edges[p + 1], y2);
        const left = Math.max(a.leaves_mm[k][0][first + p], x1), right = Math.min(a.leaves_mm[k][1][first + p], x2);
        if (high > low && right > left) context.fillRect(px(left), py(high), (right - left) * scale, (high - low) * scale);
      }
      first += edges.length - 1;
    }
    this.structures(context, px, py);
    first = 0;
    for (const layer of this.data.layers) {
      this.leaves(context, layer.boundaries_mm, first, px, py, scale);
      first += layer.boundaries_mm.length - 1;
    }
    context.fillStyle = "rgba(120, 150, 180, 0.22)";
    context.fillRect(0, 0, px(x1), height);
    context.fillRect(px(x2), 0, width - px(x2), height);
    context.fillRect(px(x1), 0, px(x2) - px(x1), py(y2));
    context.fillRect(px(x1), py(y1), px(x2) - px(x1), height - py(y1));
    context.strokeStyle = "#9fd0ff";
    context.lineWidth = 1.5;
    context.strokeRect(px(x1), py(y2), px(x2) - px(x1), py(y1) - py(y2));
    if (!this.data.layers.length) write(context, "the leaf boundaries of this machine are not known here", 12, height - 14);
    dial(context, width - 44, 44, a.gantry_deg[k], this.plan.facts.position);
    write(context, "X1", 10, height / 2 - 8);
    write(context, "X2", width - 26, height / 2 - 8);
    write(context, "Y2", width / 2 + 8, 18);
    write(context, "Y1", width / 2 + 8, height - 10);
  }

  leaves(context, edges, first, px, py, scale) {
    const a = this.current, k = this.point, last = a.gantry_deg.length - 1;
    const most = this.data.limits?.leaf_speed_mm_s;
    const gap = this.data.limits?.leaf_gap_mm;
    for (let p = 0; p + 1 < edges.length; p++) {
      const y = py(edges[p + 1]), height = (edges[p + 1] - edges[p]) * scale;
      const at = [a.leaves_mm[k][0][first + p], a.leaves_mm[k][1][first + p]];
      for (const bank of [0, 1]) {
        let colour = "rgba(92, 110, 130, 0.62)";
        if (most && a.time_s && k < last) {
          const speed = Math.abs(a.leaves_mm[k + 1][bank][first + p] - at[bank]) / Math.max(a.time_s[k], 1e-6);
          if (speed > most * OVER) colour = "rgba(255, 90, 80, 0.85)";
          else if (speed > most * NEAR) colour = "rgba(240, 180, 41, 0.75)";
        }
        if (gap && at[1] - at[0] < gap - 0.02 && at[1] - at[0] > 0.02) colour = "rgba(255, 90, 80, 0.85)";
        context.fillStyle = colour;
        const from = bank ? px(at[1]) : px(-400), to = bank ? px(400) : px(at[0]);
        context.fillRect(from, y + 0.4, to - from, Math.max(0.6, height - 0.8));
      }
    }
  }

  structures(context, px, py) {
    const found = this.outlines(this.point);
    const waiting = found === null;
    if (waiting) write(context, "projecting …", 12, this.canvas.clientHeight - 32);
    for (const [key, lines] of Object.entries(found === FAILED ? {} : found || {})) {
      const structure = this.plan.structures.find((s) => s.number === Number(key));
      const colour = structureColour(structure);
      const path = new Path2D();
      for (const line of lines) {
        line.forEach(([u, v], n) => (n ? path.lineTo(px(u), py(v)) : path.moveTo(px(u), py(v))));
        path.closePath();
      }
      context.fillStyle = `${colour}2e`;
      context.fill(path, "evenodd");
      context.lineWidth = 3.4;
      context.strokeStyle = rim(colour);
      context.stroke(path);
      context.lineWidth = 1.8;
      context.strokeStyle = colour;
      context.stroke(path);
    }
  }

  axes(context, width, height, scale) {
    context.strokeStyle = "#26313c";
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(0, height / 2);
    context.lineTo(width, height / 2);
    context.moveTo(width / 2, 0);
    context.lineTo(width / 2, height);
    for (let mm = -400; mm <= 400; mm += 10) {
      const long = mm % 50 === 0 ? 6 : 3;
      context.moveTo(width / 2 + mm * scale, height / 2 - long);
      context.lineTo(width / 2 + mm * scale, height / 2 + long);
      context.moveTo(width / 2 - long, height / 2 + mm * scale);
      context.lineTo(width / 2 + long, height / 2 + mm * scale);
    }
    context.stroke();
  }

  // A row of bars along the arc, one for each segment, with the limit of the machine.
  strip(canvas, [name, title, unit, limit, digits]) {
    const [context, width, height] = fitted(canvas);
    context.fillStyle = "#10161d";
    context.fillRect(0, 0, width, height);
    const values = this.current[name];
    const most = this.data.limits?.[limit];
    context.font = "12px system-ui, sans-serif";
    if (!values) { write(context, `${title}: not known`, 8, 16); return; }
    const top = Math.max(...values, most && most < 3 * Math.max(...values) ? most : 0) * 1.12 || 1;
    const y = (v) => height - 4 - ((height - 26) * v) / top;
    const step = width / values.length;
    values.forEach((v, k) => {
      const share = most ? v / most : 0;
      context.fillStyle = share > OVER ? "#ff5a50" : share >= NEAR ? "#f0b429" : k === this.point ? "#ffffff" : "#3f6f9f";
      context.fillRect(k * step, y(v), Math.max(1, step - 0.5), height - 4 - y(v));
    });
    if (most && most <= top) {
      context.strokeStyle = "#f0b429";
      context.setLineDash([4, 4]);
      context.beginPath();
      context.moveTo(0, y(most));
      context.lineTo(width, y(most));
      context.stroke();
      context.setLineDash([]);
    }
    const at = Math.min(this.point, values.length - 1);
    context.strokeStyle = "#ffffff";
    context.strokeRect(at * step - 0.5, 20, Math.max(2, step), height - 23);
    const text = `${title}  ${number(values[at], digits)} ${unit}${most ? `   limit ${number(most, digits)}` : ""}`;
    write(context, text, 8, 15);
  }

  pick(event) {
    const box = event.target.getBoundingClientRect();
    const count = this.current.gantry_deg.length - 1;
    this.stop();
    this.go(Math.max(0, Math.min(count - 1, Math.floor(((event.clientX - box.left) / box.width) * count))));
  }
}

function fitted(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return [context, width, height];
}

function write(context, text, x, y) {
  context.font = "12px system-ui, sans-serif";
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0,0,0,0.85)";
  context.strokeText(text, x, y);
  context.fillStyle = "#dbe4ec";
  context.fillText(text, x, y);
}

// Where the gantry stands, as seen from the foot of the couch: 0 is up, angles run clockwise.
function dial(context, x, y, degrees) {
  const angle = ((degrees - 90) * Math.PI) / 180;
  context.fillStyle = "rgba(5, 8, 11, 0.75)";
  context.strokeStyle = "#6a7b8c";
  context.lineWidth = 1.5;
  context.beginPath();
  context.arc(x, y, 30, 0, 2 * Math.PI);
  context.fill();
  context.stroke();
  context.strokeStyle = "#ffc400";
  context.lineWidth = 3;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x + 27 * Math.cos(angle), y + 27 * Math.sin(angle));
  context.stroke();
  context.fillStyle = "#dbe4ec";
  context.font = "12px system-ui, sans-serif";
  context.textAlign = "center";
  context.fillText(`${number(degrees, 0)}°`, x, y + 46);
  context.textAlign = "left";
}
