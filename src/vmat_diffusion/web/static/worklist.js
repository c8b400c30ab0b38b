import { ask, byId, el, whoAmI } from "/static/room.js";

await whoAmI();
const list = await ask("GET", "/api/worklist");
byId("content").replaceChildren(...list.cases.map((one) => el("p", {}, one.label)));
