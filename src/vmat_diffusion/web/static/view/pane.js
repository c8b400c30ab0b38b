// One plane of one plan on a canvas: CT, dose wash or difference, isodoses, contours, crosshair.

import { differenceColour, rgb, rim, structureColour } from "./colours.js";
import { el, number } from "./dom.js";
import { isolines } from "./isolines.js";
import { seen, watchScreen } from "./seen.js";

// For each plane the axes (x, y, z = 0, 1, 2) of its columns, rows, and across it; rows run down on the
// screen in an axial plane and up in the others.
export const PLANES = {
  axial: { column: 0, row: 1, across: 2, down: 1, title: "Axial", letters: ["R", "L", "A", "P"] },
  coronal: { column: 0, row: 2, across: 1, down: -1, title: "Coronal", letters: ["R", "L", "H", "F"] },
  sagittal: { column: 1, row: 2, across: 0, down: -1, title: "Sagittal", letters: ["A", "P", "H", "F"] },
};
const FLYING_MOST = 4;
const AHEAD = 12;
const STOOD_MS = 40; // so long a slice stands on the screen before it counts: the server believes 25 a second
const HIDDEN_SHARE = 0.1; // no difference is shown where both doses are below this share of the reference

export const sizeOf = (grid) => [grid.shape[2], grid.shape[1], grid.shape[0]];

export function indexAt(grid, axis, mm) {
  const k = Math.round((mm - grid.origin_mm[axis]) / grid.spacing_mm[axis]);
  return Math.max(0, Math.min(sizeOf(grid)[axis] - 1, k));
}

export const positionOf = (grid, axis, index) => grid.origin_mm[axis] + index * grid.spacing_mm[axis];

export class Pane {
  // plan: {source, facts, structures, label}; view: what all panes share; act: what the user's hand does.
  constructor(name, plan, view, act) {
    this.name = name;
    this.plane = PLANES[name];
    this.plan = plan;
    this.view = view;
    this.act = act;
    this.centre = null; // in mm, [column, row]
    this.flying = 0;
    this.direction = 1;
    this.shown = -1;
    this.failed = new Set();
    this.ct = document.createElement("canvas");
    this.wash = document.createElement("canvas");
    this.cached = {};
    this.canvas = el("canvas", { class: "plane", tabindex: "0", role: "img", "aria-label": `${this.plane.title} plane` });
    this.slider = el("input", {
      type: "range", min: "0", max: String(this.layers - 1), step: "1", "aria-label": `${this.plane.title} slice`,
      oninput: () => this.act.goto(this.plane.across, Number(this.slider.value)),
    });
    this.node = el("figure", { class: `pane ${name}` }, this.canvas, this.slider);
    this.node.pane = this;
    listen(this);
    watchScreen(this.canvas, this, () => this.redraw());
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
  }

  get grid() { return this.plan.facts.grid; }
  get layers() { return sizeOf(this.grid)[this.plane.across]; }
  get index() { return indexAt(this.grid, this.plane.across, this.view.point[this.plane.across]); }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  // What a slice needs before it is shown: CT, the volumes of the mode, contours.
  needs(index) {
    const list = [`ct/${this.name}/${index}`];
    for (const volume of this.volumes()) list.push(`dose/${volume}/${this.name}/${index}`);
    if (this.view.contours && this.plan.structures.length) list.push(`outlines/${this.name}/${index}`);
    return list.filter((path) => !this.failed.has(path));
  }

  volumes() {
    const there = this.plan.facts.volumes.map((v) => v.name);
    const wanted = { dose: [this.view.volume], difference: ["planned", "independent"], noise: ["independent_error"], ct: [] };
    const extra = this.view.mode === "noise" && this.view.lines ? ["planned"] : [];
    return [...wanted[this.view.mode], ...extra].filter((name) => there.includes(name));
  }

  volume(name) { return this.plan.facts.volumes.find((v) => v.name === name); }

