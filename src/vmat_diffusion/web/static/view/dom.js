// Elements by code: texts are always set as text, never as HTML.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return node;
}

export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((c) => c !== null && c !== undefined));
  return node;
}

// A group of buttons of which one is pressed.
export function choice(label, options, current, onchange) {
  const group = el("div", { class: "choice", role: "group", "aria-label": label });
  const show = (value) => {
    for (const button of group.children) {
      button.setAttribute("aria-pressed", String(button.dataset.value === String(value)));
    }
  };
  for (const [value, text] of options) {
    const button = el("button", { type: "button", onclick: () => { show(value); onchange(value); } }, text);
    button.dataset.value = value;
    group.append(button);
  }
  show(current);
  group.show = show;
  return group;
}

export function swatch(colour, line = "solid") {
  const mark = el("span", { class: `swatch ${line}` });
  mark.style.setProperty("--colour", colour);
  return mark;
}

export const number = (value, digits = 1) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits).replace("-", "−");
