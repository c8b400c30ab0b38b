// Lines of equal dose on a plane of pixels: marching squares, one pass for all levels.

// values: numbers row by row; levels in the same unit, ascending. Gives a flat array of segments
// [x0, y0, x1, y1, ...] in pixel coordinates for each level; pixel centres are whole numbers.
export function isolines(values, columns, rows, levels) {
  const out = levels.map(() => []);
  const lowest = levels[0];
  const highest = levels[levels.length - 1];
  for (let j = 0; j < rows - 1; j++) {
    for (let i = 0; i < columns - 1; i++) {
      const at = j * columns + i;
      const a = values[at], b = values[at + 1], c = values[at + columns + 1], d = values[at + columns];
      const low = Math.min(a, b, c, d), high = Math.max(a, b, c, d);
      if (high < lowest || low >= highest || low === high) continue;
      for (let k = 0; k < levels.length; k++) {
        const level = levels[k];
        if (low >= level || high < level) continue;
        cell(out[k], level, i, j, a, b, c, d);
      }
    }
  }
  return out;
}

function cell(out, level, i, j, a, b, c, d) {
  const code = (a >= level ? 1 : 0) | (b >= level ? 2 : 0) | (c >= level ? 4 : 0) | (d >= level ? 8 : 0);
  const top = () => [i + (level - a) / (b - a), j];
  const right = () => [i + 1, j + (level - b) / (c - b)];
  const bottom = () => [i + (level - d) / (c - d), j + 1];
  const left = () => [i, j + (level - a) / (d - a)];
  const line = (p, q) => out.push(p[0], p[1], q[0], q[1]);
  switch (code) {
    case 1: case 14: return line(left(), top());
    case 2: case 13: return line(top(), right());
    case 3: case 12: return line(left(), right());
    case 4: case 11: return line(right(), bottom());
    case 6: case 9: return line(top(), bottom());
    case 7: case 8: return line(left(), bottom());
    case 5: case 10: {
      // A saddle: the mean of the corners decides which of them are joined.
      const joined = (a + b + c + d) / 4 >= level;
      if ((code === 5) === joined) { line(left(), bottom()); line(top(), right()); }
      else { line(left(), top()); line(right(), bottom()); }
    }
  }
}
