// One way to tell the server what was shown, so that it can open what depends on it.
// kind: "slices" {structure, plane, slices}, "check" {key}, "dvh", "goals", "complexity", "arc" {arc}, "difference".

const WAIT_MS = 800;
const AGAIN_MS = 3000; // the server leaves out slices that pass faster than one can look: they are told of again
let root = "";
let token = null;
const told = new Map(); // what was told -> when
const slices = new Map(); // structure -> set of slices not yet told
let timer = null;

export function seenFor(run) { root = `/api/runs/${encodeURIComponent(run)}/seen`; }

export function seen(kind, detail = {}) {
  if (kind === "slices") {
    const fresh = detail.slices.filter((k) => mark(`slices ${detail.structure} ${k}`, AGAIN_MS));
    if (!fresh.length) return;
    const waiting = slices.get(detail.structure) || new Set();
    fresh.forEach((k) => waiting.add(k));
    slices.set(detail.structure, waiting);
    clearTimeout(timer);
    timer = setTimeout(flush, WAIT_MS);
    return;
  }
  if (mark(`${kind} ${JSON.stringify(detail)}`)) post(kind, detail);
}

function mark(key, again = Infinity) {
  const now = performance.now();
  if (told.has(key) && now - told.get(key) < again) return false;
  told.set(key, now);
  return true;
}

function flush() {
  for (const [structure, waiting] of slices) {
    post("slices", { structure, plane: "axial", slices: [...waiting].sort((a, b) => a - b) });
  }
  slices.clear();
}

addEventListener("pagehide", flush);

async function post(kind, detail) {
  document.dispatchEvent(new CustomEvent("seen", { detail: { kind, detail } }));
  if (window.parent !== window) {
    window.parent.postMessage({ seen: kind, detail }, window.location.origin);
  }
  try {
    token ??= fetch("/api/session", { credentials: "same-origin" }).then((a) => a.json()).then((s) => s.csrf || "");
    await fetch(root, {
      method: "POST",
      credentials: "same-origin",
      keepalive: true,
      headers: { "Content-Type": "application/json", "X-CSRF-Token": await token },
      body: JSON.stringify({ kind, detail }),
    });
  } catch { /* without the server nothing opens: the page still shows the plan */ }
}
