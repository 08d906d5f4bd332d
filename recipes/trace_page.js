"use strict";
// The page of recipes/trace_page.html, whose data recipes/trace.py writes.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const KINDS = ["input", "thought", "call", "observation", "output"];
const WRITERS = { user: ["input"], model: ["thought", "call", "output"], tool: ["observation"] };
const LINE = 24, TALLEST = 8e6;  // pixels; browsers lay out no element of much more, so longer traces scroll in proportion
const count = data.kinds.length, number = (n) => n.toLocaleString("en");
const kindOf = (step) => KINDS[data.kinds[step]], isCells = (step) => data.forms[step] === "1";
const wrong = new Map(data.problems);

function element(tag, classes, ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...children);
  return made;
}
/* The last index of a sorted array whose value is at most `value`, between two indices; -1 below the first. */
function atMost(sorted, value, low = 0, high = sorted.length) {
  const first = low;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle + 1; else high = middle;
  }
  return low > first ? low - 1 : -1;
}
function sums(deltas) {
  const made = new Int32Array(deltas.length);
  for (let i = 0, total = 0; i < deltas.length; i++) made[i] = total += deltas[i];
  return made;
}

/* A step is units: cells, pieces of a text; of a call its name first. All text stands in one string, for searching. */
const unitOf = new Int32Array(count + 1), charOf = new Int32Array(data.units.length);
const text = (() => {
  const parts = [];
  for (let step = 0, unit = 0, at = 0; step < count; step++) {
    unitOf[step] = unit;
    for (const end = unit + data.sizes[step]; unit < end; unit++) {
      const string = data.strings[data.units[unit]], gap = isName(unit, step) ? " " : "";
      charOf[unit] = at;
      parts.push(string, gap);
      at += string.length + gap.length;
    }
    parts.push("\0");  // no match goes over a step's end
    at += 1;
    unitOf[step + 1] = unit;
  }
  return parts.join("");
})();
function isName(unit, step) { return data.kinds[step] === "2" && unit === unitOf[step]; }
const string = (unit) => data.strings[data.units[unit]];
const stepOfUnit = (unit) => atMost(unitOf, unit, 0, count);
const stepOfChar = (at) => stepOfUnit(atMost(charOf, at));

/* What nobody would see is shown by its number: controls, directions, blanks that are no space, half characters. */
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{DI}\u2800]|(?! )\p{Zs}/u;
const INVISIBLES = new RegExp(INVISIBLE, "gu");
const SIGNS = { "\n": "⏎", "\t": "⇥", " ": "␣" };
const sign = (character) => SIGNS[character] ?? "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f000}-\u{1faff}\u{20000}-\u{3fffd}]/u;
function widthOf(character) {
  if (character >= " " && character <= "~") return 1;
  if (INVISIBLE.test(character)) return sign(character).length;
  return /\p{M}/u.test(character) ? 0 : WIDE.test(character) ? 2 : 1;
}
const isPlain = data.strings.map((shown) => /^[ -~\n]*$/.test(shown));  // most are, and then need no look at each character
const widths = data.strings.map((shown, i) => isPlain[i] ? shown.length : [...shown].reduce((sum, c) => sum + widthOf(c), 0));
/* Where the part of a text ends that begins at `from` and fits into a number of columns, and those that it leaves. */
function fitting(shown, from, room, plain) {
  const newline = shown.indexOf("\n", from), stop = newline < 0 ? shown.length : newline + 1;
  if (plain) { const to = Math.min(stop, from + room); return [to, room - (to - from)]; }
  let to = from;
  for (const character of shown.slice(from, Math.min(stop, from + 2 * room))) {
    if (widthOf(character) > room) break;
    room -= widthOf(character);
    to += character.length;
  }
  return [to, room];
}
function show(parent, shown, inCell) {
  let from = 0;
  for (const found of inCell && shown === " " ? [{ 0: " ", index: 0 }] : shown.matchAll(INVISIBLES)) {
    parent.append(shown.slice(from, found.index), element("span", "escape", sign(found[0])), found[0] === "\n" && !inCell ? "\n" : "");
    from = found.index + found[0].length;
  }
  parent.append(shown.slice(from));
}

