// What the server gives: JSON, and planes kept in memory, the ones looked at last.

const MOST_BYTES = (navigator.deviceMemory || 4) < 4 ? 96e6 : 320e6;

export class Refused extends Error {}

export async function ask(path) {
  const answer = await fetch(path, { credentials: "same-origin", headers: { Accept: "application/json" } });
  if (answer.ok) return answer;
  let sentence = `the server answered ${answer.status}; load the page again`;
  try {
    const said = await answer.json();
    sentence = said.error || said.detail || sentence;
  } catch { /* no JSON: the sentence above stands */ }
  throw new Refused(sentence);
}

export class Source {
  constructor(run) {
    this.run = run;
    this.root = `/api/runs/${encodeURIComponent(run)}`;
    this.kept = new Map(); // path -> {value, bytes}, the oldest first
    this.asked = new Map(); // path -> promise
    this.bytes = 0;
  }

  async json(path) {
    return (await ask(`${this.root}/${path}`)).json();
  }

  ct(plane, index) { return this.plane(`ct/${plane}/${index}`, Int16Array); }
  dose(volume, plane, index) { return this.plane(`dose/${volume}/${plane}/${index}`, Uint16Array); }

  outlines(plane, index) {
    return this.keep(`outlines/${plane}/${index}`, async (answer) => {
      const text = await answer.text();
      return [JSON.parse(text), 4 * text.length];
    });
  }

  plane(path, kind) {
    return this.keep(path, async (answer) => {
      const buffer = await answer.arrayBuffer();
      return [new kind(buffer), buffer.byteLength];
    });
  }

  // The value at once where it is there, else undefined.
  peek(path) {
    const found = this.kept.get(path);
    if (!found) return undefined;
    this.kept.delete(path);
    this.kept.set(path, found);
    return found.value;
  }

  keep(path, read) {
    const there = this.peek(path);
    if (there !== undefined) return Promise.resolve(there);
    if (this.asked.has(path)) return this.asked.get(path);
    const promise = ask(`${this.root}/${path}`).then(read).then(([value, bytes]) => {
      this.kept.set(path, { value, bytes });
      this.bytes += bytes;
      for (const [old, entry] of this.kept) {
        if (this.bytes <= MOST_BYTES) break;
        this.kept.delete(old);
        this.bytes -= entry.bytes;
      }
      return value;
    }).finally(() => this.asked.delete(path));
    this.asked.set(path, promise);
    return promise;
  }
}