  // Fetch what the present slice needs, then the slices ahead, a few at a time.
  pump() {
    while (this.flying < FLYING_MOST) {
      const path = this.next();
      if (!path) return;
      this.flying++;
      const [kind, ...rest] = path.split("/");
      const { source } = this.plan;
      const promise = kind === "ct" ? source.ct(...rest) : kind === "dose" ? source.dose(...rest) : source.outlines(...rest);
      promise.catch((error) => {
        this.failed.add(path);
        this.act.complain(error);
      }).finally(() => {
        this.flying--;
        this.redraw();
        this.pump();
      });
    }
  }

  next() {
    const now = this.index;
    const order = [now];
    for (let k = 1; k <= AHEAD; k++) order.push(now + this.direction * k);
    order.push(now - this.direction, now - 2 * this.direction);
    for (const index of order) {
      if (index < 0 || index >= this.layers) continue;
      for (const path of this.needs(index)) {
        if (!this.plan.source.kept.has(path) && !this.plan.source.asked.has(path)) return path;
      }
    }
    return null;
  }

  // The slice to show: the present one, or else the nearest to it on the way there that has arrived.
  best(now) {
    const step = this.shown < 0 ? 0 : Math.sign(this.shown - now);
    for (let k = now; ; k += step) {
      if (this.ready(k)) return k;
      if (!step || k === this.shown) return -1;
    }
  }

  ready(index) { return this.needs(index).every((path) => this.plan.source.kept.has(path)); }

  draw() {
    const now = this.index;
    if (this.last !== undefined && now !== this.last) this.direction = Math.sign(now - this.last);
    this.last = now;
    this.slider.value = String(now);
    this.shown = this.best(now);
    this.pump();
    const ratio = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    if (!width || !height) return;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.place(width, height);
    if (this.shown >= 0) {
      this.images(context, ratio);
    }
    this.stands();
    this.marks(context, ratio, width, height);
    this.node.dataset.shown = String(this.shown);
    this.node.dataset.ready = String(this.shown === now);
  }

  // Scale and centre: at zoom 1 the body fills the plane.
  place(width, height) {
    const { column, row } = this.plane;
    const { low, high } = this.view.frame;
    const fit = Math.min(...Object.values(this.view.fits(this, width, height)));
    this.scale = fit * this.view.zoom;
    this.centre ??= [(low[column] + high[column]) / 2, (low[row] + high[row]) / 2];
    this.size = [width, height];
  }

  toScreen(mm) {
    const { column, row, down } = this.plane;
    return [
      this.size[0] / 2 + (mm[column] - this.centre[0]) * this.scale,
      this.size[1] / 2 + down * (mm[row] - this.centre[1]) * this.scale,
    ];
  }

  toPoint(x, y) {
    const { column, row, down } = this.plane;
    const point = [...this.view.point];
    point[column] = this.centre[0] + (x - this.size[0] / 2) / this.scale;
    point[row] = this.centre[1] + (down * (y - this.size[1] / 2)) / this.scale;
    return point;
  }

  images(context, ratio) {
    const { column, row, down } = this.plane;
    const { spacing_mm: spacing, origin_mm: origin } = this.grid;
    const size = sizeOf(this.grid);
    const k = this.scale * ratio;
    const shift = [
      ratio * (this.size[0] / 2 - this.centre[0] * this.scale),
      ratio * (this.size[1] / 2 - down * this.centre[1] * this.scale),
    ];
    context.setTransform(k, 0, 0, down * k, shift[0], shift[1]);
    const box = [
      origin[column] - spacing[column] / 2, origin[row] - spacing[row] / 2,
      size[column] * spacing[column], size[row] * spacing[row],
    ];
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    this.paintCt(size[column], size[row]);
    context.drawImage(this.ct, ...box);
    this.washed = this.paintWash(size[column], size[row]);
    if (this.washed) context.drawImage(this.wash, ...box);
    this.contours(context, 1 / this.scale);
    this.doseLines(context, 1 / this.scale, size[column], size[row]);
  }

