"use strict";
/* Without this script everything is there, one part below the other. All texts are set as text, never as HTML. */
function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

const MOST_TABS = 8;
let number = 0;

/* Several panels of a section become tabs, many of them a list to choose from. */
for (const panels of document.querySelectorAll(".panels")) {
  const all = [...panels.querySelectorAll(":scope > .panel")];
  if (all.length < 2) continue;
  panels.classList.add("tabbed");
  const show = (chosen) => all.forEach((panel, place) => { panel.hidden = place !== chosen; });
  if (all.length > MOST_TABS) {
    const id = "choice-" + ++number, tools = element("div", { class: "tools" });
    const label = element("label", { for: id }, "Show"), choice = element("select", { id });
    all.forEach((panel, place) => choice.append(element("option", { value: place }, panel.dataset.tab)));
    choice.addEventListener("change", () => show(Number(choice.value)));
    label.append(choice);
    tools.append(label);
    panels.before(tools);
    show(0);
    continue;
  }
  const list = element("div", { role: "tablist", class: "tabs", "aria-label": panels.dataset.label });
  const tabs = all.map((panel) => {
    const name = "tab-" + ++number;
    const tab = element("button", { role: "tab", id: name, type: "button", "aria-controls": name + "-panel" }, panel.dataset.tab);
    panel.id = name + "-panel";
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", name);
    list.append(tab);
    return tab;
  });
  const select = (chosen) => {
    show(chosen);
    tabs.forEach((tab, place) => {
      tab.setAttribute("aria-selected", String(place === chosen));
      tab.tabIndex = place === chosen ? 0 : -1;
    });
  };
  list.addEventListener("click", (event) => {
    const place = tabs.indexOf(event.target.closest("button"));
    if (place >= 0) select(place);
  });
  list.addEventListener("keydown", (event) => {
    const now = tabs.indexOf(document.activeElement), last = tabs.length - 1;
    const next = { ArrowRight: now === last ? 0 : now + 1, ArrowLeft: now ? now - 1 : last, Home: 0, End: last }[event.key];
    if (now < 0 || next === undefined) return;
    event.preventDefault();
    select(next);
    tabs[next].focus();
  });
  panels.before(list);
  select(0);
}

function searchField(text) {
  const id = "search-" + ++number, tools = element("div", { class: "tools" });
  const label = element("label", { for: id }, text), field = element("input", { id, type: "search", autocomplete: "off" });
  const status = element("span", { role: "status" });
  label.append(field);
  tools.append(label, status);
  return { tools, field, status };
}

const holds = (text, words) => words.every((word) => text.includes(word));
const wordsOf = (field) => field.value.toLowerCase().split(/\s+/).filter(Boolean);

for (const table of document.querySelectorAll("table[data-filtered]")) {
  const { tools, field, status } = searchField("Only rows with these words");
  const rows = [...table.tBodies[0].rows];
  field.addEventListener("input", () => {
    const words = wordsOf(field);
    rows.forEach((row) => { row.hidden = !holds(row.textContent.toLowerCase(), words); });
    status.textContent = words.length ? rows.filter((row) => !row.hidden).length + " of " + rows.length + " rows" : "";
  });
  table.closest(".scroll").before(tools);
}

/* Example users, one at a time, of those that the filter leaves. */
for (const users of document.querySelectorAll(".users")) {
  const { tools, field, status } = searchField("Only users with these words");
  const id = "hits-" + ++number, check = element("label", { class: "check", for: id });
  const box = element("input", { type: "checkbox", id });
  check.append(box, document.createTextNode("only those whose next purchase was recommended"));
  tools.insertBefore(check, status);
  const pager = element("div", { class: "pager" }), where = element("span", { role: "status" });
  const back = element("button", { type: "button" }, "← Previous"), on = element("button", { type: "button" }, "Next →");
  pager.append(back, on, where);
  const all = [...users.querySelectorAll(".user")], texts = all.map((one) => one.textContent.toLowerCase());
  let left = all, now = 0;
  const show = () => {
    all.forEach((one) => { one.hidden = one !== left[now]; });
    back.disabled = now === 0;
    on.disabled = now >= left.length - 1;
    where.textContent = left.length ? "User " + (now + 1) + " of " + left.length : "No user is left.";
  };
  const narrow = () => {
    const words = wordsOf(field);
    left = all.filter((one, place) => holds(texts[place], words) && (!box.checked || one.dataset.hit === "yes"));
    now = 0;
    show();
  };
  back.addEventListener("click", () => { now -= 1; show(); });
  on.addEventListener("click", () => { now += 1; show(); });
  field.addEventListener("input", narrow);
  box.addEventListener("change", narrow);
  users.before(tools, pager);
  show();
}

const MOST_FOUND = 24;
for (const figure of document.querySelectorAll("figure[data-searched]")) {
  const { tools, field, status } = searchField("Find items by title or category");
  const matches = element("ul", { class: "matches" });
  const points = [...figure.querySelectorAll('[aria-roledescription="point"]')].filter((one) => !one.closest(".role-legend"));
  const texts = points.map((one) => one.getAttribute("aria-label").toLowerCase());
  field.addEventListener("input", () => {
    const words = wordsOf(field);
    figure.classList.toggle("searching", words.length > 0);
    const found = new Set();
    points.forEach((one, place) => {
      const hit = words.length > 0 && holds(texts[place], words);
      one.classList.toggle("found", hit);
      if (hit && one.closest(".wide")) found.add(one);
    });
    status.textContent = words.length ? found.size + " items found" : "";
    const first = [...found].slice(0, MOST_FOUND);
    matches.replaceChildren(...first.map((one) => element("li", {}, one.getAttribute("aria-label"))));
  });
  figure.prepend(tools);
  figure.append(matches);
}

/* What a mark says, at the pointer or at the finger. */
const tip = element("div", { id: "tip", "aria-hidden": "true" });
tip.hidden = true;
document.body.append(tip);
function markAt(event) {
  const mark = event.target.closest?.(".drawing [aria-label][role='graphics-symbol']");
  return mark && !mark.closest(".role-axis, .role-legend") && !mark.matches(".role-axis, .role-legend") ? mark : null;
}
function point(event) {
  const mark = markAt(event);
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.getAttribute("aria-label");
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const above = event.clientY + 18 + tip.offsetHeight > innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (above ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18) + "px";
}
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
