// The live part of the page: reads the entries, computes with numbers.js, writes every number down,
// and draws the strips and the wires. Nothing leaves the page.
(function () {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const every = (what, root = document) => [...root.querySelectorAll(what)];
  const start = JSON.parse($("start").textContent);
  const MOST = Number($("size").max), CHANNELS = start.gamma.length, OUTLIER = 50;
  const channels = [...Array(CHANNELS).keys()];
  const SVG = "http://www.w3.org/2000/svg";

  // --- state ------------------------------------------------------------------------------------

  let state, outlier = null;
  const running = channels.map(() => ({}));
  let steps = 0;

  function begin() {
    // More samples than the example has begin with its rows again, moved by one.
    const rows = (given) => [...Array(MOST).keys()].map((n) => {
      const round = Math.floor(n / given.length);
      return given[n % given.length].map((v) => v + round);
    });
    state = {
      size: start.x.length, x: rows(start.x), dout: rows(start.dout), gamma: [...start.gamma],
      beta: [...start.beta], eps: start.eps,
    };
    outlier = null;
  }

  function forget() {
    running.forEach((one) => { one.mean = 0; one.var = 1; });
    steps = 0;
  }

  // --- numbers as words ---------------------------------------------------------------------------

  function shown(value) {
    if (!Number.isFinite(value)) { return Number.isNaN(value) ? "undefined" : value > 0 ? "∞" : "−∞"; }
    const size = Math.abs(value);
    const text = size === 0 ? "0" : size >= 1e5 || size < 1e-3
      ? value.toExponential(size < 1e-12 ? 0 : 2).replace(/(\.\d*?)0+e/, "$1e").replace(".e", "e").replace("e+", "e")
      : String(Number(value.toPrecision(4)));
    return text.replaceAll("-", "−");
  }

  // --- from the entries -----------------------------------------------------------------------------

  function place(entry) {
    const { channel, sample } = entry.closest("[data-channel]")?.dataset ?? {};
    const into = state[entry.dataset.entry];
    if (sample !== undefined) { return [into[sample], channel]; }
    return channel !== undefined ? [into, channel] : [state, entry.dataset.entry];
  }

  function readable(entry) {
    const value = entry.value.trim() === "" ? NaN : Number(entry.value);
    const least = entry.min === "" ? -1e100 : Number(entry.min);
    const most = entry.max === "" ? 1e100 : Number(entry.max);
    const whole = entry.step !== "1" || Number.isInteger(value);
    return value >= least && value <= most && whole ? value : null;
  }

  // The number in an entry; null, and the entry marked, where there is none.
  function taken(entry) {
    const value = readable(entry);
    if (value === null) { entry.setAttribute("aria-invalid", "true"); } else { entry.removeAttribute("aria-invalid"); }
    return value;
  }

  function expected(entry) {
    const range = entry.max !== "" ? ` from ${entry.min} to ${entry.max}` : entry.min !== "" ? " of at least 0" : "";
    const name = entry.getAttribute("aria-label") || entry.parentElement.textContent.trim().toLowerCase();
    return `${name}: expected a ${entry.step === "1" ? "whole " : ""}number${range}. The last one still counts.`;
  }

  function fill() {
    every("[data-entry]").forEach((entry) => {
      const [from, key] = place(entry);
      entry.value = from[key];
      entry.removeAttribute("aria-invalid");
    });
    $("size").value = state.size;
    $("size").removeAttribute("aria-invalid");
  }

  // --- to the page ------------------------------------------------------------------------------------

  function computed() {
    return channels.map((d) => {
      const column = (rows) => rows.slice(0, state.size).map((row) => row[d]);
      const inputs = [column(state.x), column(state.dout), state.gamma[d], state.beta[d], state.eps];
      return Object.assign(
        normkit.channel(...inputs),
        normkit.inference(...inputs, running[d].mean, running[d].var),
      );
    });
  }

  function write(results) {
    every("tr[data-row]").forEach((row) => { row.hidden = Number(row.dataset.row) >= state.size; });
    every("td[data-key]").forEach((cell) => {
      const { key, channel, sample } = cell.dataset;
      const value = sample === undefined ? results[channel][key] : results[channel][key][sample];
      if (value === undefined) { return; }
      bar(cell, value, sample === undefined ? [] : results[channel][key]);
      const data = cell.querySelector("data");
      if (data && data.value !== String(value)) {
        data.value = String(value);
        data.textContent = shown(value);
      }
    });
    every("[data-identity]").forEach((cell) => {
      const [left, right] = normkit.identities(results[cell.dataset.channel], state.eps)[cell.dataset.identity];
      cell.textContent = right === 0 ? shown(left) : `${shown(left)} = ${shown(right)}`;
    });
  }

  // From the middle to the left or to the right, the largest of the column half a cell long.
  function bar(cell, value, all) {
    const most = Math.max(...all.map(Math.abs));
    const half = most > 0 && Number.isFinite(most) ? 50 * value / most : 0;
    cell.style.setProperty("--low", `${Math.min(50, 50 + half)}%`);
    cell.style.setProperty("--high", `${Math.max(50, 50 + half)}%`);
  }

  function name(d) { return CHANNELS > 1 ? `Channel ${d + 1}: ` : ""; }

  function say(words, wrong = false) {
    $("said").textContent = words;
    $("said").classList.toggle("wrong", wrong);
  }

  function summary(results) {
    const flat = results.findIndex((one) => !Number.isFinite(one.inverse));
    if (flat >= 0) {
      return [`${name(flat)}all x are equal and ε is 0, so there is no spread to divide by.`, true];
    }
    return [results.map((one, d) => `${name(d)}mean ${shown(one.mean)}, deviation ${shown(one.std)}`).join(". ") + ".", false];
  }

  function refresh(wrong = null) {
    const results = computed();
    write(results);
    say(...(wrong ? [expected(wrong), true] : summary(results)));
    $("outlier").setAttribute("aria-pressed", String(outlier !== null));
    $("outlier").textContent = outlier === null ? "Plant an outlier" : "Take the outlier away";
    $("strips").replaceChildren(...results.map(normalized));
    $("sides").replaceChildren(...results.map(sides));
    $("slide").value = state.x[0][0];
    $("steps").textContent = steps === 0 ? "nothing seen yet: mean 0, variance 1" : `${steps} step${steps === 1 ? "" : "s"} so far`;
  }

  // --- strips: rows of one dot a sample, all on one scale -------------------------------------------------

  function element(tag, attributes, ...inside) {
    const made = document.createElementNS(SVG, tag);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.append(...inside);
    return made;
  }

  const LEFT = 108, RIGHT = 392, FIRST = 34, BETWEEN = 50;

  function normalized(one, d) {
    const spread = Math.sqrt(one.var), left = Math.sqrt(one.var / (one.var + state.eps));
    return strip(d, "x, normalized and scaled", [
      ["x", one.x, one.mean, spread, `mean ${shown(one.mean)}`, `spread ${shown(spread)}`],
      ["x̂", one.normalized, 0, left, "mean 0", `spread ${shown(left)}`],
      ["y", one.out, one.beta, Math.abs(one.gamma) * left, `β ${shown(one.beta)}`, `γ ${shown(one.gamma)}`],
    ]);
  }

  function sides(one, d) {
    return strip(d, "y in training and in inference", [
      ["y", one.out, NaN, NaN, "training", ""],
      ["y", one.running_out, NaN, NaN, "inference", ""],
    ]);
  }

  // Each line: symbol, values, centre and half width of a band (NaN for none), two words.
  function strip(d, what, lines) {
    const floor = FIRST + BETWEEN * (lines.length - 1) + 28;
    const row = (number) => FIRST + BETWEEN * number;
    const bands = lines.flatMap(([, , centre, half]) => [centre - half, centre + half]);
    const all = [...lines.flatMap(([, values]) => values), ...bands.filter((v) => !Number.isNaN(v))];
    const drawing = element("svg", { viewBox: `0 0 400 ${floor + 24}`, role: "img", "aria-label": `${name(d)}${what}, on one scale` });
    if (!all.every(Number.isFinite)) { return drawing; }
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const at = (value) => LEFT + 10 + (value - low) / (high - low || 1) * (RIGHT - LEFT - 20);
    drawing.append(element("text", { x: 0, y: 11, class: "title" }, name(d).replace(": ", "")));
    axis(drawing, low, high, at, floor);
    lines[0][1].forEach((_, n) => {
      const points = lines.map(([, values], k) => `${at(values[n]).toFixed(1)} ${row(k)}`);
      drawing.append(element("path", { class: "thread", "data-sample": n, d: `M${points.join("L")}` }));
    });
    lines.forEach(([symbol, values, centre, half, first, second], k) => {
      const y = row(k);
      drawing.append(
        element("path", { class: "axis", d: `M${LEFT} ${y}H${RIGHT}` }),
        element("text", { x: 0, y: y + 4, class: "title" }, symbol),
        element("text", { x: 18, y: y + (second ? -2 : 4), class: "faint" }, first),
        element("text", { x: 18, y: y + 11, class: "faint" }, second),
      );
      if (!Number.isNaN(centre)) {
        drawing.append(
          element("path", { class: "band", d: `M${at(centre - half)} ${y}H${at(centre + half)}` }),
          element("path", { class: "centre", d: `M${at(centre)} ${y - 12}v24` }),
        );
      }
      values.forEach((value, n) => {
        const x = at(value);
        drawing.append(element("g", { class: "dot", "data-sample": n },
          element("circle", { cx: x, cy: y, r: 7 }), element("text", { x, y: y + 3.2 }, String(n + 1))));
      });
    });
    return drawing;
  }

  function axis(drawing, low, high, at, floor) {
    const rough = (high - low) / 5 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough * 0.999);
    // So many at most: beyond 2 ** 53 a number plus one is itself, and counting never ends.
    const ticks = Array.from({ length: 12 }, (_, k) => (Math.ceil(low / step) + k) * step);
    ticks.filter((tick, k) => tick <= high && tick !== ticks[k - 1]).forEach((tick) => drawing.append(
      element("path", { class: "axis", d: `M${at(tick).toFixed(1)} 20V${floor}` }),
      element("text", { x: at(tick), y: floor + 13, class: "faint", "text-anchor": "middle" }, shown(tick)),
    ));
  }

  // --- wires ------------------------------------------------------------------------------------------

  const GAP = 4.5;  // of a wire's two lines from its middle

  function wires() {
    const board = document.querySelector(".wires");
    if (getComputedStyle(board).display === "none") { return; }
    const origin = $("cards").getBoundingClientRect();
    const boxes = new Map(every(".node").map((node) => {
      const r = node.getBoundingClientRect();
      return [node.dataset.node, {
        left: r.left - origin.left, right: r.right - origin.left, top: r.top - origin.top,
        bottom: r.bottom - origin.top, statistic: node.classList.contains("statistic"),
      }];
    }));
    const lines = start.edges.flatMap(([from, to]) => {
      const route = way(boxes.get(from), boxes.get(to));
      return [["fore", beside(route, -GAP)], ["aft", beside(route, GAP).reverse()]];
    });
    board.replaceChildren(tips(), ...lines.map(([side, points]) => element("path", {
      class: side, "marker-end": `url(#tip-${side})`,
      d: "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L"),
    })));
  }

  function tips() {
    return element("defs", {}, ...["fore", "aft"].map((side) => element("marker", {
      id: `tip-${side}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8,
      markerUnits: "userSpaceOnUse", orient: "auto",
    }, element("path", { class: `tip-${side}`, d: "M0 0L8 4L0 8Z" }))));
  }

  // Corners of a line between two cards, along the rows and columns between them.
  function way(a, b) {
    const middle = (one) => (one.left + one.right) / 2;
    if (a.statistic === b.statistic) {
      if (b.top - a.bottom < 60) { return [[middle(a), a.bottom], [middle(a), b.top]]; }
      const x = a.left - 16, from = (a.top + a.bottom) / 2, to = (b.top + b.bottom) / 2;
      return [[a.left, from], [x, from], [x, to], [b.left, to]];  // past what lies between
    }
    const [near, far] = a.statistic ? [a.left, b.right] : [a.right, b.left];
    const top = Math.max(a.top, b.top), bottom = Math.min(a.bottom, b.bottom);
    if (bottom > top) { return [[near, (top + bottom) / 2], [far, (top + bottom) / 2]]; }
    const x = b.left + 40, y = (a.top + a.bottom) / 2;
    return [[near, y], [x, y], [x, b.top]];
  }

  // The same line moved sideways.
  function beside(points, gap) {
    const normals = points.slice(1).map(([x, y], k) => {
      const [dx, dy] = [x - points[k][0], y - points[k][1]], length = Math.hypot(dx, dy) || 1;
      return [-dy / length * gap, dx / length * gap];
    });
    return points.map(([x, y], k) => {
      const around = [normals[k - 1], normals[k]].filter(Boolean);
      return around.reduce(([px, py], [nx, ny]) => [px + nx, py + ny], [x, y]);
    });
  }

  // --- what the reader does ---------------------------------------------------------------------------

  function follow(sample) {
    every("[data-row], [data-sample]", document).forEach((one) => {
      const mine = one.tagName === "TR" ? one.dataset.row : one.tagName === "TD" ? null : one.dataset.sample;
      one.classList.toggle("followed", sample !== null && mine === sample);
    });
  }

  function trained(times) {
    const momentum = taken($("momentum"));
    if (momentum === null) { return refresh($("momentum")); }
    const before = { ...running[0] };
    const results = computed();
    for (let k = 0; k < times; k += 1) {
      channels.forEach((d) => { Object.assign(running[d], normkit.update(running[d], results[d], momentum)); });
    }
    steps += times;
    refresh();
    if (times === 1) { told(before, results[0], momentum); } else { $("moved").textContent = ""; }
  }

  function told(before, one, momentum) {
    const m = state.size, rest = shown(1 - momentum), share = shown(momentum);
    $("moved").textContent =
      `${name(0)}running mean ← ${rest} · ${shown(before.mean)} + ${share} · ${shown(one.mean)} = ${shown(running[0].mean)}; ` +
      `running variance ← ${rest} · ${shown(before.var)} + ${share} · ${m}/${m - 1} · ${shown(one.var)} = ${shown(running[0].var)}`;
  }

  function planted() {
    if (outlier === null) {
      const sample = state.size - 1;
      outlier = { sample, was: state.x[sample][0] };
      state.x[sample][0] = OUTLIER;
    } else {
      state.x[outlier.sample][0] = outlier.was;
      outlier = null;
    }
    fill();
    refresh();
  }

  function other() {
    const any = (most) => Math.round((2 * Math.random() - 1) * most * 2) / 2;
    state.x = state.x.map((row) => row.map((_, d) => any(6) + 5 * d));
    state.dout = state.dout.map((row) => row.map(() => any(2)));
    outlier = null;
    fill();
    refresh();
  }

  document.addEventListener("input", (event) => {
    const entry = event.target;
    if (!entry.matches("input")) { return; }
    const value = taken(entry);
    if (value === null) { return refresh(entry); }
    if (entry.id === "size") {
      state.size = value;
    } else if (entry.id === "slide") {
      state.x[0][0] = value;
      fill();
    } else if (entry.dataset.entry) {
      const [into, key] = place(entry);
      into[key] = value;
      if (outlier !== null && state.x[outlier.sample][0] !== OUTLIER) { outlier = null; }
    }
    refresh(document.querySelector("tr:not([hidden]) [aria-invalid], .tools [aria-invalid], .entry [aria-invalid]"));
  });
  $("outlier").addEventListener("click", planted);
  $("other").addEventListener("click", other);
  $("again").addEventListener("click", () => { begin(); fill(); refresh(); });
  $("train").addEventListener("click", () => trained(1));
  $("train-many").addEventListener("click", () => trained(20));
  $("forget").addEventListener("click", () => { forget(); $("moved").textContent = ""; refresh(); });
  for (const kind of ["pointerover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const one = event.target.closest?.("tr[data-row], .dot");
      follow(one ? one.dataset.row ?? one.dataset.sample : null);
    });
  }
  new ResizeObserver(wires).observe($("cards"));

  begin();
  forget();
  fill();
  refresh();
})();
