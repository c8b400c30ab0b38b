// One way to tell the server what stood on the screen, so that it can open what depends on it. Who asks for
// something has not seen it: `seen` is called after it was drawn and stood there, which `seenOnScreen` waits for.
// kind: "slices" {structure, plane, slices}, "check" {key}, "dvh", "goals", "complexity", "arc" {arc}, "difference", "report".

const WAIT_MS = 800;
const LOOK_MS = 500; // what is on the screen for less was not looked at
const TRIES = 5;
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

// Tells of something once it is drawn and has been on the screen for a while, in a page that is in front.
// Returns what ends the watch.
export function seenOnScreen(node, kind, detail = {}) {
  let timer = null;
  let inView = false;
  const look = () => {
    clearTimeout(timer);
    if (inView && document.visibilityState === "visible") timer = setTimeout(done, LOOK_MS);
  };
  const watch = new IntersectionObserver((entries) => {
    inView = entries.at(-1).isIntersecting;
    look();
  });
  const end = () => {
    clearTimeout(timer);
    watch.disconnect();
    document.removeEventListener("visibilitychange", look);
  };
  function done() {
    end();
    seen(kind, detail);
  }
  document.addEventListener("visibilitychange", look);
  watch.observe(node);
  return end;
}

// Keeps in `holder.onScreen` whether at least half of an element is on the screen.
export function watchScreen(node, holder, then) {
  new IntersectionObserver((entries) => {
    holder.onScreen = entries.at(-1).isIntersecting;
    if (holder.onScreen) then();
  }, { threshold: 0.5 }).observe(node);
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
  for (let number = 1; number <= TRIES; number++) {
    try {
      token ??= fetch("/api/session", { credentials: "same-origin" }).then((a) => a.json()).then((s) => s.csrf || "");
      const answer = await fetch(root, {
        method: "POST",
        credentials: "same-origin",
        keepalive: true,
        headers: { "Content-Type": "application/json", "X-CSRF-Token": await token },
        body: JSON.stringify({ kind, detail }),
      });
      if (answer.ok) return announce(kind, detail);
      if (answer.status < 500) return undefined;
    } catch {
      token = null; // without the server nothing opens: the page still shows the plan
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * number));
  }
  return undefined;
}

// After the server knows: the page around asks it then what is open.
function announce(kind, detail) {
  document.dispatchEvent(new CustomEvent("seen", { detail: { kind, detail } }));
  if (window.parent !== window) {
    window.parent.postMessage({ seen: kind, detail }, window.location.origin);
  }
}
