// Shows what the service is doing, and looks again every two seconds. Whatever comes from the service is put into the page as text.
"use strict";

const LOOK_AGAIN_AFTER = 2000;
const PATIENCE = 10000;
const MOST_ROWS = 200;
const STEPS = [10, 12, 15, 20, 25, 30, 40, 50, 60, 80];
const PHASES = [["publish", "publish"], ["place", "place"], ["mount", "mount"], ["start", "start"], ["init", "init"], ["first_byte", "first byte"]];
const TIERS = ["memory", "disk", "zone", "origin"];

const by = (id) => document.getElementById(id);
let token = takeToken();
let last = null;
let before = null;
let chosen = null;
let lostSince = null;
let timer = null;
let isLooking = false;

// What follows the number sign is never sent. It is taken out of the address, where others might see it.
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    history.replaceState(null, "", location.pathname);
    keep(given);
    return given;
  }
  try {
    return sessionStorage.getItem("token");
  } catch {
    return null;
  }
}

// For as long as this tab is there, so that it can be loaded again.
function keep(value) {
  try {
    sessionStorage.setItem("token", value);
  } catch {
    // Then it is asked for again.
  }
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const count = (number) => Number(number ?? 0).toLocaleString("en");

function duration(us) {
  if (us === null || us === undefined) return "–";
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${+(us / 1e3).toPrecision(3)} ms`;
  if (us < 6e7) return `${+(us / 1e6).toPrecision(3)} s`;
  return age(us / 1e6);
}

function age(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1023.5 && unit + 1 < units.length) {
    bytes /= 1024;
    unit += 1;
  }
  return `${+bytes.toPrecision(3)} ${units[unit]}`;
}

function state(f) {
  if (f.state === "Active" && f.last_update === "InProgress") return "updating";
  if (f.state === "Active" && f.last_update === "Failed") return "update failed";
  return String(f.state ?? "unknown").toLowerCase();
}

const idOf = (f) => `${f.tenant}/${f.name}`;
const named = (status, f) => (status.tenant === null ? `${f.tenant}/${f.name}` : f.name);

async function look() {
  if (isLooking) return;
  isLooking = true;
  clearTimeout(timer);
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch("/_snowmelt/status", { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (answer.status === 403) {
      ask(token !== null);
      return;
    }
    if (!answer.ok) throw new Error(`the service says ${answer.status}`);
    const status = await answer.json();
    if (!Array.isArray(status.functions)) throw new Error("the service does not say what it is doing");
    before = last;
    last = status;
    lostSince = null;
    document.body.classList.remove("lost");
    by("ask").hidden = true;
    by("all").hidden = false;
    live(status.is_ending ? "lost" : "live", status.is_ending ? "the service is ending" : "live");
    show();
  } catch (error) {
    lost(error);
  } finally {
    isLooking = false;
  }
  // Nobody looks at a page that is not seen.
  if (!document.hidden) timer = setTimeout(look, LOOK_AGAIN_AFTER);
}

function live(kind, text) {
  by("live").dataset.state = kind;
  by("live").textContent = text;
}

function lost(error) {
  lostSince ??= Date.now();
  document.body.classList.add("lost");
  const gone = error instanceof TypeError || error.name === "TimeoutError";
  const reason = gone ? "the service does not answer" : error.message;
  live("lost", `${reason}; trying again, ${age((Date.now() - lostSince) / 1000)} so far`);
}

function ask(isWrong) {
  token = null;
  try {
    sessionStorage.removeItem("token");
  } catch {
    // There was none then.
  }
  by("all").hidden = true;
  by("ask").hidden = false;
  by("wrong").hidden = !isWrong;
  live("waiting", "waiting for a token");
}

function show() {
  const status = last;
  const whose = status.tenant === null ? "all tenants" : `tenant ${status.tenant}`;
  by("about").textContent = `${location.host} · ${whose} · up ${age(Math.max(0, status.time - status.started))}`;
  tiles(status);
  const f = status.functions.find((one) => idOf(one) === chosen);
  if (!f) chosen = null;
  const measures = f ? f.measures : status.totals;
  by("scope").textContent = f ? named(status, f) : "All functions";
  by("everything").hidden = !f;
  histogram(by("warm"), measures.warm_overhead, "warm", "warm starts");
  histogram(by("cold"), measures.cold_start, "cold", "cold starts");
  phases(by("phases"), measures.phases);
  tiers(by("tiers"), measures.reads);
  functions(status);
  sandboxes(status);
}

function rate(status) {
  const isSame = before && before.started === status.started && status.time > before.time;
  return isSame ? Math.max(0, status.totals.invocations - before.totals.invocations) / (status.time - before.time) : null;
}

function tiles(status) {
  const totals = status.totals;
  const sum = (kind) => status.functions.reduce((all, f) => all + f.sandboxes[kind], 0);
  const perSecond = rate(status);
  const starts = totals.cold_starts + totals.warm_starts;
  const share = starts === 0 ? "–" : `${+((totals.cold_starts * 100) / starts).toPrecision(3)} %`;
  const memory = status.memory;
  const all = [
    ["Calls a second", perSecond === null ? "–" : perSecond.toFixed(1), `${count(totals.invocations)} so far`],
    ["Running", count(totals.running), `${count(status.functions.reduce((n, f) => n + f.waiting, 0))} waiting`],
    ["Sandboxes", count(sum("busy") + sum("idle") + sum("starting")), `${count(sum("busy"))} busy, ${count(sum("idle"))} idle${sum("starting") ? `, ${count(sum("starting"))} starting` : ""}`],
    ["Cold", share, `${count(totals.cold_starts)} cold, ${count(totals.warm_starts)} warm`],
    ["Own time", duration(totals.duration.p50_us), `p99 ${duration(totals.duration.p99_us)}`],
    ["Failed", count(totals.errors + totals.faults), `${count(totals.throttles)} turned away`],
    ["Memory", size(memory.containers + memory.agents + memory.hosts), `agents ${size(memory.agents)}`],
  ];
  by("tiles").replaceChildren(...all.map(([name, value, more]) => element("div", { class: "tile" },
    element("div", { class: "name" }, name), element("div", { class: "value" }, value), element("div", { class: "more" }, more))));
}

// The column that a bucket's upper bound has, counted from 10 µs.
function column(bound) {
  const decade = Math.floor(Math.log10(bound / 10) + 1e-9);
  const step = Math.round(bound / 10 ** decade);
  const at = STEPS.findIndex((one) => one >= step);
  return decade * STEPS.length + (at < 0 ? STEPS.length : at);
}

function none(place, text) {
  place.replaceChildren(element("div", { class: "none" }, text));
}

function histogram(place, times, kind, name) {
  const known = (times?.buckets ?? []).filter(([bound]) => bound !== null);
  if (known.length === 0) return none(place, `no ${name} yet`);
  const [width, height, left, bottom, top] = [Math.max(place.clientWidth, 200), 190, 34, 22, 22];
  const per = STEPS.length;
  // Column c has what is at most its bound; 1 ms is the right edge of its own.
  const low = Math.floor((column(known[0][0]) - 1) / per);
  const high = Math.max(Math.ceil(column(known.at(-1)[0]) / per), low + 1);
  const [first, columns] = [low * per + 1, (high - low) * per];
  const step = (width - left - 6) / columns;
  const most = Math.max(...known.map(([, n]) => n));
  const y = (n) => top + (height - top - bottom) * (1 - n / most);
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${count(times.count)} ${name}, median ${duration(times.p50_us)}, 99th percentile ${duration(times.p99_us)}` });
  for (const n of [0, most]) {
    svg.append(drawing("line", { class: "grid", x1: left, x2: width, y1: y(n), y2: y(n) }),
      drawing("text", { x: left - 6, y: y(n) + 4, "text-anchor": "end" }, count(n)));
  }
  // No label may lie on another.
  const every = Math.max(1, Math.ceil(52 / (per * step)));
  for (let decade = low; decade <= high; decade += every) {
    const x = left + (decade - low) * per * step;
    const isLast = decade === high;
    svg.append(drawing("line", { class: "grid", x1: x, x2: x, y1: y(0), y2: y(0) + 5 }),
      drawing("text", { x: isLast ? width - 2 : x, y: height - 5, "text-anchor": isLast ? "end" : decade === low ? "start" : "middle" }, duration(10 * 10 ** decade)));
  }
  for (const [bound, n] of known) {
    const at = column(bound) - first;
    const tall = Math.max(height - bottom - y(n), 1.5);
    svg.append(drawing("rect", { class: kind, x: (left + at * step + 0.5).toFixed(2), y: (y(0) - tall).toFixed(2),
      width: Math.max(step - 1, 1).toFixed(2), height: tall.toFixed(2), rx: 1 },
    drawing("title", {}, `up to ${duration(bound)}: ${count(n)}`)));
  }
  svg.append(drawing("text", { class: "label", x: left, y: 12 }, `${count(times.count)} · p50 ${duration(times.p50_us)} · p99 ${duration(times.p99_us)}`));
  place.replaceChildren(svg);
}

