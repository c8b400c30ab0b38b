// The page that shows a plan: which run, which tab, and what all parts share.
// Address: viewer.html?run=ID, with &with=ID of a second plan, &tab=images|dvh|beams|checks.

import { Refused, Source } from "./view/source.js";
import { choice, el, fill, number } from "./view/dom.js";
import { seenFor } from "./view/seen.js";
import { Images } from "./view/images.js";
import { Histograms } from "./view/histograms.js";
import { Beams } from "./view/beams.js";
import { Checks } from "./view/checks.js";

const TABS = [["images", "Images"], ["dvh", "DVH and goals"], ["beams", "Beams"], ["checks", "Checks"]];
const WORDS = { PASSED: "Gate passed", FAILED: "Gate not passed", INCONCLUSIVE: "Gate undecided" };

const asked = new URLSearchParams(location.search);

function complain(error) {
  const notice = document.getElementById("notice");
  notice.textContent = error instanceof Refused ? error.message : `${error.message || error}; load the page again`;
  notice.hidden = false;
}

async function open(run, label, first) {
  const source = new Source(run);
  const facts = await source.json("view");
  return { run, source, facts, structures: [], label, first };
}

async function withStructures(plan) {
  plan.structures = await plan.source.json("structures");
  for (const s of plan.structures) s.layers = new Set(s.slices);
  return plan;
}

function header(plans) {
  const [{ facts }] = plans;
  const verdict = document.getElementById("verdict");
  verdict.textContent = WORDS[facts.outcome] || "Not judged";
  verdict.className = `chip ${facts.outcome === "PASSED" ? "pass" : "fail"}`;
  verdict.hidden = false;
  document.getElementById("title").textContent = facts.sheet || "Plan";
  const levels = [...new Set(Object.values(facts.prescription_gy))].sort((a, b) => b - a);
  const prescribed = levels.length ? `${levels.join("/")} Gy in ${facts.fractions}` : "";
  const parts = [
    (facts.sheet || "").includes(prescribed) ? "" : prescribed,
    facts.mu ? `${number(facts.mu, 0)} MU` : "",
    facts.created ? `planned ${facts.created.slice(0, 16).replace("T", " ")}` : "",
    plans.length > 1 ? "A beside B" : "",
  ];
  document.getElementById("subtitle").textContent = parts.filter(Boolean).join(" · ");
  document.getElementById("training").hidden = !plans.some((plan) => plan.facts.training);
  document.title = facts.sheet ? `${facts.sheet} – plan` : "Plan";
}

async function start() {
  const run = asked.get("run");
  if (!run) throw new Refused("the address names no plan; open one from the worklist");
  seenFor(run);
  const other = asked.get("with");
  const said = [];
  const plans = [await open(run, other ? "A  " : "", true)];
  if (other) {
    const { remarks } = await plans[0].source.json(`against/${encodeURIComponent(other)}`);
    said.push(...remarks);
    plans.push(await open(other, "B  ", false));
  }
  // What could not be read of a run, and what its files do not say.
  for (const { label, facts } of plans) said.push(...facts.remarks.map((remark) => `${label}${remark}`));
  if (said.length) complain(new Refused(said.join("; ")));
  header(plans);
  const images = new Images(document.getElementById("images"), plans, complain);
  const context = {
    plans,
    complain,
    // From a check to the place in the images that it speaks of.
    look({ place, mode, volume }) {
      show("images");
      images.look({ place, mode, volume });
    },
  };
  const parts = {
    images,
    dvh: new Histograms(document.getElementById("dvh"), context),
    beams: new Beams(document.getElementById("beams"), context),
    checks: new Checks(document.getElementById("checks"), context),
  };
  const tabs = choice("What to look at", TABS, "images", (tab) => show(tab));
  fill(document.getElementById("tabs"), tabs);
  function show(tab) {
    tabs.show(tab);
    for (const [name] of TABS) document.getElementById(name).hidden = name !== tab;
    Promise.resolve(parts[tab].show()).catch(complain);
  }
  show(TABS.some(([name]) => name === asked.get("tab")) ? asked.get("tab") : "images");
  await Promise.all(plans.map(withStructures));
  for (const part of Object.values(parts)) part.structured?.();
}

start().catch(complain);
