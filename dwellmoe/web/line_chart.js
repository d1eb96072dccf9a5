/**
 * A chart of lines over one axis, whose values pointer and arrow keys read off.
 *
 * label, height
 * x, y: {format(value), read(value), ticks, marks, min, max, label}
 *   ticks: about how many values stand at the axis; marks: these values; read: a value as it is read off
 *   min, max: limits; those of the data if not given; step: the least between two values at the axis
 *
 * Lines: {name, colour, dashed, points: [[x, y or null], ...] in order of x, bands: [[low, high] or null, ...]}
 */
class LineChart {
  constructor(container, { label, x, y, height = 150 }) {
    Object.assign(this, { container, x, y, height });
    this.lines = [];
    this.places = [];
    this.chosen = null;
    this.svg = makeSvg("svg", { "aria-hidden": "true" });
    this.plot = make("div", { class: "plot" }, this.svg);
    this.tip = make("div", { class: "tip", "aria-hidden": "true", hidden: "" });
    container.classList.add("chart");
    container.append(this.plot, this.tip);
    this.picker = new Picker(this.plot, {
      label,
      about: "chart",
      count: () => this.places.length,
      at: (event) => this.nearest(event),
      text: (index) => this.spoken(index),
      show: (index) => this.showTip(index),
    });
    redrawn(container, () => this.draw());
  }

  /** `chosen`: a place of the axis that a line marks, or null. */
  set(lines, chosen = null) {
    this.lines = lines;
    this.chosen = chosen;
    const places = new Set(lines.flatMap((line) => line.points.filter(([, y]) => y !== null).map(([x]) => x)));
    this.places = [...places].sort((a, b) => a - b);
    for (const line of lines) line.values = new Map(line.points);
    this.draw();
  }

  draw() {
    const width = this.container.clientWidth;
    if (!width) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.setAttribute("height", this.height);
    const ranges = { x: this.range("x", 0), y: this.range("y", 1) };
    const ticks = {
      x: this.x.marks ?? niceTicks(...ranges.x, this.x.ticks ?? Math.max(2, Math.floor(width / 110)), this.x.step),
      y: this.y.marks ?? niceTicks(...ranges.y, this.y.ticks ?? 4),
    };
    if (this.y.max === undefined) ranges.y[1] = Math.max(ranges.y[1], ticks.y.at(-1) ?? 0);
    const longest = Math.max(0, ...ticks.y.map((value) => this.y.format(value).length));
    const box = { left: 10 + 6.4 * longest, right: width - 12, top: 10, bottom: this.height - (this.x.label ? 36 : 20) };
    const scale = (range, from, to) => (value) => from + ((value - range[0]) / (range[1] - range[0] || 1)) * (to - from);
    this.toX = scale(ranges.x, box.left, box.right);
    this.toY = scale(ranges.y, box.bottom, box.top);
    this.box = box;
    this.svg.replaceChildren(...this.axes(ticks, width), ...this.lines.flatMap((line) => this.curve(line)));
    if (this.chosen !== null) this.svg.append(this.upright(this.chosen, "chosen"));
    this.cross = makeSvg("g");
    this.svg.append(this.cross);
    this.picker.refresh();
  }

  range(axis, index) {
    const found = this.lines.flatMap((line) => line.points.map((point) => point[index])).filter((value) => value !== null);
    const least = this[axis].min ?? (found.length ? Math.min(...found) : 0);
    const most = this[axis].max ?? (found.length ? Math.max(...found) : 1);
    return [least, most > least ? most : least + 1];
  }

  axes(ticks, width) {
    const { left, right, top, bottom } = this.box;
    const grid = ticks.y.map((value) => makeSvg("line", { class: "grid", x1: left, x2: right, y1: this.toY(value), y2: this.toY(value) }));
    const names = ticks.y.map((value) => makeSvg("text", { x: left - 6, y: this.toY(value) + 4, "text-anchor": "end", text: this.y.format(value) }));
    const below = ticks.x.map((value) => {
      const place = this.toX(value);
      const anchor = place > right - 14 ? "end" : place < left + 14 ? "start" : "middle";
      return makeSvg("text", { x: place, y: bottom + 15, "text-anchor": anchor, text: this.x.format(value) });
    });
    const label = this.x.label ? [makeSvg("text", { x: right, y: this.height - 4, "text-anchor": "end", text: this.x.label })] : [];
    return [...grid, ...names, ...below, ...label];
  }