  paintCt(columns, rows) {
    const values = this.plan.source.peek(`ct/${this.name}/${this.shown}`);
    const { window } = this.view;
    if (this.cached.ct === values && this.cached.table === window.table) return;
    Object.assign(this.cached, { ct: values, table: window.table });
    const image = imageOf(this.ct, columns, rows);
    const out = new Uint32Array(image.data.buffer);
    const { grey } = window;
    for (let i = 0; i < values.length; i++) out[i] = grey[values[i] + 32768];
    this.ct.getContext("2d").putImageData(image, 0, 0);
  }

  paintWash(columns, rows) {
    const { mode, wash, revision } = this.view;
    const names = this.volumes();
    if (mode === "ct" || !names.length || (mode === "dose" && wash === 0)) return false;
    if (mode === "difference" && names.length < 2) return false;
    const key = `${this.shown} ${mode} ${names} ${revision}`;
    if (this.cached.wash === key) return true;
    this.cached.wash = key;
    const image = imageOf(this.wash, columns, rows);
    const out = new Uint32Array(image.data.buffer);
    const [first, second] = names.map((n) => this.plan.source.peek(`dose/${n}/${this.name}/${this.shown}`));
    if (mode === "difference") {
      const a = this.volume("planned").step_gy, b = this.volume("independent").step_gy;
      const hidden = HIDDEN_SHARE * this.view.reference;
      const whole = 255 / ((this.view.range / 100) * this.view.reference);
      const table = this.view.differences;
      for (let i = 0; i < first.length; i++) {
        const one = first[i] * a, two = second[i] * b;
        out[i] = one < hidden && two < hidden ? 0 : table[Math.max(0, Math.min(510, 255 + Math.round((two - one) * whole)))];
      }
    } else {
      const table = mode === "noise" ? this.view.noises(this.volume(names[0])) : this.view.bands(this.volume(names[0]));
      for (let i = 0; i < first.length; i++) out[i] = table[first[i]];
    }
    this.wash.getContext("2d").putImageData(image, 0, 0);
    return true;
  }

  contours(context, px) {
    if (!this.view.contours || !this.plan.structures.length) return;
    const found = this.plan.source.peek(`outlines/${this.name}/${this.shown}`);
    if (!found) return;
    if (this.cached.outlines !== found) {
      this.cached.outlines = found;
      this.cached.paths = new Map(Object.entries(found).map(([k, { lines, drawn }]) => [Number(k), { path: pathOf(lines), drawn }]));
    }
    context.lineJoin = "round";
    for (const structure of this.plan.structures) {
      const entry = this.cached.paths.get(structure.number);
      if (!entry || !this.view.visible.has(structure.name)) continue;
      const colour = structureColour(structure);
      const thick = structure.role === "target" ? 2.2 : structure.role === "body" ? 1.1 : 1.6;
      context.setLineDash(entry.drawn || this.name !== "axial" ? [] : [6 * px, 4 * px]);
      context.lineWidth = (thick + 1.6) * px;
      context.strokeStyle = rim(colour);
      context.stroke(entry.path);
      context.lineWidth = thick * px;
      context.strokeStyle = colour;
      context.stroke(entry.path);
    }
    context.setLineDash([]);
  }

  doseLines(context, px, columns, rows) {
    const name = this.view.mode === "dose" ? this.view.volume : "planned";
    if (!this.view.lines || this.view.mode === "ct" || !this.volumes().includes(name)) return;
    const key = `${this.shown} ${name} ${this.view.revision}`;
    if (this.cached.isodoses !== key) {
      this.cached.isodoses = key;
      const { step_gy: step } = this.volume(name);
      const values = this.plan.source.peek(`dose/${name}/${this.name}/${this.shown}`);
      const levels = this.view.levels();
      const lines = levels.length ? isolines(values, columns, rows, levels.map((l) => l.gy / step)) : [];
      this.cached.lines = levels.map((level, k) => ({ colour: level.colour, path: this.pathOfSegments(lines[k]) }));
    }
    for (const { colour, path } of this.cached.lines) {
      context.lineWidth = 1.2 * px;
      context.strokeStyle = colour;
      context.stroke(path);
    }
  }