/* Lines of equal height: which unit, and which of its characters, each begins with. */
let lineUnit = [0], lineChar = [0];
function layOut(columns) {
  lineUnit = []; lineChar = [];
  let room = 0, broken = false;
  const begin = (unit, char) => { lineUnit.push(unit); lineChar.push(char); room = columns; broken = false; };
  for (let step = 0; step < count; step++) {
    const first = unitOf[step], last = unitOf[step + 1], inCells = isCells(step), longest = inCells ? columns : 24;
    let width = 4;  // the space between steps, with an arrow
    for (let unit = first; unit < last && width <= room; unit++) width += string(unit).includes("\n") ? Infinity : widths[data.units[unit]] + inCells;
    const follows = step && data.kinds[step - 1] === "2" && (data.kinds[step] === "2" || data.kinds[step] === "3");
    if (follows && width <= room) room -= 4; else begin(first, 0);
    for (let unit = first; unit < last; unit++) {
      const shown = string(unit), plain = isPlain[data.units[unit]], wide = widths[data.units[unit]] + inCells;
      if (broken || (wide > room && wide <= longest && room < columns)) begin(unit, 0);
      for (let from = 0; from < shown.length;) {
        if (broken) begin(unit, from);
        let [to, left] = fitting(shown, from, room, plain);
        broken = shown[to - 1] === "\n" && to > from;
        if (to < shown.length && !broken) {
          const near = Math.max(from, to - 24), space = shown.slice(near, to).lastIndexOf(" ") + 1;
          if (space) to = near + space;
          begin(unit, to === from && room === columns ? ++to : to);  // at least a character on a line
        } else room = left;
        from = to;
      }
      room -= inCells;
    }
    broken = false;
  }
  $("length").style.height = `${Math.min(lineUnit.length * LINE, TALLEST) + LINE}px`;
}
function lineOf(unit, char) {
  let line = atMost(lineUnit, unit);
  while (line > 0 && lineUnit[line] === unit && lineChar[line] > char) line--;
  return line;
}

let selected = 0, matches = { from: [], to: [], current: -1 }, drawn = { first: 0, shown: 0 };

function drawUnit(parent, unit, step, from, to) {
  const inCells = isCells(step) && !isName(unit, step);
  const made = element("span", isName(unit, step) ? "unit name" : inCells ? "unit cell" : "unit");
  const shown = string(unit), base = charOf[unit];
  if (!shown && kindOf(step) === "call") made.append("◂");  // the end of an argument is a token too
  let at = from;
  for (let m = atMost(matches.to, base + from) + 1; at < to; m++) {
    const start = Math.min(to, Math.max(at, (matches.from[m] ?? Infinity) - base)), end = Math.min(to, (matches.to[m] ?? Infinity) - base);
    show(made, shown.slice(at, start), inCells);
    if (start >= to) break;
    const mark = element("mark", m === matches.current ? "current" : "");
    show(mark, shown.slice(start, end), inCells);
    made.append(mark);
    at = end;
  }
  const likely = data.own?.[unit];
  if (likely != null) made.style.backgroundColor = `rgb(225 60 60 / ${Math.min(0.6, -likely / 10)})`;
  made.title = facts(unit);
  parent.append(made);
}
function facts(unit) {
  const said = (name, log) => log == null ? [] : [`${name} ${Math.exp(log).toPrecision(3)} (log ${log.toFixed(3)})`];
  return [...said("probability", data.own?.[unit]), ...said("as sampled", data.sampled?.[unit]),
    ...(data.ids?.[unit] == null ? [] : [`token ${data.ids[unit]}`])].join(" · ");
}
function drawLine(line) {
  const made = element("div", "line"), gutter = element("span", "gutter");
  made.setAttribute("role", "presentation");
  gutter.setAttribute("aria-hidden", "true");
  made.append(gutter);
  const endUnit = lineUnit[line + 1] ?? data.units.length, endChar = lineChar[line + 1] ?? 0;
  let span = null;
  for (let unit = lineUnit[line], step = stepOfUnit(unit); unit < endUnit || (unit === endUnit && endChar); unit++) {
    while (unit >= unitOf[step + 1]) step++;
    const from = unit === lineUnit[line] ? lineChar[line] : 0;
    if (!span || unit === unitOf[step]) {
      span = element("span", `step ${kindOf(step)}${step === selected ? " chosen" : ""}${wrong.has(step) ? " differs" : ""}`);
      span.dataset.step = step;
      if (unit === unitOf[step] && !from) {
        span.id = `step-${step}`;
        span.setAttribute("role", "option");
        span.setAttribute("aria-selected", step === selected);
        span.setAttribute("aria-setsize", count);
        span.setAttribute("aria-posinset", step + 1);
        if (made.childElementCount === 1) {
          gutter.classList.add(kindOf(step));
          gutter.append(element("i", "", number(step)), element("b", "", kindOf(step)));
        }
      }
      made.append(span);
    }
    drawUnit(span, unit, step, from, unit === endUnit ? endChar : string(unit).length);
    if (unit === endUnit) break;
  }
  return made;
}
function draw() {
  const view = $("steps"), total = lineUnit.length * LINE, height = Math.min(total, TALLEST) + LINE, shown = view.clientHeight / LINE;
  const exact = total <= TALLEST ? view.scrollTop / LINE : view.scrollTop / Math.max(1, height - view.clientHeight) * Math.max(0, lineUnit.length + 1 - shown);
  const first = Math.floor(exact), last = Math.min(lineUnit.length, Math.ceil(exact + shown));
  drawn = { first, shown };
  $("lines").style.transform = `translateY(${(first - exact) * LINE}px)`;
  $("lines").replaceChildren(...Array.from({ length: Math.max(0, last - first) }, (_, i) => drawLine(first + i)));
}
function scrollToLine(line) {
  const view = $("steps"), { first, shown } = drawn;
  if (line > first && line < first + shown - 3) return;
  const top = Math.max(0, line - shown / 3), total = lineUnit.length * LINE;
  view.scrollTop = total <= TALLEST ? top * LINE : top / Math.max(1, lineUnit.length + 1 - shown) * (TALLEST + LINE - view.clientHeight);
}

