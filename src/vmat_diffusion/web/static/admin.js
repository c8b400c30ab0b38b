import { whoAmI } from "/static/room.js";

await whoAmI();
