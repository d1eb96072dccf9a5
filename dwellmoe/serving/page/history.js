/** What the server counted, over time: each answer of /v1/live against the one before. */

const KEPT_SECONDS = 300;
const SHORTEST_SECONDS = 60;

class CountHistory {
  constructor() {
    this.samples = [];
    this.before = null;
  }

  /** Whether another server answers than before. */
  add(found) {
    const other = this.before !== null && this.before.started !== found.started;
    if (other) this.samples = [];
    else if (this.before) this.samples.push(differences(this.before, found));
    this.before = found;
    this.samples = this.samples.filter((sample) => sample.at >= found.now - KEPT_SECONDS);
    return other;
  }

  /** [[seconds from now, value or null], ...] of one of the values. */
  points(name) {
    return this.samples.map((sample) => [sample.at - this.before.now, sample[name]]);
  }

  /** The last value that there was. */
  latest(name) {
    return this.samples.findLast((sample) => sample[name] !== null)?.[name] ?? null;
  }

  /** Where the axis begins: the page may be younger than what is kept. */
  get begin() {
    const age = this.samples.length ? this.before.now - this.samples[0].at : 0;
    return -Math.min(KEPT_SECONDS, Math.max(SHORTEST_SECONDS, Math.ceil(age / 30) * 30));
  }
}

/** Values of the time between two answers; null where nothing was decoded. */
function differences(before, found) {
  const sample = { at: found.now, speed: speedBetween(before.last_answer, found.last_answer), hitRate: null, bytes: null, waiting: null };
  const now = found.expert_cache?.decode, then = before.expert_cache?.decode;
  if (!now || !then) return sample;
  const more = (name) => now[name] - then[name];
  const requested = more("device_hits") + more("ram_hits") + more("disk_loads");
  if (requested > 0) sample.hitRate = more("device_hits") / requested;
  if (more("tokens") > 0) sample.bytes = more("disk_bytes") / more("tokens");
  if (more("seconds") > 0) sample.waiting = Math.min(1, more("stall_seconds") / more("seconds"));
  return sample;
}

/** Tokens a second of an answer since it was last looked at; null where fewer than one token came. */
function speedBetween(before, answer) {
  if (!answer) return null;
  const known = before?.number === answer.number ? before.count : 0;
  const first = Math.max(1, known), tokens = answer.count - first;
  const from = known ? before.last_seconds : answer.first_seconds;
  return tokens > 0 && answer.last_seconds > from ? tokens / (answer.last_seconds - from) : null;
}
