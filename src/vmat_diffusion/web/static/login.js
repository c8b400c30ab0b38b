// Logging in, and making the first admin.

import { ask, attempt, byId, say } from "/static/room.js";

const login = byId("login");
const setUp = byId("set-up");

function sent(form, path, body) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(async () => {
      const content = body(Object.fromEntries(new FormData(form)));
      if (!content) return;
      await ask("POST", path, content);
      location.assign("/");
    }, form.querySelector("button"));
  });
}

sent(login, "/api/session", ({ name, password }) => ({ name, password }));
sent(setUp, "/api/setup", ({ token, name, password, again }) => {
  if (password !== again) {
    say("The two passwords differ; type the same one twice", true);
    return null;
  }
  return { token, name, password };
});

attempt(async () => {
  const me = await ask("GET", "/api/session");
  if (me.id) location.assign("/");
  (me.set_up ? setUp : login).hidden = false;
});
