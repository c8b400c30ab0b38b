// Windows, isodose levels, and the colours of structures and differences.

export const WINDOWS = [
  ["soft", "Soft tissue", 40, 400],
  ["brain", "Brain", 40, 100],
  ["lung", "Lung", -500, 1500],
  ["bone", "Bone", 400, 1800],
  ["wide", "Wide", 0, 2500],
];

// In percent of the reference dose, with the colours of the report.
export const ISODOSES = [
  [107, "#e8114f"], [105, "#ff8000"], [100, "#ffc400"], [95, "#d4dc2a"], [90, "#6cc832"],
  [80, "#1cbf8c"], [70, "#18b4d8"], [50, "#2f86e0"], [30, "#5565e0"],
];

const FALLBACK = {
  target: ["#ff5a5a", "#ff9a3d", "#ff63b0"],
  organ: ["#5aa9ff", "#4fd06a", "#b48bff", "#2fd0d8", "#d49a7a", "#ff9de0", "#9fb0ff", "#b7d433"],
  body: ["#9aa7b4"],
  other: ["#c8c86a"],
};

export function rgb(text) {
  const v = parseInt(text.slice(1), 16);
  return [v >> 16, (v >> 8) & 255, v & 255];
}

export const hex = ([r, g, b]) => `#${[r, g, b].map((v) => v.toString(16).padStart(2, "0")).join("")}`;

export function structureColour(structure) {
  if (structure.colour) return hex(structure.colour);
  const palette = FALLBACK[structure.role] || FALLBACK.other;
  return palette[structure.number % palette.length];
}

// Dark colours of a structure set need a light rim on a dark image, light ones a dark rim.
export function rim(colour) {
  const [r, g, b] = rgb(colour);
  return 0.299 * r + 0.587 * g + 0.114 * b < 80 ? "rgba(255,255,255,0.55)" : "rgba(0,0,0,0.6)";
}

// A table of 256 grey levels is made of HU by a window: 65536 entries, once for each window.
export function windowTable(level, width) {
  const table = new Uint8ClampedArray(65536);
  const low = level - width / 2;
  for (let hu = -32768; hu < 32768; hu++) table[hu + 32768] = (255 * (hu - low)) / width;
  return table;
}

// Blue where the independent dose is lower, red where it is higher; 0 is white-less: transparent.
export function differenceColour(share) {
  const s = Math.max(-1, Math.min(1, share));
  const a = Math.abs(s);
  return s < 0 ? [40 + 20 * (1 - a), 110 + 90 * (1 - a), 255] : [255, 100 + 110 * (1 - a), 50 + 60 * (1 - a)];
}
