"use strict";
// What recipes/trace_page.js shows of each tool at a step: its memory, with marks, or its state.
/* The memory of a tool that shows places: every place's cells by step, and every mark's places by step. */
class Memory {
  constructor(tool) {
    Object.assign(this, tool);
    this.step = sums(tool.cells.step); this.at = sums(tool.cells.at);
    const size = this.step.length;
    this.low = new Int32Array(size); this.high = new Int32Array(size);
    for (let i = 0; i < size; i++) {
      this.low[i] = Math.min(this.at[i], i ? this.low[i - 1] : 0);
      this.high[i] = Math.max(this.at[i], i ? this.high[i - 1] : 0);
    }
    const base = this.base = size ? this.low[size - 1] : 0;
    this.slot = new Int32Array((size ? this.high[size - 1] - base : 0) + 2);
    for (const at of this.at) this.slot[at - base + 1]++;
    for (let i = 1; i < this.slot.length; i++) this.slot[i] += this.slot[i - 1];
    const next = this.slot.slice();
    this.when = new Int32Array(size); this.value = new Int32Array(size);
    for (let i = 0; i < size; i++) {
      const at = next[this.at[i] - base]++;
      this.when[at] = this.step[i]; this.value[at] = tool.cells.value[i];
    }
    this.tracks = tool.marks.names.map((name) => ({ name, step: [], from: [], size: [] }));
    const steps = sums(tool.marks.step);
    for (let i = 0; i < steps.length; i++) {
      const track = this.tracks[tool.marks.name[i]];
      track.step.push(steps[i]); track.from.push(tool.marks.at[i]); track.size.push(tool.marks.size[i]);
    }
  }
  extent(step) { const i = atMost(this.step, step); return i < 0 ? [0, -1] : [this.low[i], this.high[i]]; }
  cell(place, step) {
    const i = place - this.base;
    if (i < 0 || i >= this.slot.length - 1) return null;
    const found = atMost(this.when, step, this.slot[i], this.slot[i + 1]);
    return found < 0 ? null : data.strings[this.value[found]];
  }
  marksAt(step) {
    return this.tracks.flatMap(({ name, step: steps, from, size }) => {
      const i = atMost(steps, step);
      return i < 0 || size[i] < 1 ? [] : [{ name, from: from[i], to: from[i] + size[i] }];
    });
  }
  draw(step) {
    const [low, high] = this.extent(step), marks = this.marksAt(step);
    const made = section(this, `${number(high - low + 1)} cells`);
    const pointers = marks.filter((m) => m.to === m.from + 1), lines = marks.filter((m) => m.to !== m.from + 1);
    for (const mark of pointers) made.append(this.strip(mark, marks, low, high, step));
    for (const mark of lines.slice(0, 50)) made.append(this.strings(mark.from, mark.to, high, step, lines, `${mark.name}, from place ${number(mark.from)}`));
    if (lines.length > 50) made.append(element("p", "", `and ${number(lines.length - 50)} more`));
    if (!pointers.length) made.append(this.strings(Math.max(low, high - 599), high + 1, high, step, lines, "the memory's end"));
    return made;
  }
  strip(mark, marks, low, high, step) {
    const place = (at) => {
      const found = this.cell(at, step), names = marks.filter((m) => at >= m.from && at < m.to).map((m) => m.name.split(" ").at(-1)).join(" ");
      const made = element("span", `place${found === null ? " edge" : ""}${at === mark.from ? " here" : ""}`, element("small", "", names));
      if (found === null) made.append(at < low ? "⊢" : "⊣"); else show(made, found, true);
      made.title = `place ${number(at)}`;
      return made;
    };
    const range = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, i) => place(from + i));
    const here = this.cell(mark.from, step);
    const over = here === null ? (mark.from < low ? "before the first cell" : "behind the last cell") : `over ${here === " " ? "␣" : visible(here)}`;
    return element("figure", "strip", element("figcaption", "", element("b", "", mark.name), ` at place ${number(mark.from)}, ${over}`),
      element("div", "tape", element("div", "", ...range(Math.max(low - 1, mark.from - 24), mark.from)), place(mark.from),
        element("div", "", ...range(mark.from + 1, Math.min(high + 2, mark.from + 25)))));
  }
  strings(from, to, high, step, found, caption) {
    const made = element("pre", to > high ? "end" : "");
    for (let at = from; at < to; at++) {
      const cell = this.cell(at, step) ?? "", isFound = found.some((m) => at >= m.from && at < m.to);
      const shown = element("span", isFound ? "found" : "");
      show(shown, cell, false);
      made.append(shown);
    }
    return element("figure", "strip", element("figcaption", "", caption), made);
  }
}
function section(tool, size) {
  const made = element("section", "", element("h2", "", visible(tool.name)));
  made.append(element("p", "", [size, tool.note].filter(Boolean).map(visible).join("; ")));
  return made;
}

/* A tool's state as JSON: each change keeps the beginning and the end of what was there before. */
class State {
  constructor(tool) {
    Object.assign(this, tool);
    this.steps = sums(tool.changes.step);
    this.known = [""];  // the state before every 256th change
  }
  at(change) {
    let i = Math.min(this.known.length - 1, Math.floor((change + 1) / 256)) * 256, state = this.known[i / 256];
    for (; i <= change; i++) {
      state = state.slice(0, this.changes.head[i]) + this.changes.middle[i] + state.slice(state.length - this.changes.tail[i]);
      if ((i + 1) % 256 === 0) this.known[(i + 1) / 256] ??= state;
    }
    return state;
  }
  draw(step) {
    const made = section(this, ""), change = atMost(this.steps, step);
    if (change < 0) return made;
    const lines = (i) => i < 0 ? [] : JSON.stringify(JSON.parse(this.at(i)), null, 2).slice(0, 20000).split("\n");
    const before = new Set(this.steps[change] === step && change ? lines(change - 1) : lines(change));
    const pre = element("pre", "");
    for (const line of lines(change)) pre.append(element("span", before.has(line) ? "" : "changed", visible(line)), "\n");
    made.append(pre);
    return made;
  }
}
