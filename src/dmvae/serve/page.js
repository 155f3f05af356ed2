// The page of `dmvae serve`. Every value comes from /api/NAME; texts are set as text, never as HTML, but for the two
// fragments that the report's own functions wrote.

const $ = (id) => document.getElementById(id);
const WAITS = "computes …";
const SMALL = 96; // images with shorter sides are shown with hard pixels

function make(tag, values = {}, ...children) {
  const { style = {}, ...others } = values;
  const element = Object.assign(document.createElement(tag), others);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

async function ask(name, values = {}, signal = undefined) {
  const answer = await fetch(`/api/${name}?${new URLSearchParams(values)}`, { signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("no answer: has dmvae serve ended? See its terminal, and load this page anew");
  });
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}; see the terminal` }));
  throw new Error(found.error);
}

const get = async (name, values, signal) => (await ask(name, values, signal)).json();

function tell(error) {
  if (error?.name === "AbortError") return;
  if (error) for (const note of document.querySelectorAll(".tile .note")) if (note.textContent === WAITS) note.textContent = "not shown";
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

const quietly = (work) => (...values) => Promise.resolve(work(...values)).then(() => tell(null), tell);

function show(image, uri) {
  image.onload = () => image.classList.toggle("small", image.naturalWidth < SMALL);
  image.src = uri;
  return image;
}

const picture = (uri, alt) => show(make("img", { alt }), uri);

const name = (method) => [make("i", { style: { background: method.colour } }), method.name];
const after = (stage) => (stage === "latents" ? "" : `after stage ${stage}`);
const any = (count) => Math.floor(Math.random() * count);

// one tile a method, filled one after the other; a newer call makes an older one stop
function tiles(place, methods) {
  const built = methods.map((method) => {
    const frame = make("div", { className: "frame" });
    const note = make("p", { className: "note" }, WAITS);
    return { method, frame, note, tile: make("figure", { className: "tile" }, make("figcaption", {}, ...name(method)), frame, note) };
  });
  place.replaceChildren(...built.map((part) => part.tile));
  return built;
}

function newest(place = null) {
  let controller = new AbortController();
  return () => {
    controller.abort();
    for (const note of place?.querySelectorAll(".note") ?? []) if (note.textContent === WAITS) note.textContent = "";
    controller = new AbortController();
    return controller.signal;
  };
}

// ---------------------------------------------------------------- map

async function map() {
  const { panels, classes, how } = await get("map");
  $("map-wait").hidden = true;
  $("map-how").textContent = panels.length ? `The plane is ${how}, of latents normalised per channel; each row of panels has one plane.` : "";
  $("map-classes").replaceChildren(...classes.map((c) => make("li", {}, make("i", { style: { background: c.colour } }), c.name)));
  const colour = Object.fromEntries(classes.map((c) => [c.label, c.colour]));
  const names = Object.fromEntries(classes.map((c) => [c.label, c.name]));
  const views = panels.map((panel) => {
    const canvas = make("canvas", { tabIndex: 0, ariaLabel: `${panel.title}: arrow keys go from latent to latent` });
    const figure = make("figure", { className: "panel" }, make("figcaption", {}, panel.title), canvas);
    return { panel, canvas, figure };
  });
  const planes = [...new Set(panels.map((panel) => panel.plane))];
  const row = (plane) => views.filter((view) => view.panel.plane === plane).map((view) => view.figure);
  $("map-panels").replaceChildren(...planes.map((plane) => make("div", { className: "panels" }, ...row(plane))));
  let chosen = null;

  const at = (canvas, [x, y]) => [(0.04 + 0.92 * x) * canvas.clientWidth, (0.96 - 0.92 * y) * canvas.clientHeight];
  function draw({ panel, canvas }) {
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const dot = (point, radius) => {
      pen.beginPath();
      pen.arc(...at(canvas, point), radius, 0, 7);
    };
    pen.globalAlpha = 0.25;
    pen.fillStyle = "#8a8f98";
    for (const point of panel.behind === null ? [] : panels[panel.behind].points) dot(point, 3), pen.fill();
    pen.globalAlpha = 0.85;
    panel.points.forEach((point, i) => {
      pen.fillStyle = colour[panel.labels[i]];
      dot(point, 2.2);
      pen.fill();
    });
    if (chosen && chosen.panel === panel) {
      pen.globalAlpha = 1;
      pen.lineWidth = 2.5;
      pen.strokeStyle = getComputedStyle(document.body).color;
      dot(panel.points[chosen.i], 6);
      pen.stroke();
    }
  }

  const kept = new Map();
  const turn = newest();
  async function choose(panel, i) {
    const place = panel.places[i];
    if (chosen && chosen.panel === panel && chosen.i === i) return;
    chosen = { panel, i, place };
    views.forEach(draw);
    const signal = turn();
    await new Promise((go) => setTimeout(go, 60)); // a pointer that passes over a point asks for nothing
    if (signal.aborted) return;
    const key = `${panel.method} ${place} ${panel.reference}`;
    if (!kept.has(key)) kept.set(key, await get("point", { method: panel.method, place, reference: Number(panel.reference) }, signal));
    const { original, copy } = kept.get(key);
    const whose = panel.reference ? `${panel.title}, decoded by ${panel.method}` : `${panel.method}: reconstruction`;
    const shown = (uri, text) => uri ? make("figure", {}, picture(uri, text), make("figcaption", { className: "note" }, text)) : null;
    const heading = make("h3", {}, panel.reference ? names[panel.labels[i]] : `${names[panel.labels[i]]}, image ${place}`);
    $("map-point").replaceChildren(...[heading, shown(original, "test image"), shown(copy, whose)].filter(Boolean));
  }

  for (const view of views) {
    const { panel, canvas } = view;
    canvas.onpointermove = canvas.onpointerdown = (event) => {
      const box = canvas.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      let best = -1;
      let least = 14 ** 2;
      panel.points.forEach((point, i) => {
        const [px, py] = at(canvas, point);
        const far = (px - x) ** 2 + (py - y) ** 2;
        if (far < least) [best, least] = [i, far];
      });
      if (best >= 0) quietly(choose)(panel, best);
    };
    canvas.onkeydown = (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const n = panel.points.length;
      const i = chosen?.panel === panel ? chosen.i : by > 0 ? -1 : 0;
      quietly(choose)(panel, (i + by + n) % n);
    };
    new ResizeObserver(() => draw(view)).observe(canvas);
  }
}

// ---------------------------------------------------------------- between

function between(run) {
  const methods = run.methods.filter((method) => method.tokenizer);
  const turn = newest($("between-tiles"));
  let parts = [];

  function place() {
    const share = Number($("between-share").value) / (run.frames - 1);
    $("between-text").textContent = `${Math.round(100 * share)} % of the way`;
    for (const { frame } of parts) frame.style.backgroundPosition = `${100 * share}% 0`;
    for (const fade of document.querySelectorAll("#between-tiles .fade")) fade.style.opacity = share;
  }

  async function fill() {
    const signal = turn();
    const [a, b, path] = ["between-a", "between-b", "between-path"].map((id) => $(id).value);
    const ends = await Promise.all([a, b].map((index) => get("image", { index }, signal)));
    show($("between-first"), ends[0].original);
    show($("between-last"), ends[1].original);
    const pixels = make("figure", { className: "tile" }, make("figcaption", {}, "pixels mixed"));
    const both = ends.map((end) => picture(end.original, "pixels of both images, mixed"));
    both[1].classList.add("fade");
    pixels.append(make("div", { className: "frame" }, ...both), make("p", { className: "note" }, "to compare with: no tokenizer"));
    parts = tiles($("between-tiles"), methods);
    $("between-tiles").append(pixels);
    place();
    for (const { method, frame, note } of parts) {
      const found = await get("between", { method: method.name, a, b, path }, signal);
      frame.style.backgroundImage = `url(${found.strip})`;
      frame.style.backgroundSize = `${100 * run.frames}% 100%`;
      frame.classList.toggle("small", both[0].naturalWidth < SMALL);
      note.textContent = after(found.stage);
      place();
    }
  }

  Object.assign($("between-share"), { max: run.frames - 1, value: (run.frames - 1) / 2 });
  $("between-share").oninput = place;
  for (const id of ["between-a", "between-b", "between-path"]) $(id).onchange = quietly(fill);
  $("between-random").onclick = quietly(() => {
    $("between-a").value = any(run.images.count);
    $("between-b").value = any(run.images.count);
    return fill();
  });
  return run.images.count ? fill() : null;
}

// ---------------------------------------------------------------- copies

function copies(run) {
  const methods = run.methods.filter((method) => method.tokenizer);
  const turn = newest($("copies-tiles"));
  const place = () => $("copies-tiles").style.setProperty("--wipe", `${$("copies-wipe").value}%`);

  async function fill() {
    const signal = turn();
    const index = $("copies-index").value;
    const { original } = await get("image", { index }, signal);
    const parts = tiles($("copies-tiles"), methods);
    for (const { frame } of parts) frame.append(picture(original, "the test image"));
    for (const { method, frame, note } of parts) {
      const found = await get("copies", { method: method.name, index }, signal);
      frame.append(picture(found.copy, `${method.name}: its reconstruction`));
      frame.classList.add("wipe");
      note.textContent = [found.psnr, after(found.stage)].filter(Boolean).join(", ");
    }
  }

  $("copies-tiles").onpointermove = (event) => {
    const frame = event.target.closest(".wipe");
    if (!frame) return;
    const box = frame.getBoundingClientRect();
    $("copies-wipe").value = (100 * (event.clientX - box.left)) / box.width;
    place();
  };
  $("copies-wipe").oninput = place;
  $("copies-index").onchange = quietly(fill);
  $("copies-random").onclick = quietly(() => {
    $("copies-index").value = any(run.images.count);
    return fill();
  });
  place();
  return run.images.count ? fill() : null;
}

// ---------------------------------------------------------------- samples

function samples(run) {
  const methods = run.methods.filter((method) => method.sampling);
  const turn = newest();
  if (!methods.length) {
    $("samples-form").hidden = true;
    return;
  }
  const option = (text, value) => make("option", { value }, text);
  $("samples-label").replaceChildren(...run.classes.map((c) => option(c.name, c.label)), option("no class", ""));
  $("samples-sampler").replaceChildren(...run.samplers.map((sampler) => option(sampler, sampler)));
  const { method, steps, guidance } = methods[0].sampling;
  Object.assign($("samples-steps"), { value: steps, max: run.most.steps });
  $("samples-guidance").value = guidance;
  $("samples-sampler").value = method;
  $("samples-count").max = run.most.count;
  const boxes = methods.map((m) => make("input", { type: "checkbox", checked: true, value: m.name }));
  if (methods.length > 1) $("samples-methods").replaceChildren(...methods.map((m, i) => make("label", {}, boxes[i], ...name(m))));

  async function row(method, values, signal) {
    const bar = make("progress", { max: 1, value: 0 });
    const text = make("small", {}, "waits");
    const images = make("div");
    $("samples-rows").append(make("div", { className: "draw" }, make("p", {}, make("span", {}, ...name(method)), bar, text), images));
    const reader = (await ask("samples", { method: method.name, ...values }, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((l) => JSON.parse(l))) {
        if (line.error) throw new Error(line.error);
        if (line.images) {
          images.replaceChildren(...line.images.map((uri, i) => picture(uri, `${method.name}: sample ${i}`)));
          bar.remove();
          text.remove();
        } else {
          bar.value = line.step / line.of;
          text.textContent = `step ${line.step} of ${line.of}`;
        }
      }
    }
  }

  async function draw() {
    const signal = turn();
    const ids = ["label", "guidance", "steps", "sampler", "seed", "count"];
    const values = Object.fromEntries(ids.map((id) => [id, $(`samples-${id}`).value]));
    $("samples-rows").replaceChildren();
    $("samples-stop").disabled = false;
    try {
      for (const [i, m] of methods.entries()) if (boxes[i].checked) await row(m, values, signal);
    } finally {
      if (!signal.aborted) $("samples-stop").disabled = true;
    }
  }

  $("samples-form").onsubmit = (event) => {
    event.preventDefault();
    quietly(draw)();
  };
  $("samples-stop").onclick = () => {
    turn();
    $("samples-stop").disabled = true;
  };
  return draw();
}

// ---------------------------------------------------------------- training, results

async function training() {
  let stage = null;
  let drawn = null;
  async function look() {
    const { stages, order, logged } = await get("progress");
    const methods = [...new Set(stages.map((s) => s.method))];
    const cell = (method, column) => {
      const found = stages.find((s) => s.method === method && s.stage === column);
      if (!found) return make("td", {}, "–");
      const bar = found.share === undefined ? null : make("progress", { max: 1, value: found.share });
      return make("td", { className: found.state }, ...[bar, found.text].filter(Boolean));
    };
    const head = make("tr", {}, make("th", {}, "Method"), ...order.map((column) => make("th", {}, column)));
    const rows = methods.map((m) => make("tr", {}, make("th", { scope: "row" }, m), ...order.map((column) => cell(m, column))));
    $("training-stages").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
    const left = stages.filter((s) => s.state !== "finished").length;
    const again = "this page looks again every five seconds.";
    $("training-text").textContent = left ? `${left} of ${stages.length} stages are not finished; ${again}` : "All stages are finished.";
    stage ??= stages.find((s) => s.state === "begun" && logged.includes(s.stage))?.stage ?? logged.at(-1);
    const pick = (name) => make("button", { className: name === stage ? "chosen" : "", onclick: quietly(() => ((stage = name), look())) }, name);
    $("training-choice").replaceChildren(...logged.map(pick));
    if (!stage) return left;
    const { html } = await get("curves", { stage });
    if (html !== drawn) {
      const place = $("training-curves");
      const open = [...place.querySelectorAll("details")].map((fold) => fold.open);
      place.innerHTML = drawn = html;
      place.querySelectorAll("details").forEach((fold, i) => (fold.open = open[i] ?? false));
    }
    return left;
  }
  async function again() {
    let left = 1;
    if (location.hash === "#training" && !document.hidden) await quietly(async () => (left = await look()))();
    if (left) setTimeout(again, 5000);
  }
  if (await look()) setTimeout(again, 5000);
}

async function results() {
  $("results-table").innerHTML = (await get("results")).html;
}

// ---------------------------------------------------------------- tabs

const opened = new Set();
const tabs = { map, between, copies, samples, training, results };

async function open(run) {
  const tab = location.hash.slice(1) in tabs ? location.hash.slice(1) : "map";
  for (const link of document.querySelectorAll("nav a")) link.setAttribute("aria-selected", link.hash === `#${tab}`);
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== tab;
  if (opened.has(tab)) return;
  opened.add(tab);
  try {
    await tabs[tab](run);
  } catch (error) {
    opened.delete(tab); // so that it is tried again
    throw error;
  }
}

async function start() {
  const run = await get("run");
  document.title = `${run.name} – dmvae serve`;
  $("name").textContent = run.name;
  $("where").textContent = run.folder;
  for (const [tab, lines] of Object.entries(run.missing)) {
    if (lines.length) $(tab).querySelector(".missing").textContent = `Not there yet: ${lines.join("; ")}.`;
  }
  for (const id of ["between-a", "between-b", "copies-index"]) $(id).max = Math.max(0, run.images.count - 1);
  window.onhashchange = quietly(() => open(run));
  await open(run);
}

quietly(start)();
