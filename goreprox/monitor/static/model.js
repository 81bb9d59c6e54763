// What is known of the processes, from the events of `/api/live`.

const KEPT_EVENTS = 2000;
const HOUR_S = 3600;

export class Model {
  #events = 0;

  constructor() {
    this.allowActions = false;
    this.at = 0; // seconds since 1970, of the dashboard's clock
    this.processes = []; // each `who`, `report`, and `status`, the document of docs/status.md, or null
    this.history = new Map(); // by process: [at, open, sent per second, received per second], ...
    this.happened = []; // events, the oldest first
  }

  take(event, data) {
    if (event === "hello") {
      this.allowActions = data.allow_actions;
      this.history = new Map(Object.entries(data.history));
      this.happened = [];
    } else if (event === "processes") {
      this.at = data.at;
      this.processes = data.processes;
    } else if (event === "samples") {
      for (const [who, sample] of Object.entries(data)) this.#sampled(who, sample);
    } else if (event === "happened") {
      this.happened.push({ ...data, key: (this.#events += 1) });
      if (this.happened.length > KEPT_EVENTS) this.happened.shift();
    }
  }

  #sampled(who, sample) {
    const samples = this.history.get(who) ?? [];
    samples.push(sample);
    while (samples.length && samples[0][0] < sample[0] - HOUR_S) samples.shift();
    this.history.set(who, samples);
  }

  // Those that have responded, each as [who, status].
  get statuses() {
    return this.processes.filter((each) => each.status !== null).map((each) => [each.who, each.status]);
  }

  // Outages, the latest first: those that are over, and those that last.
  get outages() {
    const open = new Map();
    const found = [];
    for (const event of this.happened) {
      const key = `${event.process} ${event.peer}`;
      const at = Date.parse(event.at) / 1000;
      if (event.event === "peer_down") {
        open.set(key, { key: `${key} ${event.at}`, process: event.process, peer: event.peer, began: at, ended: null,
          replayed: null, streams: event.streams ?? 0, reason: event.reason ?? "" });
      } else if (event.event === "peer_up" && event.outage_s !== undefined) {
        const before = open.get(key);
        open.delete(key);
        found.push({ key: `${key} ${before ? before.began : event.at}`, process: event.process, peer: event.peer,
          began: at - event.outage_s, ended: at, replayed: event.replayed_bytes ?? 0, streams: event.streams ?? 0,
          reason: before?.reason ?? "" });
      } else if (["peer_left", "peer_failed", "peer_restarted", "peer_revoked", "peer_up"].includes(event.event)) {
        open.delete(key);
      }
    }
    return [...found, ...open.values()].sort((a, b) => b.began - a.began);
  }
}
