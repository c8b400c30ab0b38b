// What all pages share: requests with the session's token, elements without markup in strings, times.

let token = "";

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

/** Ask the server; a plain object is sent as JSON, a Blob as it is. Throws Refused with the server's sentence. */
export async function ask(method, path, body, headers = {}) {
  const options = { method, headers: { ...headers }, credentials: "same-origin" };
  if (token) options.headers["X-CSRF-Token"] = token;
  if (body instanceof Blob) {
    options.body = body;
  } else if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused(0, "the server does not answer; is it running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (answer.status === 401 && location.pathname !== "/login") {
    location.assign("/login");
    return new Promise(() => {});
  }
  if (!answer.ok) throw new Refused(answer.status, content.error || `the server answered ${answer.status}`);
  if (content && content.csrf) token = content.csrf;
  return content;
}

/** Who is logged in; fills the head of the page. */
export async function whoAmI() {
  const me = await ask("GET", "/api/session");
  if (!me.id) {
    location.assign("/login");
    return new Promise(() => {});
  }
  const has = (...roles) => roles.some((role) => me.roles.includes(role));
  const links = [];
  if (has("planner", "reviewer")) links.push(["/worklist", "Worklist"]);
  if (has("admin")) links.push(["/admin", "Users and audit"]);
  const nav = document.querySelector("header nav");
  nav.replaceChildren(
    ...links.map(([href, text]) => {
      const link = el("a", { href }, text);
      if (href === location.pathname) link.setAttribute("aria-current", "page");
      return link;
    }),
    el("span", { class: "who" }, `${me.name} (${me.roles.join(", ")})`),
    el("button", { type: "button", class: "plain", id: "password", onclick: () => askNewPassword(me.name) }, "Password"),
    el("button", { type: "button", class: "plain", id: "log-out", onclick: logOut }, "Log out"),
  );
  return { ...me, has };
}

/** A box in which the user changes the own password. */
function askNewPassword(name) {
  const field = (text, complete) => {
    const input = el("input", { type: "password", maxlength: 128, required: true, autocomplete: complete });
    return [el("label", {}, text, input), input];
  };
  const [oldLabel, old] = field("Password so far", "current-password");
  const [newLabel, fresh] = field("New password, at least 12 characters", "new-password");
  const [againLabel, again] = field("New password again", "new-password");
  const told = el("p", { role: "status", class: "quiet" });
  const box = el("dialog", { class: "panel", id: "password-box" }, el("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      if (fresh.value !== again.value) {
        told.textContent = "The two new passwords differ; type the same one twice.";
        return;
      }
      try {
        await ask("POST", "/api/session/password", { password: old.value, new_password: fresh.value });
        box.remove();
        say("The password was changed; other sessions have ended.");
      } catch (refused) {
        told.textContent = refused.message;
      }
    },
  },
    el("h2", {}, "Change your password"),
    el("input", { type: "text", value: name, autocomplete: "username", hidden: true, readonly: true }),
    oldLabel, newLabel, againLabel, told,
    el("div", { class: "row" }, el("button", {}, "Change"),
      el("button", { type: "button", class: "second", onclick: () => box.remove() }, "Close"))));
  document.body.append(box);
  box.showModal();
}

async function logOut() {
  await ask("DELETE", "/api/session").catch(() => {});
  location.assign("/login");
}

/** An element; names with `on` are listeners, texts are never read as markup. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Shows what happened, in the place for it. */
export function say(sentence, bad = false) {
  const place = byId("message");
  place.textContent = sentence ? sentence[0].toUpperCase() + sentence.slice(1) : "";
  place.className = bad ? "bad" : "";
}

/** Runs what a button does; its refusal is shown. */
export async function attempt(work, button) {
  if (button) button.disabled = true;
  try {
    say("");
    return await work();
  } catch (refused) {
    say(refused.message, true);
    return undefined;
  } finally {
    if (button) button.disabled = false;
  }
}

export function when(iso) {
  const moment = new Date(iso);
  return isNaN(moment) ? "" : moment.toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const minutes = Math.floor(whole / 60);
  return minutes >= 60
    ? `${Math.floor(minutes / 60)} h ${minutes % 60} min`
    : minutes
      ? `${minutes} min ${whole % 60} s`
      : `${whole} s`;
}