function phases(place, all) {
  const known = PHASES.map(([key, name]) => [name, all?.[key]]).filter(([, times]) => times?.count > 0);
  if (known.length === 0) return none(place, "no cold starts yet");
  const [width, line, left, right] = [Math.max(place.clientWidth, 200), 29, 68, 112];
  const height = known.length * line + 8;
  // By orders of magnitude: a publish takes a thousand times what a mount does.
  const low = Math.log10(Math.max(Math.min(...known.map(([, t]) => t.p50_us)) / 2, 10));
  const high = Math.max(Math.log10(Math.max(...known.map(([, t]) => t.p99_us), 20)), low + 0.1);
  const x = (us) => left + (width - left - right) * Math.min(1, Math.max(0, (Math.log10(Math.max(us, 1)) - low) / (high - low)));
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Parts of a cold start" });
  known.forEach(([name, times], at) => {
    const y = at * line + 6;
    svg.append(drawing("text", { class: "label", x: 0, y: y + 14 }, name),
      drawing("rect", { class: "range", x: left, y, width: Math.max(x(times.p99_us) - left, 2), height: line - 11, rx: 3 }),
      drawing("rect", { class: "cold", x: left, y, width: Math.max(x(times.p50_us) - left, 2), height: line - 11, rx: 3 },
        drawing("title", {}, `${name}: ${count(times.count)}, median ${duration(times.p50_us)}, 99th percentile ${duration(times.p99_us)}`)),
      drawing("text", { x: width, y: y + 14, "text-anchor": "end" }, range(times)));
  });
  place.replaceChildren(svg);
}

