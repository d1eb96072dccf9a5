/** Makes the report's figures interactive; without it they are pictures. */

const data = JSON.parse(byId("chart-data").textContent);
const REROUTED = "-rerouted";
const RANDOM = "random routing";
const KNOWN_COLOURS = ["base", "control", "tuned"];

/** A variant has the colour of its table; one that is re-routed that of the variant that it comes from, dashed. */
function look(variant) {
  const rerouted = variant.endsWith(REROUTED), plain = rerouted ? variant.slice(0, -REROUTED.length) : variant;
  const name = KNOWN_COLOURS.includes(plain) ? plain : `spare-${1 + (data.variants.indexOf(variant) % 5)}`;
  return { name: variant, colour: `var(--${name})`, dashed: rerouted };
}

function worded(name) {
  return name.replaceAll("_", " ");
}

const distinct = (values) => [...new Set(values)];

/** A select whose choices may change; it keeps what was chosen where that is still one of them. */
class Choice {
  constructor(id, onChange) {
    this.element = byId(id);
    this.element.addEventListener("change", onChange);
  }

  offer(values) {
    const now = this.value;
    this.element.replaceChildren(...values.map((value) => make("option", { value, text: worded(value) })));
    if (values.includes(now)) this.element.value = now;
    this.element.disabled = values.length < 2;
  }

  get value() {
    return this.element.value;
  }
}

const percentOfExperts = { format: (value) => `${Math.round(value)} %`, read: (value) => `${threeDigits(value)} % of the experts`, label: "capacity, % of the routed experts", min: 0, max: 100 };
const MEASURES = {
  "hit rate": { column: "hit_rate", bands: "hit_rate_ci95", format: (value) => value.toFixed(1), read: threeDigits, min: 0, max: 1, marks: [0, 0.2, 0.4, 0.6, 0.8, 1] },
  "bytes fetched for a token": { column: "miss_bytes_per_token", format: shortBytes, read: readableBytes, min: 0 },
};

class Explorer {
  constructor() {
    const update = () => this.update();
    this.choices = Object.fromEntries(["text", "phase", "scope", "policy", "against", "measure"].map((id) => [id, new Choice(`choose-${id}`, update)]));
    this.slider = byId("choose-capacity");
    this.slider.addEventListener("input", () => {
      this.sharePercent = null;
      this.update();
    });
    this.shown = new Set(data.variants);
    this.sharePercent = 25;  // null: where the slider stands
    byId("choose-variants").append(...data.variants.map((variant) => this.variantBox(variant)), legendItem("span", { name: RANDOM, colour: "var(--soft)", dashed: true }));
    this.choices.against.offer(data.variants);
    this.choices.measure.offer(Object.keys(MEASURES));
    this.hits = new LineChart(byId("hit-chart"), { label: "Hit rate against capacity", x: percentOfExperts, y: { ...MEASURES["hit rate"] }, height: 300 });
    byId("hit-chart").addEventListener("click", () => this.chooseUnderPointer());
    this.others = [new LayerChart(), new SpeedChart()].filter((chart) => chart.place());
    byId("explorer").hidden = false;
    this.takePicture();
    this.update();
  }

  /** The picture of the hit rates steps aside. */
  takePicture() {
    const figure = document.querySelector('figure[data-name="hit_rate.png"]');
    if (figure) byId("hit-picture").append(...asideOf(figure));
    figure?.remove();
  }

  variantBox(variant) {
    const box = make("input", { type: "checkbox", value: variant, checked: "" });
    box.addEventListener("change", () => {
      this.shown[box.checked ? "add" : "delete"](variant);
      this.update();
    });
    const label = legendItem("label", look(variant));
    label.prepend(box);
    return label;
  }

  chooseUnderPointer() {
    const place = this.hits.places[this.hits.picker.index];
    if (place === undefined) return;
    this.sharePercent = place;
    this.update();
  }

  /** The series that are chosen among those of the report. */
  get series() {
    const chosen = ["text", "phase", "scope", "policy"].map((name) => [name, this.choices[name].value]);
    return data.cache.filter((series) => chosen.every(([name, value]) => series[name] === value));
  }

  update() {
    let rest = data.cache;
    for (const name of ["text", "phase", "scope", "policy"]) {
      this.choices[name].offer(distinct(rest.map((series) => series[name])));
      rest = rest.filter((series) => series[name] === this.choices[name].value);
    }
    const all = this.series, visible = all.filter((series) => this.shown.has(series.variant));
    const at = this.chosenIndex(all[0]);
    this.drawHits(visible, all[0], at);
    this.fillTable(all, at);
    for (const chart of this.others) chart.update(this.shown, this.choices.text.value);
  }

  /** The capacity of the slider; at the beginning the one nearest to a quarter, not above it. */
  chosenIndex(series) {
    const shares = series.capacity_percent;
    this.slider.max = shares.length - 1;
    if (this.sharePercent !== null) {
      const within = shares.filter((share) => share <= this.sharePercent + 1e-9).length;
      this.slider.value = Math.max(0, within - 1);
    } else this.sharePercent = shares[Math.min(shares.length - 1, Number(this.slider.value))];
    const index = Number(this.slider.value), slots = series.capacity[index];
    const where = series.scope === "layer" ? "in each layer" : "in all layers together";
    const text = `${counted(slots, "expert")} ${where}, ${threeDigits(shares[index])} %${series.capacity_bytes[index] ? `, ${readableBytes(series.capacity_bytes[index])}` : ""}`;
    byId("capacity-text").textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
    return index;
  }