function select(step, unit = unitOf[step], char = 0) {
  selected = Math.max(0, Math.min(count - 1, step));
  scrollToLine(lineOf(unit, char));
  draw();
  $("steps").setAttribute("aria-activedescendant", `step-${selected}`);
  drawStep();
  $("tools").replaceChildren(...tools.map((tool) => tool.draw(selected)));
  for (const end of document.querySelectorAll("#tools .end")) end.scrollTop = end.scrollHeight;
  clearTimeout(select.later);
  select.later = setTimeout(() => location.replace(`#${selected}`), 300);
}
function drawStep() {
  jump.value = selected;
  const step = selected, kind = kindOf(step), writer = Object.keys(WRITERS).find((name) => WRITERS[name].includes(kind));
  const content = element("div", `content ${kind}`), first = unitOf[step], last = Math.min(unitOf[step + 1], first + 2000);
  let left = 20000, least = -1;
  for (let unit = first; unit < last && left > 0; unit++) {
    drawUnit(content, unit, step, 0, Math.min(string(unit).length, left));
    if (isCells(step) && string(unit) === "\n") content.append("\n");
    left -= string(unit).length + 1;
    if (data.own?.[unit] != null && (least < 0 || data.own[unit] < data.own[least])) least = unit;
  }
  const cut = last < unitOf[step + 1] || left <= 0 ? [element("p", "", "The rest stands among the steps.")] : [];
  const surprise = least < 0 ? [] : [element("p", "", `${last - first > 1 ? "Least likely here: " : ""}${visible(string(least) || "end")}: ${facts(least)}`)];
  const problem = wrong.has(step) ? [element("p", "wrong", visible(wrong.get(step)))] : [];
  $("step").replaceChildren(element("h2", kind, `${kind} by the ${writer}`), ...problem, content, ...cut, ...surprise);
}
const visible = (shown) => shown.replace(INVISIBLES, (found) => sign(found));

const tools = data.tools.map((tool) => tool.cells ? new Memory(tool) : tool.changes ? new State(tool) : { draw: () => section(tool, "") });

/* Search. Without a text, every step of the kinds that are on is a match. */
const isOn = (kind) => document.querySelector(`#kinds .${kind}`)?.getAttribute("aria-pressed") === "true";
let origin = 0;  // where what is being typed is searched from, so that no letter leads away
function search() {
  performance.mark("search begins");
  const query = $("query").value.replaceAll("\0", ""), on = [...KINDS, "wrong"].filter(isOn), from = [], to = [];
  const kinds = KINDS.map((kind) => on.includes(kind)), anyKind = !kinds.includes(true), onlyWrong = on.includes("wrong");
  const fits = (step) => (anyKind || kinds[data.kinds[step]]) && (!onlyWrong || wrong.has(step));
  if (query) {
    const pattern = new RegExp(query.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), query === query.toLowerCase() ? "giu" : "gu");
    for (let found; (found = pattern.exec(text));) {
      if (!on.length || fits(stepOfChar(found.index))) { from.push(found.index); to.push(pattern.lastIndex); }
    }
  } else if (on.length) {
    for (let step = 0; step < count; step++) {
      if (fits(step)) { from.push(charOf[unitOf[step]]); to.push(step + 1 < count ? charOf[unitOf[step + 1]] - 1 : text.length - 1); }
    }
  }
  matches = { from, to, current: -1 };
  if (from.length) goToMatch(Math.max(0, Math.min(from.length - 1, atMost(from, charOf[unitOf[origin]] - 1) + 1)));
  else { $("count").value = query || on.length ? "no match" : ""; draw(); }
  performance.measure("search", "search begins");
}
function goToMatch(index) {
  if (!matches.from.length) return;
  matches.current = (index + matches.from.length) % matches.from.length;
  $("count").value = `${number(matches.current + 1)} of ${number(matches.from.length)}`;
  const unit = atMost(charOf, matches.from[matches.current]);
  select(stepOfUnit(unit), unit, matches.from[matches.current] - charOf[unit]);
}
let surprises = null, rank = -1;
/* The least likely of the tokens below one half become the matches; this goes through them by rank, n and N by place. */
function goToSurprise(by) {
  if (!data.own) return;
  surprises ??= [...data.own.keys()].filter((unit) => data.own[unit] !== null && data.own[unit] < Math.log(0.5)).sort((a, b) => data.own[a] - data.own[b]).slice(0, 100);
  if (!surprises.length) { $("count").value = "no surprise"; return; }
  rank = (Math.max(rank, by < 0 ? 0 : -1) + by + surprises.length) % surprises.length;
  const places = surprises.toSorted((a, b) => a - b);
  matches = { from: places.map((unit) => charOf[unit]), to: places.map((unit) => charOf[unit] + string(unit).length), current: -1 };
  goToMatch(places.indexOf(surprises[rank]));
  $("count").value = `surprise ${number(rank + 1)} of ${number(surprises.length)}`;
}

