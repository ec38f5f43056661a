// The page of the control plane: streams from /stats, results from /events, pictures from /preview.
//
// Every text comes from elsewhere (names, labels, reasons), so it reaches the document as text alone. Pictures are
// asked for only while somebody can see them, a few at a time: a browser has six connections to a host.

const STATS_EVERY = 2000;
const RESULTS_SHOWN = 50;
const RECONNECT_AFTER = 2000;
const PICTURES_AT_ONCE = 2;
const PICTURE_EVERY = 500;
// Records whose boxes wait for their picture, for each stream.
const BOXES_KEPT = 64;
// How far, in pictures, a record may be from the one that is shown and still lend it its boxes.
const NEAR = 45;
const KINDS = ["classification", "detection", "checksum", "segment", "gap", "error", "status"];

const find = (id) => document.getElementById(id);
const keyOf = (graph, stream) => JSON.stringify([graph, stream]);
const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

function drawing(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// The connection: live while both the statistics and the events come.

const connection = { stats: "connecting", events: "connecting" };

function connected(part, state) {
  connection[part] = state;
  const states = Object.values(connection);
  const whole = states.includes("lost") ? "lost" : states.includes("connecting") ? "connecting" : "live";
  const told = { live: "Live", connecting: "Connecting…", lost: "Connection lost" }[whole];
  const indicator = find("connection");
  indicator.dataset.state = whole;
  setText(indicator, told);
  const isLost = whole === "lost";
  document.body.classList.toggle("stale", isLost);
  const message = find("lost");
  message.hidden = !isLost;
  setText(message, isLost ? "The engine does not answer. What you see is its last word; this page tries again by itself." : "");
}

// Streams.

const graphs = new Map();
const cards = new Map();
let chosen = null;

class Card {
  constructor(graph, stream) {
    this.graph = graph;
    this.stream = stream;
    this.key = keyOf(graph, stream);
    this.isVisible = false;
    this.nextPicture = 0;
    this.shown = null;
    this.boxes = new Map();
    this.lastRecord = null;

    this.image = element("img", { alt: "" });
    this.image.hidden = true;
    this.overlay = drawing("svg", { "aria-hidden": "true", preserveAspectRatio: "xMidYMid meet" });
    this.notice = element("p", {}, "Waiting for a picture…");
    this.picture = element("div", { class: "picture" }, this.image, this.overlay, this.notice);
    this.name = element("button", { type: "button", "aria-pressed": "false" }, stream);
    this.name.title = "Show the results of this stream only";
    this.name.addEventListener("click", () => choose(chosen === this.key ? null : this.key));
    this.state = element("span", { class: "state" });
    this.facts = element("dl");
    this.values = new Map();
    this.reason = element("p", { class: "reason" });
    this.latest = element("p", { class: "latest" });
    const head = element("div", { class: "head" }, element("h3", {}, this.name), this.state);
    const facts = element("div", { class: "facts" }, head, this.reason, this.facts, this.latest);
    this.root = element("article", { class: "card" }, this.picture, facts);
    this.root.dataset.stream = stream;
    seen.observe(this.picture);
    this.picture.card = this;
  }

  fact(name, text) {
    let value = this.values.get(name);
    if (!value) {
      value = element("dd");
      this.values.set(name, value);
      this.facts.append(element("div", {}, element("dt", {}, name), value));
    }
    setText(value, text);
  }

  update(report) {
    this.state.dataset.state = report.state;
    setText(this.state, report.state);
    setText(this.reason, report.reason ?? "");
    this.reason.hidden = !report.reason;
    this.fact("in", `${number(report.fps_in, 1)}/s`);
    this.fact("results", `${number(report.delivered)}`);
    this.fact("age p99", report.delivered > 0 ? `${number(report.age_ms.p99, 1)} ms` : "–");
    const bad = ["dropped", "rejected", "lost"].filter((verdict) => report[verdict] > 0 || this.values.has(verdict));
    for (const verdict of bad) this.fact(verdict, number(report[verdict]));
    this.isOver = ["ended", "stopped", "failed"].includes(report.state);
    // Nobody asks often for a picture that does not come, so that those that come are not kept waiting.
    const wasQuiet = this.isQuiet;
    this.isQuiet = !["running", "fallback"].includes(report.state);
    if (wasQuiet && !this.isQuiet) this.nextPicture = 0;
    this.picture.classList.toggle("old", this.isQuiet && !this.isOver);
  }

  heard(record) {
    this.lastRecord = record;
    if (record.kind !== "detection" || record.seq === undefined) return;
    const boxes = this.boxes.get(record.seq) ?? new Map();
    boxes.set(record.node, record);
    this.boxes.delete(record.seq);
    this.boxes.set(record.seq, boxes);
    if (this.boxes.size > BOXES_KEPT) this.boxes.delete(this.boxes.keys().next().value);
    if (this.shown?.seq === record.seq) this.draw(record.seq);
  }

  async refresh() {
    const query = new URLSearchParams({ graph: this.graph, stream: this.stream });
    const answer = await fetch(`preview?${query}`, { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (!answer.ok) {
      if (this.image.hidden) setText(this.notice, this.isOver ? "The stream has ended" : "No picture yet");
      return;
    }
    const [seq, width, height] = ["seq", "width", "height"].map((name) => Number(answer.headers.get(`x-picture-${name}`)));
    if (this.shown?.seq === seq) return;
    const address = URL.createObjectURL(await answer.blob());
    const picture = new Image();
    picture.src = address;
    try {
      await picture.decode();
    } finally {
      URL.revokeObjectURL(this.image.src);
      this.image.src = address;
    }
    this.image.alt = `Latest picture of ${this.stream}`;
    this.image.hidden = false;
    this.notice.hidden = true;
    this.shown = { seq, width, height };
    this.picture.style.aspectRatio = `${Math.max(width, 1)} / ${Math.max(height, 1)}`;
    this.overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.overlay.replaceChildren();
    if (this.boxes.has(seq)) {
      this.draw(seq);
    } else {
      // Its record may be on the way; where no operator looked at this very picture, a neighbour's boxes come close.
      setTimeout(() => this.shown?.seq === seq && this.drawNearest(seq), PICTURE_EVERY / 2);
    }
  }

  drawNearest(seq) {
    const distance = (other) => Math.abs(other - seq);
    const nearest = [...this.boxes.keys()].reduce((a, b) => (a !== null && distance(a) <= distance(b) ? a : b), null);
    if (nearest !== null && distance(nearest) <= NEAR) this.draw(nearest);
  }

  draw(seq) {
    const { width, height } = this.shown;
    const size = Math.max(width, height) / 32;
    const group = drawing("g", seq === this.shown.seq ? {} : { class: "near" });
    for (const record of this.boxes.get(seq).values()) {
      for (const { label, score, box } of record.detections) {
        const [left, top, right, bottom] = box;
        const colour = colourOf(label);
        const place = { x: left, y: top, width: Math.max(right - left, 0), height: Math.max(bottom - top, 0) };
        group.append(drawing("rect", { ...place, stroke: colour }));
        const above = top > size * 1.3;
        // Near the right edge a label ends with its box, so that it is not cut off.
        const endsThere = left > width * 0.6;
        const text = drawing("text", {
          x: endsThere ? right : left,
          y: above ? top - size / 3 : top + size,
          "text-anchor": endsThere ? "end" : "start",
          fill: colour,
          "font-size": size,
          "stroke-width": size / 6,
        });
        text.textContent = `${label} ${number(score, 2)}`;
        group.append(text);
      }
    }
    this.overlay.replaceChildren(group);
  }
}

// The same label has the same colour everywhere, light enough for any picture.
function colourOf(label) {
  let hash = 0;
  for (const letter of label) hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
  return `hsl(${(hash * 137) % 360} 95% 68%)`;
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.target.card.isVisible = entry.isIntersecting;
  fetchPictures();
});

function showGraphs(reports) {
  const names = new Set(reports.map((report) => report.name));
  for (const [name, graph] of graphs) {
    if (names.has(name)) continue;
    graph.root.remove();
    graphs.delete(name);
    for (const [key, card] of cards) if (card.graph === name) forget(key, card);
  }
  for (const report of reports) showGraph(report);
  const place = find("streams");
  const isEmpty = graphs.size === 0;
  let empty = place.querySelector(":scope > .empty");
  if (isEmpty && !empty) place.append((empty = element("p", { class: "empty" })));
  if (isEmpty) setText(empty, "No graph runs yet.");
  else empty?.remove();
}

function showGraph(report) {
  let graph = graphs.get(report.name);
  if (!graph) {
    graph = { state: element("span", { class: "state" }), total: element("span", { class: "quiet" }) };
    graph.reason = element("p", { class: "reason" });
    graph.cards = element("div", { class: "cards" });
    const title = element("div", { class: "title" }, element("h2", {}, report.name), graph.state, graph.total, graph.reason);
    graph.root = element("section", { class: "graph", "aria-label": `Graph ${report.name}` }, title, graph.cards);
    graphs.set(report.name, graph);
    find("streams").append(graph.root);
  }
  graph.state.dataset.state = report.state;
  setText(graph.state, report.state);
  const streams = `${report.streams.length} ${report.streams.length === 1 ? "stream" : "streams"}`;
  setText(graph.total, `${streams} · ${number(report.total.read)} read · ${number(report.total.delivered)} delivered`);
  setText(graph.reason, report.reason ?? "");
  graph.reason.hidden = !report.reason;
  graph.cards.classList.toggle("few", report.streams.length <= 4);
  graph.isHeard = report.nodes.some((node) => node.type === "sse");

  const present = new Set();
  for (const stream of report.streams) {
    const key = keyOf(report.name, stream.stream);
    present.add(key);
    let card = cards.get(key);
    if (!card) {
      card = new Card(report.name, stream.stream);
      cards.set(key, card);
      graph.cards.append(card.root);
    }
    card.update(stream);
  }
  for (const [key, card] of cards) if (card.graph === report.name && !present.has(key)) forget(key, card);
}

function forget(key, card) {
  seen.unobserve(card.picture);
  URL.revokeObjectURL(card.image.src);
  card.root.remove();
  cards.delete(key);
  if (chosen === key) choose(null);
}

// Results.

let results = [];
let isDrawing = false;

function describe(record) {
  const scored = (found) => found.map(({ label, score }) => `${label} ${number(score, 2)}`).join(", ");
  switch (record.kind) {
    case "detection":
      return record.detections.length > 0 ? scored(record.detections) : "nothing found";
    case "classification":
      return record.predictions.length > 0 ? scored(record.predictions.slice(0, 3)) : "no label";
    case "checksum":
      return record.md5;
    case "gap":
      return `Gap: ${record.reason}`;
    case "error":
      return record.message;
    case "status":
      return record.reason ? `${record.state}: ${record.reason}` : record.state;
    default:
      return record.kind;
  }
}

function heard(record) {
  // A gap of the connection itself names no stream.
  if (record.stream !== undefined) cards.get(keyOf(record.graph, record.stream))?.heard(record);
  const isWanted = chosen === null || chosen === keyOf(record.graph, record.stream);
  if (isWanted) {
    results.unshift(record);
    results.length = Math.min(results.length, RESULTS_SHOWN);
  }
  showResults();
}

function showResults() {
  if (isDrawing) return;
  isDrawing = true;
  // Many results make one change of the page.
  setTimeout(() => {
    isDrawing = false;
    find("list").replaceChildren(...results.map(entry));
    for (const { latest, lastRecord } of cards.values()) if (lastRecord) setText(latest, describe(lastRecord));
    showHint();
  }, 200);
}

function entry(record) {
  const time = record.time ? new Date(record.time) : null;
  const clock = element("time", time ? { datetime: record.time } : {}, time ? time.toLocaleTimeString() : "–");
  const from = record.stream === undefined ? "events" : `${record.stream} · ${record.node}`;
  const what = element("span", { class: "what" }, describe(record));
  const made = element("li", { "data-kind": record.kind }, clock, element("span", { class: "from" }, from), what);
  return made;
}

function showHint() {
  const unheard = [...graphs].filter(([, graph]) => !graph.isHeard).map(([name]) => name);
  const hint = find("hint");
  let text = "";
  if (unheard.length > 0) text = `Without an \`sse\` sink, results do not come here: ${unheard.join(", ")}.`;
  else if (results.length === 0) text = "No results yet.";
  hint.hidden = text === "";
  setText(hint, text);
}

function choose(key) {
  chosen = key;
  for (const [other, card] of cards) {
    card.root.classList.toggle("chosen", other === key);
    card.name.setAttribute("aria-pressed", String(other === key));
  }
  find("all").hidden = key === null;
  setText(find("results-title"), key === null ? "Results" : `Results of ${cards.get(key).stream}`);
  if (key !== null) results = results.filter((record) => keyOf(record.graph, record.stream) === key);
  showResults();
}

// What comes from the engine.

let events = null;
let reconnecting = 0;

function listen() {
  clearTimeout(reconnecting);
  events?.close();
  events = new EventSource("events");
  events.addEventListener("open", () => connected("events", "live"));
  for (const kind of KINDS) {
    events.addEventListener(kind, (event) => {
      // The browser calls its own errors `error` too; those carry no data.
      if (event.data !== undefined) heard(JSON.parse(event.data));
    });
  }
  events.onerror = (event) => {
    if (event.data !== undefined) return;
    connected("events", "lost");
    // A browser gives up after an answer that is no event stream.
    if (events.readyState === EventSource.CLOSED) reconnecting = setTimeout(listen, RECONNECT_AFTER);
  };
}

let isAsking = false;

async function askStats() {
  if (isAsking || document.hidden) return;
  isAsking = true;
  try {
    const answer = await fetch("stats", { cache: "no-store", signal: AbortSignal.timeout(8000) });
    // The session is over: the server shows the form for a key in this page's place.
    if (answer.status === 401) return location.reload();
    if (!answer.ok) throw new Error(`/stats answered ${answer.status}`);
    const stats = await answer.json();
    connected("stats", "live");
    showGraphs(stats.graphs);
    showHint();
    const { uptime_seconds, cpu_seconds, resident_bytes } = stats.process;
    const share = uptime_seconds > 0 ? cpu_seconds / uptime_seconds : 0;
    setText(find("process"), `${duration(uptime_seconds)} up · ${number(share, 2)} cores · ${number(resident_bytes / 2 ** 20)} MiB`);
    fetchPictures();
  } catch {
    connected("stats", "lost");
  } finally {
    isAsking = false;
  }
}

function duration(seconds) {
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${Math.floor(seconds) % 60} s` : `${Math.floor(seconds)} s`;
}

let wantsPictures = true;
let underWay = 0;
let nextLook = 0;

// Asks for the pictures that are due, longest waiting first.
function fetchPictures() {
  clearTimeout(nextLook);
  if (!wantsPictures || document.hidden || connection.stats !== "live") return;
  const now = performance.now();
  const visible = [...cards.values()].filter((card) => card.isVisible && !card.isFetching);
  visible.sort((a, b) => a.nextPicture - b.nextPicture);
  for (const card of visible) {
    if (underWay >= PICTURES_AT_ONCE) return;
    if (card.nextPicture > now) {
      nextLook = setTimeout(fetchPictures, card.nextPicture - now);
      return;
    }
    underWay += 1;
    card.isFetching = true;
    card
      .refresh()
      .catch(() => {
        // Without an answer the statistics will say that the connection is lost.
      })
      .finally(() => {
        underWay -= 1;
        card.isFetching = false;
        card.nextPicture = performance.now() + (card.isQuiet ? 10 * PICTURE_EVERY : PICTURE_EVERY);
        fetchPictures();
      });
  }
}

find("pictures").addEventListener("click", () => {
  wantsPictures = !wantsPictures;
  find("pictures").setAttribute("aria-pressed", String(wantsPictures));
  fetchPictures();
});
find("all").addEventListener("click", () => choose(null));

// A page that nobody looks at asks for nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(reconnecting);
    events?.close();
  } else {
    listen();
    askStats();
  }
});

listen();
askStats();
setInterval(askStats, STATS_EVERY);