  drawHits(visible, any, at) {
    const measure = MEASURES[this.choices.measure.value];
    this.hits.y = measure;
    const lines = visible.map((series) => ({
      ...look(series.variant),
      points: series.capacity_percent.map((share, i) => [share, series[measure.column][i]]),
      bands: measure.bands ? series[measure.bands] : null,
    }));
    if (measure.column === "hit_rate") lines.push({ name: RANDOM, colour: "var(--soft)", dashed: true, points: any.capacity_percent.map((share) => [share, share / 100]) });
    this.hits.set(lines, any.capacity_percent[at]);
  }

  fillTable(all, at) {
    const against = this.choices.against.value, reference = all.find((series) => series.variant === against);
    byId("against-name").textContent = `miss rate against ${against}`;
    byId("hit-rows").replaceChildren(...all.filter((series) => this.shown.has(series.variant)).map((series) => {
      const interval = series.hit_rate_ci95[at];
      const ratio = reference ? (1 - series.hit_rate[at]) / (1 - reference.hit_rate[at]) : null;
      return make("tr", {},
        filled(legendItem("td", look(series.variant)), { class: "name" }, []),
        make("td", { text: threeDigits(series.hit_rate[at]) }, ...(interval ? [make("small", { text: `${threeDigits(interval[0])} … ${threeDigits(interval[1])}` })] : [])),
        make("td", { text: readableBytes(series.miss_bytes_per_token[at]) }),
        make("td", { text: series === reference ? "1" : threeDigits(ratio) }),
      );
    }));
  }
}

/** A line's look and its name. */
function legendItem(tag, line) {
  return make(tag, {}, swatch(line), line.name);
}

/** What a figure held becomes a picture behind a line that opens it. */
function asideOf(figure) {
  const picture = figure.querySelector("img");
  return [make("details", {}, make("summary", { text: "as a picture" }), picture)];
}

/** A chart in the place of a figure's picture. */
class FigureChart {
  constructor(name, options) {
    Object.assign(this, { name, options });
  }

  /** Whether the report has the figure. */
  place() {
    const figure = document.querySelector(`figure[data-name="${this.name}"]`);
    if (!figure || !this.available) return false;
    const chart = make("div"), legend = make("ul", { class: "legend" });
    this.legend = legend;
    figure.querySelector("img").before(this.controls(), legend, chart);
    figure.append(...(this.note ? [make("p", { class: "caption", text: this.note })] : []), ...asideOf(figure));
    this.chart = new LineChart(chart, this.options);
    return true;
  }

  show(lines) {
    this.legend.replaceChildren(...lines.map((line) => legendItem("li", line)));
    this.chart.set(lines);
  }
}

class LayerChart extends FigureChart {
  constructor() {
    super("ecr_per_layer.png", {
      label: "Expert consistency rate of each layer", height: 240,
      x: { format: (value) => String(value), read: (value) => `layer ${value}`, step: 1, label: "decoder layer" },
      y: { format: (value) => value.toFixed(1), read: threeDigits, min: 0, max: 1, marks: [0, 0.2, 0.4, 0.6, 0.8, 1] },
    });
  }

  get available() {
    return data.locality.length > 0;
  }

  controls() {
    this.phase = make("select", { id: "choose-layer-phase" }, ...distinct(data.locality.map((row) => row.phase)).map((phase) => make("option", { value: phase, text: phase })));
    this.phase.value = "decode";
    this.phase.addEventListener("change", () => this.draw());
    return make("p", { class: "controls" }, make("label", { class: "choice" }, make("span", { text: "Phase" }), this.phase));
  }

  update(shown, text) {
    Object.assign(this, { shown, text });
    this.draw();
  }

  draw() {
    const rows = data.locality.filter((row) => row.phase === this.phase.value && row.text === this.text && this.shown.has(row.variant));
    const lines = rows.map((row) => ({ ...look(row.variant), points: row.layer_id.map((id, i) => [id, row.ecr[i]]), bands: row.ecr_ci95 }));
    if (rows.length) lines.push({ name: "by chance", colour: "var(--soft)", dashed: true, points: rows[0].layer_id.map((id) => [id, rows[0].chance]) });
    this.show(lines);
  }
}

class SpeedChart extends FigureChart {
  constructor() {
    super("memory_throughput.png", {
      label: "Decoding speed against memory", height: 260,
      x: { format: shortBytes, read: (value) => `${readableBytes(value)} for weights`, label: "memory for weights" },
      y: { format: (value) => String(Number(value.toPrecision(3))), read: (value) => `${threeDigits(value)} a second`, min: 0 },
    });
  }

  get available() {
    return data.speed.length > 0;
  }

  get note() {
    return data.device;
  }

  controls() {
    this.policy = make("select", { id: "choose-speed-policy" }, ...distinct(data.speed.map((series) => series.policy)).map((policy) => make("option", { value: policy, text: policy })));
    this.policy.addEventListener("change", () => this.draw());
    return make("p", { class: "controls" }, make("label", { class: "choice" }, make("span", { text: "Policy" }), this.policy));
  }

  update(shown) {
    this.shown = shown;
    this.draw();
  }

  draw() {
    const series = data.speed.filter((each) => each.policy === this.policy.value && this.shown.has(each.variant));
    this.show(series.map((each) => ({ ...look(each.variant), points: each.memory_bytes.map((size, i) => [size, each.tokens_per_second[i]]) })));
  }
}

if (data.cache.length) new Explorer();