/* Controls. */
for (const [writer, kinds] of [...Object.entries(WRITERS), ...(wrong.size ? [["replay", ["wrong"]]] : [])]) {
  const group = element("span", "writer", writer);
  for (const kind of kinds) {
    const button = element("button", kind, kind === "wrong" ? `⚠ ${number(wrong.size)} differ` : kind);
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => { button.setAttribute("aria-pressed", String(!isOn(kind))); origin = selected; search(); };
    group.append(button);
  }
  $("kinds").append(group);
}
document.title = $("title").textContent = visible(data.title);
$("title").title = $("title").textContent;
for (const [name, value] of data.facts) $("facts").append(element("dt", "", visible(name)), element("dd", "", visible(value)));
$("surprise").hidden = !data.own;
$("surprise").onclick = () => goToSurprise(1);
$("next").onclick = () => goToMatch(matches.current + 1);
$("previous").onclick = () => goToMatch(matches.current - 1);
$("query").oninput = search;
$("query").onfocus = () => { origin = selected; };
$("find").onsubmit = (event) => { event.preventDefault(); goToMatch(matches.current + 1); };
const jump = $("jump").querySelector("input");
$("jump").querySelector("span").textContent = `of ${number(count)}`;
$("jump").onsubmit = (event) => {
  event.preventDefault();
  const step = Number(jump.value.replace(/[^0-9]/g, "") || NaN);
  if (step < count) { select(step); $("steps").focus(); } else jump.select();
};
const KEYS = {
  j: () => select(selected + 1), ArrowDown: () => select(selected + 1), ArrowRight: () => select(selected + 1),
  k: () => select(selected - 1), ArrowUp: () => select(selected - 1), ArrowLeft: () => select(selected - 1),
  Home: () => select(0), End: () => select(count - 1), n: () => goToMatch(matches.current + 1), N: () => goToMatch(matches.current - 1),
  s: () => goToSurprise(1), S: () => goToSurprise(-1), "/": () => $("query").select(), g: () => jump.select(), "?": () => $("about").showModal(),
};
$("back").onclick = KEYS.k;
$("forth").onclick = KEYS.j;
$("help").onclick = () => $("about").showModal();
$("lines").onclick = (event) => { const step = event.target.closest("[data-step]"); if (step) select(Number(step.dataset.step)); };
document.onkeydown = (event) => {
  if ($("about").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const writes = event.target.matches("input");
  if (event.key === "Escape") $("steps").focus();
  else if (writes && event.target === $("query") && event.key === "Enter" && event.shiftKey) goToMatch(matches.current - 1);
  else if (writes || !KEYS[event.key]) return;
  else KEYS[event.key]();
  event.preventDefault();
};
let frame = 0;
$("steps").onscroll = () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(draw); };
function fit() {
  const probe = element("span", "", "0".repeat(100)), gutter = element("span", "gutter");
  $("lines").replaceChildren(element("div", "line", gutter, probe));
  const character = probe.getBoundingClientRect().width / 100;
  layOut(Math.max(16, Math.floor(($("steps").clientWidth - gutter.getBoundingClientRect().width) / character) - 3));
  select(selected);
  performance.mark("drawn");
}
let fitted = 0;
new ResizeObserver(() => { if ($("steps").clientWidth !== fitted) { fitted = $("steps").clientWidth; fit(); } else draw(); }).observe($("steps"));
window.onhashchange = () => { const step = Number(location.hash.slice(1)); if (step !== selected && step < count && Number.isInteger(step) && step >= 0) select(step); };
selected = Math.min(count - 1, Math.max(0, Math.floor(Number(location.hash.slice(1))) || 0));
$("steps").focus();