function range(times) {
  const [half, most] = [duration(times.p50_us), duration(times.p99_us)];
  return half === most ? half : `${half} – ${most}`;
}

function tiers(place, reads) {
  const all = TIERS.map((tier) => [tier, reads?.[tier]?.chunks ?? 0, reads?.[tier]?.bytes ?? 0]);
  const sum = all.reduce((n, [, chunks]) => n + chunks, 0);
  if (sum === 0) return none(place, "nothing read yet");
  const bar = element("div", { class: "bar", role: "img", "aria-label": all.map(([tier, chunks]) => `${tier} ${chunks}`).join(", ") });
  for (const [tier, chunks] of all.filter(([, n]) => n > 0)) {
    const part = element("i", { class: `tier-${tier}`, title: `${tier}: ${count(chunks)} chunks` });
    part.style.flexGrow = chunks;
    bar.append(part);
  }
  place.replaceChildren(bar, element("ul", { class: "keys" }, ...all.map(([tier, chunks, bytes]) => element("li", {},
    element("b", { class: `tier-${tier}` }), element("span", {}, tier), element("span", {}, `${count(chunks)} chunks`),
    element("span", {}, `${size(bytes)}, ${+((chunks * 100) / sum).toPrecision(3)} %`)))));
}

const number = (text) => element("td", { class: "n" }, text);

function functions(status) {
  by("function-count").textContent = count(status.functions.length);
  by("empty").hidden = status.functions.length > 0;
  by("functions").parentElement.hidden = status.functions.length === 0;
  // A row that has the keyboard's focus keeps it.
  const focused = document.activeElement?.dataset?.function;
  const rows = status.functions.slice(0, MOST_ROWS).map((f) => {
    const [doing, m] = [state(f), f.measures];
    const name = element("button", { type: "button", title: f.description || "show its times alone" }, named(status, f));
    name.dataset.function = idOf(f);
    name.addEventListener("click", () => choose(chosen === idOf(f) ? null : idOf(f)));
    const kind = doing === "update failed" ? "failed" : doing;
    const reason = f.state_reason ?? f.last_update_reason;
    return element("tr", chosen === idOf(f) ? { class: "chosen" } : {},
      element("td", {}, name),
      element("td", { class: `state state-${kind.replace(/[^a-z]/g, "")}`, ...(reason ? { title: reason } : {}) }, doing),
      number(count(m.invocations)), number(count(m.errors)), number(count(m.cold_starts)), number(count(m.warm_starts)),
      number(count(f.sandboxes.busy)), number(count(f.sandboxes.idle)),
      number(duration(m.duration.p50_us)), number(duration(m.duration.p99_us)), number(`${count(f.memory_mb)} MB`),
      element("td", { class: "image", title: f.image }, element("bdi", {}, f.image)));
  });
  by("functions").tBodies[0].replaceChildren(...rows);
  if (focused) [...document.querySelectorAll("[data-function]")].find((one) => one.dataset.function === focused)?.focus();
}

function sandboxes(status) {
  const all = status.sandboxes;
  by("sandbox-count").textContent = count(all.length);
  by("sandboxes").parentElement.hidden = all.length === 0;
  by("more").hidden = all.length <= MOST_ROWS;
  by("more").textContent = `and ${count(all.length - MOST_ROWS)} more`;
  by("sandboxes").tBodies[0].replaceChildren(...all.slice(0, MOST_ROWS).map((one) => element("tr", { title: one.id },
    element("td", {}, status.tenant === null ? `${one.tenant}/${one.function}` : one.function), element("td", {}, one.version),
    element("td", { class: `state state-${one.phase}` }, one.phase), number(count(one.invocations)), number(age(one.age_seconds)),
    number(size(one.memory.container)), number(size(one.memory.agent)), number(size(one.memory.host)))));
}

function choose(id) {
  chosen = id;
  show();
}

by("everything").addEventListener("click", () => choose(null));
by("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = by("token").value.trim() || null;
  by("token").value = "";
  if (token) keep(token);
  look();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
let resizing = null;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => last && show(), 100);
});
look();
