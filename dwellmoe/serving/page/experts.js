/** The map of experts: where each is, and how much it was used lately; and how full the tiers are. */

const DISK = "0", RAM = "1", DEVICE = "2";
const PLACES = { [DISK]: "on disk", [RAM]: "in RAM", [DEVICE]: "on the device" };
const PLACE_COLOURS = { [DISK]: "--disk", [RAM]: "--ram", [DEVICE]: "--device" };
const MAP_HINT = "Point at an expert, or walk there with the arrow keys.";
const KEPT_SHARE_A_TOKEN = 0.98;
/** Of the use that is remembered: half of it is gone after 34 tokens. */

class ExpertMap {
  constructor() {
    this.cache = null;
    this.forget();
    this.map = new HeatMap(byId("map"), {
      label: "Experts of each layer",
      paint: (...given) => this.paint(...given),
      text: (row, column) => this.text(row, column),
      read: (text) => readOff(byId("cell"), text, MAP_HINT),
    });
  }

  forget() {
    this.recent = [];
    this.weight = 0;
    this.uses = null;
    this.tokens = 0;
  }

  update(cache) {
    if (this.cache?.layers !== cache.layers || this.cache.decode.tokens > cache.decode.tokens) this.forget();
    this.remember(cache);
    this.cache = cache;
    this.map.set(cache.layers, cache.experts);
    if (this.map.picker.index === null) readOff(byId("cell"), null, MAP_HINT);
    this.showTiers();
  }

  /** Each token counts less with each that follows. */
  remember({ uses, decode }) {
    const first = this.uses === null, tokens = decode.tokens - this.tokens;
    const kept = KEPT_SHARE_A_TOKEN ** tokens;
    if (first) this.recent = uses.map((row) => row.map(() => 0));
    else if (tokens > 0) {
      this.weight = this.weight * kept + tokens;
      this.recent = this.recent.map((row, layer) => row.map((value, expert) => value * kept + Math.max(0, uses[layer][expert] - this.uses[layer][expert])));
    }
    this.uses = uses;
    this.tokens = decode.tokens;
  }

  /** Share of the last tokens that used an expert. */
  share(layer, expert) {
    return this.weight ? Math.min(1, this.recent[layer][expert] / this.weight) : 0;
  }

  paint(context, layer, expert, x, y, width, height, colour) {
    context.fillStyle = colour(PLACE_COLOURS[this.cache.places[layer][expert]]);
    context.fillRect(x, y, width, height);
    const share = this.share(layer, expert);
    if (share < 0.01) return;
    const most = Math.min(width, height) / 2, radius = Math.max(1.2, most * 0.86 * Math.sqrt(share));
    context.fillStyle = colour("--used");
    context.beginPath();
    context.arc(x + width / 2, y + height / 2, radius, 0, 2 * Math.PI);
    context.fill();
  }

  text(layer, expert) {
    const place = PLACES[this.cache.places[layer][expert]];
    return `layer ${layer}, expert ${expert}: ${place}, used by ${percent(this.share(layer, expert))} of the last tokens`;
  }

  showTiers() {
    const { tiers, expert_budget, capacity, experts } = this.cache;
    byId("tiers").replaceChildren(...tiers.map(tierRow));
    byId("ram-colour").hidden = !tiers.some(({ name }) => name === "ram");
    byId("budget").placeholder = expert_budget;
    byId("map-about").textContent = `A row a layer, a column an expert. Budget ${expert_budget}: ${capacity} of ${experts} experts a layer.`;
  }
}

const TIER_NAMES = { device: "on the device", ram: "in RAM", disk: "on disk, all" };

function tierRow({ name, experts, slots, bytes }) {
  const share = slots ? experts / slots : 0;
  const fill = make("i", { colour: `var(--${name === "disk" ? "soft" : name})` });
  fill.style.width = `${(100 * share).toFixed(1)}%`;
  const amount = name === "disk" ? counted(experts, "expert") : `${experts.toLocaleString("en")} of ${counted(slots, "expert")}`;
  return make("div", {},
    make("dt", { text: TIER_NAMES[name] }),
    make("dd", { class: "bar", "aria-hidden": "true" }, fill),
    make("dd", { class: "amount", text: `${amount}, ${readableBytes(bytes)}` }),
  );
}
