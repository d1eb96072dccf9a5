/** Asks for the figures once a second while the page is seen, and shows them. */

const POLL_MILLISECONDS = 1000;

let token = "", paused = false, timer = null;

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
  counts.add(found);
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
  if (answer) strip.update(answer, found.has_cache ? model.layers * model.chosen : 0);
}

function showState(text, kind) {
  if (byId("state").textContent !== text) byId("state").textContent = text;  // else it would be read out again
  byId("state").className = `badge ${kind}`;
}

async function update() {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  try {
    const response = await request(`v1/live?answer=${strip.number ?? 0}&tokens=${strip.known}`);
    byId("key").hidden = response.status !== 401;
    if (response.ok) show(await response.json());
    showState(response.ok ? "live" : await refusal(response), response.ok ? "live" : "bad");
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    showState("the server does not answer", "bad");
  }
  if (paused) showState("paused", "");
  timer = setTimeout(update, POLL_MILLISECONDS);
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