  pathOfSegments(segments) {
    const { column, row } = this.plane;
    const { spacing_mm: s, origin_mm: o } = this.grid;
    const path = new Path2D();
    for (let k = 0; k < segments.length; k += 4) {
      path.moveTo(o[column] + s[column] * segments[k], o[row] + s[row] * segments[k + 1]);
      path.lineTo(o[column] + s[column] * segments[k + 2], o[row] + s[row] * segments[k + 3]);
    }
    return path;
  }

  marks(context, ratio, width, height) {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const [x, y] = this.toScreen(this.view.point);
    if (this.view.crosshair) {
      const gap = 9;
      context.lineWidth = 1;
      context.strokeStyle = "rgba(140, 200, 255, 0.75)";
      context.beginPath();
      for (const [a, b, c, d] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
        context.moveTo(Math.round(a) + 0.5, Math.round(b) + 0.5);
        context.lineTo(Math.round(c) + 0.5, Math.round(d) + 0.5);
      }
      context.stroke();
    }
    const [left, right, top, bottom] = this.plane.letters;
    context.font = "600 13px system-ui, sans-serif";
    const say = (text, tx, ty, align, baseline, colour) => {
      context.textAlign = align;
      context.textBaseline = baseline;
      context.lineWidth = 3;
      context.strokeStyle = "rgba(0,0,0,0.85)";
      context.strokeText(text, tx, ty);
      context.fillStyle = colour;
      context.fillText(text, tx, ty);
    };
    say(left, 8, height / 2, "left", "middle", "#f2d34f");
    say(right, width - 8, height / 2, "right", "middle", "#f2d34f");
    say(top, width / 2, 8, "center", "top", "#f2d34f");
    say(bottom, width / 2, height - 8, "center", "bottom", "#f2d34f");
    const at = this.shown >= 0 ? this.shown : this.index;
    const axis = this.plane.across;
    const where = `${"xyz"[axis]} ${number(positionOf(this.grid, axis, at))} mm`;
    say(`${this.plan.label}${this.plane.title}`, 10, 9, "left", "top", "#eef3f8");
    context.font = "12px system-ui, sans-serif";
    say(`${where}   ${at + 1}/${this.layers}${this.shown === this.index ? "" : "  loading"}`, 10, 27, "left", "top", "#c4ced8");
    scaleBar(context, this.scale, width, height, say);
  }

  // What of the evidence is drawn now: the targets whose contour is on an axial slice, and the difference map.
  evidence() {
    const none = { targets: [], difference: false };
    if (this.shown < 0 || this.shown !== this.index || !this.plan.first) return none;
    const difference = this.view.mode === "difference" && this.washed;
    const lines = this.view.contours && this.name === "axial" && this.plan.source.peek(`outlines/axial/${this.shown}`);
    if (!lines || !this.plan.source.peek(`ct/axial/${this.shown}`)) return { targets: [], difference };
    const there = (s) => s.role === "target" && this.view.visible.has(s.name) && s.layers.has(this.shown) && lines[s.number];
    return { targets: this.plan.structures.filter(there).map((s) => s.name), difference };
  }

  // After each drawing: evidence counts as seen when it has stood on the screen for a while.
  stands() {
    const { targets, difference } = this.evidence();
    const key = `${this.shown} ${difference} ${targets}`;
    if (this.standing?.key === key) return this.stood();
    this.stood();
    clearTimeout(this.resting);
    this.standing = { key, targets, difference, slice: this.shown, since: performance.now() };
    if (targets.length || difference) this.resting = setTimeout(() => this.stood(), STOOD_MS);
    return undefined;
  }

  stood() {
    const found = this.standing;
    if (!found || performance.now() - found.since < STOOD_MS) return;
    if (!this.onScreen || document.visibilityState !== "visible") return;
    for (const structure of found.targets) seen("slices", { structure, slices: [found.slice] });
    if (found.difference) seen("difference");
  }
}

function imageOf(canvas, columns, rows) {
  if (canvas.width !== columns || canvas.height !== rows) {
    canvas.width = columns;
    canvas.height = rows;
    canvas.image = null;
  }
  canvas.image ??= canvas.getContext("2d").createImageData(columns, rows);
  return canvas.image;
}