  curve(line) {
    let path = "", apart = true;
    for (const [x, y] of line.points) {
      if (y !== null) path += `${apart ? "M" : "L"}${this.toX(x).toFixed(1)} ${this.toY(y).toFixed(1)}`;
      apart = y === null;
    }
    const curve = makeSvg("path", { class: "curve", d: path, "stroke-dasharray": line.dashed ? "5 5" : null });
    curve.style.stroke = line.colour;
    return [...this.band(line), curve, ...this.lonePoints(line)];
  }

  band(line) {
    const known = line.points.map(([x], i) => [x, line.bands?.[i]]).filter(([, band]) => band);
    if (known.length < 2) return [];
    const at = (x, y) => `${this.toX(x).toFixed(1)} ${this.toY(y).toFixed(1)}`;
    const edge = [...known.map(([x, [low]]) => at(x, low)), ...known.reverse().map(([x, [, high]]) => at(x, high))];
    const band = makeSvg("path", { class: "band", d: `M${edge.join("L")}Z` });
    band.style.fill = line.colour;
    return [band];
  }

  /** A line shows nothing of a value between two gaps. */
  lonePoints(line) {
    const value = (i) => line.points[i]?.[1] ?? null;
    return line.points.flatMap(([x, y], i) => (y === null || value(i - 1) !== null || value(i + 1) !== null ? [] : [this.dot(x, y, line.colour, 2)]));
  }

  dot(x, y, colour, radius) {
    const dot = makeSvg("circle", { class: radius > 2 ? "point" : "", cx: this.toX(x), cy: this.toY(y), r: radius });
    dot.style.fill = colour;
    return dot;
  }

  upright(x, kind) {
    return makeSvg("line", { class: kind, x1: this.toX(x), x2: this.toX(x), y1: this.box.top, y2: this.box.bottom });
  }

  nearest(event) {
    if (!this.places.length || !this.toX) return null;
    const place = event.clientX - this.plot.getBoundingClientRect().left;
    const distance = (index) => Math.abs(this.toX(this.places[index]) - place);
    return this.places.reduce((best, _, index) => (distance(index) < distance(best) ? index : best), 0);
  }

  /** [line, its value] of all lines that have one at a place. */
  valuesAt(x) {
    return this.lines.map((line) => [line, line.values.get(x) ?? null]).filter(([, y]) => y !== null);
  }

  spoken(index) {
    const x = this.places[index];
    const values = this.valuesAt(x).map(([line, y]) => `${line.name} ${(this.y.read ?? this.y.format)(y)}`);
    return `${(this.x.read ?? this.x.format)(x)}: ${values.join(", ")}`;
  }

  showTip(index) {
    this.tip.hidden = index === null;
    this.cross?.replaceChildren();
    if (index === null || !this.toX) return;
    const x = this.places[index], values = this.valuesAt(x);
    const rows = values.flatMap(([line, y]) => [
      make("dt", {}, swatch(line), line.name),
      make("dd", { text: (this.y.read ?? this.y.format)(y) }),
    ]);
    this.tip.replaceChildren(make("div", { text: (this.x.read ?? this.x.format)(x) }), make("dl", {}, ...rows));
    this.cross.append(this.upright(x, "cross"), ...values.map(([line, y]) => this.dot(x, y, line.colour, 4.5)));
    const room = this.container.clientWidth - this.tip.offsetWidth;
    const right = this.toX(x) + 12, left = this.toX(x) - 12 - this.tip.offsetWidth;
    this.tip.style.transform = `translate(${Math.max(0, right <= room ? right : Math.min(left, room))}px, 4px)`;
  }
}

/** A piece of a line, as it looks in a chart. */
function swatch({ colour, dashed }) {
  return make("span", { class: `swatch line${dashed ? " dashed" : ""}`, colour });
}

/** Round numbers within two limits, about `wanted` of them. */
function niceTicks(least, most, wanted, smallest = 0) {
  const rough = Math.max(smallest, (most - least) / wanted), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(least / step - 1e-9), last = Math.floor(most / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}
