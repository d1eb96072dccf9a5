/** Asks for the figures once a second while the page is seen, and shows them. */

const POLL_MILLISECONDS = 1000;

const PATIENCE_MILLISECONDS = 15000;

let token = "", paused = false, asking = false, timer = null;

function request(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  return fetch(path, { cache: "no-store", ...options, headers });
}

const counts = new CountHistory(), experts = new ExpertMap(), strip = new TokenStrip(), chat = new Chat(request);

const seconds = { format: (value) => (value ? `${Math.round(value)} s` : "now"), read: (value) => (value > -0.5 ? "now" : `${Math.round(-value)} s ago`), max: 0 };
const CHARTS = [
  { name: "speed", id: "speed", label: "Tokens a second", colour: "var(--accent)", y: { format: (value) => trimmed(value), read: (value) => threeDigits(value), min: 0, ticks: 3 }, big: (value) => [value.toFixed(value < 10 ? 2 : 1)] },
  { name: "hitRate", id: "hit-rate", label: "Hit rate of decoding", colour: "var(--accent)", y: { format: (value) => percent(value), min: 0, max: 1, marks: [0, 0.5, 1] }, big: (value) => [(100 * value).toFixed(1), "%"] },
  { name: "bytes", id: "bytes", label: "Read from disk for a token", colour: "var(--accent)", y: { format: shortBytes, read: readableBytes, min: 0, ticks: 3 }, big: bigBytes },
  { name: "waiting", id: "waiting", label: "Share of the time spent waiting for experts", colour: "var(--accent)", y: { format: (value) => percent(value), min: 0, max: 1, marks: [0, 0.5, 1] }, big: (value) => [(100 * value).toFixed(1), "%"] },
];
for (const each of CHARTS) each.chart = new LineChart(byId(each.id), { label: each.label, x: seconds, y: each.y, height: 112 });

function bigBytes(size) {
  const [number, unit] = readableBytes(size).split(" ");
  return [String(Number(Number(number).toPrecision(3))), unit];
}

function trimmed(value) {
  return String(Number(value.toPrecision(4)));
}

function show(found) {
  const isOther = counts.add(found);
  if (isOther) begin();
  seconds.min = counts.begin;
  seconds.marks = byId("speed").clientWidth < 200 ? [counts.begin, 0] : [counts.begin, counts.begin / 2, 0];
  for (const each of CHARTS) {
    each.chart.set([{ name: each.label.toLowerCase(), colour: each.colour, points: counts.points(each.name) }]);
    const latest = counts.latest(each.name), [number, unit = ""] = latest === null ? [NONE] : each.big(latest);
    byId(`${each.id}-now`).replaceChildren(number, make("small", { text: unit ? ` ${unit}` : "" }));
  }
  const { expert_cache: cache, last_answer: answer, queue, model } = found;
  for (const part of document.querySelectorAll(".of-cache")) part.hidden = !found.has_cache;
  byId("no-cache").hidden = found.has_cache;
  byId("about").textContent = `${model.name} · ${counted(model.layers, "MoE layer")} of ${counted(model.experts, "expert")}, ${model.chosen} for a token`;
  byId("queue").textContent = `${queue.running} running, ${queue.waiting} waiting`;
  chat.showModels(found.models);
  if (cache) experts.update(cache);
  if (answer && !isOther) strip.update(answer, found.has_cache ? model.layers * model.chosen : 0);
}

/** The server began anew, and counts from 0. */
function begin() {
  experts.forget();
  strip.begin(null);
}

function showState(text, kind) {
  if (byId("state").textContent !== text) byId("state").textContent = text;  // else it would be read out again
  byId("state").className = `badge ${kind}`;
}

async function update() {
  clearTimeout(timer);
  if (paused || document.hidden || asking) return;
  asking = true;
  const { found, refused, locked } = await ask();
  asking = false;
  timer = setTimeout(update, POLL_MILLISECONDS);
  byId("key").hidden = !locked;
  if (paused) showState("paused", "");
  else showState(refused ?? "live", refused ? "bad" : "live");
  if (found) show(found);
}

/** The figures, or why there are none. */
async function ask() {
  try {
    const signal = AbortSignal.timeout(PATIENCE_MILLISECONDS);
    const response = await request(`v1/live?answer=${strip.number ?? 0}&tokens=${strip.known}`, { signal });
    if (response.ok) return { found: await response.json() };
    return { refused: await refusal(response), locked: response.status === 401 };
  } catch {
    return { refused: "the server does not answer" };
  }
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", paused);
  if (paused) showState("paused", "");
  update();
});
document.addEventListener("visibilitychange", update);
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value;
  update();
});
byId("resize").addEventListener("submit", async (event) => {
  event.preventDefault();
  const state = byId("budget-state"), budget = byId("budget").value.trim();
  state.className = "small";
  state.textContent = "changed after the running answer …";
  try {
    const response = await request("v1/expert_cache", {
      method: "POST", body: JSON.stringify({ budget }), headers: { "Content-Type": "application/json" },
    });
    state.textContent = response.ok ? `the budget is ${budget} from now on` : await refusal(response);
    state.classList.toggle("bad", !response.ok);
  } catch {
    state.textContent = "the server does not answer";
  }
});
update();