function pathOf(lines) {
  const path = new Path2D();
  for (const line of lines) {
    line.forEach(([x, y], k) => (k ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return path;
}

function scaleBar(context, scale, width, height, say) {
  const mm = [100, 50, 20, 10, 5].find((length) => length * scale < width / 4);
  if (!mm) return;
  const y = height - 12, x = 12;
  context.strokeStyle = "#c4ced8";
  context.lineWidth = 1.5;
  context.beginPath();
  context.moveTo(x, y - 4);
  context.lineTo(x, y);
  context.lineTo(x + mm * scale, y);
  context.lineTo(x + mm * scale, y - 4);
  context.stroke();
  say(mm >= 10 ? `${mm / 10} cm` : `${mm} mm`, x + mm * scale + 6, y + 3, "left", "bottom", "#c4ced8");
}

export const pixel = ([r, g, b], alpha) => ((Math.round(255 * alpha) << 24) | (b << 16) | (g << 8) | r) >>> 0;

export function differenceTable() {
  const table = new Uint32Array(511);
  for (let k = 0; k < 511; k++) {
    const share = (k - 255) / 255;
    const strength = Math.abs(share);
    table[k] = pixel(differenceColour(share).map(Math.round), strength < 0.1 ? 0 : 0.25 + 0.55 * strength);
  }
  return table;
}

// Mouse: click and drag move the crosshair, the wheel scrolls, with Ctrl it zooms, the right button or Shift pans.
// Touch: one finger moves the crosshair on a tap and scrolls on a drag, two fingers zoom and pan.
function listen(pane) {
  const { canvas } = pane;
  const pointers = new Map();
  let start = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const scroll = (by) => pane.act.goto(pane.plane.across, pane.index + by);

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) pane.act.zoom(Math.exp(-event.deltaY / 300));
    else scroll(Math.sign(event.deltaY) * (event.shiftKey ? 5 : 1) * (pane.name === "axial" ? -1 : 1));
  }, { passive: false });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => { pane.centre = null; pane.act.zoom(0); });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowUp: 1, ArrowDown: -1, PageUp: 5, PageDown: -5 }[event.key];
    if (by) { event.preventDefault(); scroll(by); }
    if (event.key === "+" || event.key === "=") pane.act.zoom(1.25);
    if (event.key === "-") pane.act.zoom(0.8);
  });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    pointers.set(event.pointerId, at(event));
    const pan = event.button !== 0 || event.shiftKey;
    start = { at: at(event), index: pane.index, centre: pane.centre && [...pane.centre], pan, moved: false };
    if (pointers.size === 2) start.spread = spread(pointers);
    if (event.pointerType === "mouse" && !pan) pane.act.point(pane.toPoint(...at(event)));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId) || !start) return;
    const before = pointers.get(event.pointerId), now = at(event);
    pointers.set(event.pointerId, now);
    if (Math.hypot(now[0] - start.at[0], now[1] - start.at[1]) > 6) start.moved = true;
    if (pointers.size === 2) {
      const wide = spread(pointers);
      pane.act.zoom(wide / start.spread);
      start.spread = wide;
      move(before, now, 0.5);
    } else if (start.pan) move(before, now, 1);
    else if (event.pointerType === "mouse") pane.act.point(pane.toPoint(...now));
    else if (start.moved) pane.act.goto(pane.plane.across, start.index + Math.round((start.at[1] - now[1]) / 6));
  });
  const end = (event) => {
    if (pointers.delete(event.pointerId) && start && !start.moved && event.pointerType !== "mouse" && event.type === "pointerup") {
      pane.act.point(pane.toPoint(...at(event)));
    }
    if (!pointers.size) start = null;
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);

  function move(before, now, share) {
    pane.centre[0] -= (share * (now[0] - before[0])) / pane.scale;
    pane.centre[1] -= (share * pane.plane.down * (now[1] - before[1])) / pane.scale;
    pane.act.moved(pane);
  }
}

function spread(pointers) {
  const [a, b] = [...pointers.values()];
  return Math.max(20, Math.hypot(a[0] - b[0], a[1] - b[1]));
}
