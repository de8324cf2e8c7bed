// Draws every chart from the JSON beside it, in the page's own colours: a few at once, many as they
// come near, all before printing; and again when the reader turns from light to dark.
(function () {
  "use strict";
  const AT_ONCE = 8;
  const PAPER = { lines: [608, 288], heat: [288, 256] };  // pixels of a chart in print
  const styles = getComputedStyle(document.documentElement);
  const colour = (name) => styles.getPropertyValue("--" + name).trim();
  const plain = (words) => words.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const coarse = matchMedia("(pointer: coarse)");  // there, a drag scrolls the page
  const paper = matchMedia("print");
  let printing = false;

  // --- from a chart's JSON to plotly's ---

  // A polygon for each stretch in which the band is known.
  function band(line) {
    const xs = [], ys = [];
    let run = [];
    const close = function () {
      if (!run.length) { return; }
      const round = run.concat(run.slice().reverse());
      round.forEach((i, n) => { xs.push(line.x[i]); ys.push(n < run.length ? line.high[i] : line.low[i]); });
      xs.push(null); ys.push(null);
      run = [];
    };
    line.x.forEach(function (x, i) {
      if (x === null || line.low[i] === null || line.high[i] === null) { close(); } else { run.push(i); }
    });
    close();
    return {
      type: "scatter", mode: "lines", x: xs, y: ys, fill: "toself", hoverinfo: "skip", showlegend: false,
      fillcolor: colour("line-" + line.colour), opacity: 0.2, line: { width: 0 },
    };
  }

  function stroke(line, chart) {
    const shade = colour("line-" + line.colour);
    const ends = line.low && line.low.map((low, i) => [low, line.high[i]]);
    return {
      type: "scatter", name: plain(line.name), x: line.x, y: line.y, connectgaps: false, showlegend: false,
      mode: chart.points ? "markers" : line.symbol ? "lines+markers" : "lines",
      opacity: line.thin ? 0.7 : 0.9,
      line: { color: shade, width: line.thin ? 1.1 : 1.9, dash: line.dashed ? "4px,3px" : "solid" },
      marker: {
        color: shade, symbol: line.symbol || "circle", size: chart.points ? 8 : line.thin ? 5 : 7,
        maxdisplayed: chart.points || line.x.length <= 12 ? 0 : line.thin ? 4 : 8,
      },
      customdata: ends,
      hovertemplate: "%{y:.4~g}" + (ends ? " (%{customdata[0]:.3~g} to %{customdata[1]:.3~g})" : "") +
        (chart.unified ? "" : "<br>at %{x:.4~g}"),
    };
  }

  function lines(chart, hidden) {
    const shown = chart.lines.map((line) => !hidden.has(line.name));
    const bands = chart.lines.map((line, i) => line.low && Object.assign(band(line), { visible: shown[i] }));
    const strokes = chart.lines.map((line, i) => Object.assign(stroke(line, chart), { visible: shown[i] }));
    return bands.filter(Boolean).concat(strokes);
  }

  function heat(chart) {
    const back = (z) => z === null ? null : chart.log_z ? Math.log10(z) : z;
    return [{
      type: "heatmap", x: chart.x, y: chart.y, z: chart.z.map((row) => row.map(back)),
      zmin: chart.ends[0], zmax: chart.ends[1], colorscale: "Cividis", showscale: false, hoverongaps: false,
      customdata: chart.z, hovertemplate: "%{customdata:.4~g}<br>at %{x:.3~g}, %{y:.3~g}<extra></extra>",
    }];
  }

  // Plain numbers on a logarithmic axis, and powers of ten where they would be long.
  function logarithmic(values) {
    const long = values.some((value) => value !== null && (value < 1e-4 || value >= 1e6));
    return Object.assign({ type: "log", nticks: 4 }, long ? { exponentformat: "power" } : { tickformat: "~g" });
  }

  function axis(log, values, more) {
    return Object.assign({
      automargin: true, fixedrange: coarse.matches, gridcolor: colour("rule"), linecolor: colour("faint"),
      zeroline: false, ticks: "outside", tickcolor: colour("rule"), nticks: 7,
    }, log ? logarithmic(values) : {}, more);
  }

  // Of all lines, and of the map itself.
  const along = (chart, name) => chart.lines ? chart.lines.flatMap((line) => line[name]) : chart[name];

  function layout(chart) {
    const loose = chart.kind === "lines" ? { rangemode: "tozero" } : { showgrid: false };
    const range = chart.range && (chart.log ? chart.range.map(Math.log10) : chart.range);
    const size = printing ? PAPER[chart.kind] : [];
    return {
      margin: { l: 36, r: 10, t: 8, b: 24 }, uirevision: "kept", showlegend: false,
      width: size[0], height: size[1], autosize: !printing, dragmode: coarse.matches ? false : "zoom",
      paper_bgcolor: colour("paper"), plot_bgcolor: colour("paper"),
      font: { color: colour("ink"), size: 13, family: getComputedStyle(document.body).fontFamily },
      xaxis: axis(chart.log_x, along(chart, "x"), loose),
      yaxis: axis(chart.log, along(chart, "y"), range ? Object.assign({}, loose, { range: range }) : loose),
      hovermode: chart.unified ? "x unified" : "closest",
      hoverlabel: { namelength: -1, bgcolor: colour("band"), bordercolor: colour("rule"), font: { color: colour("ink") } },
    };
  }

  // --- when ---

  const plots = Array.from(document.querySelectorAll(".plot"));
  const isDrawn = (plot) => plot.classList.contains("js-plotly-plot");

  function draw(plot) {
    plot.chart = plot.chart || JSON.parse(plot.nextElementSibling.textContent);
    plot.querySelectorAll("noscript").forEach((node) => node.remove());
    const off = plot.closest("figure").querySelectorAll(".key[aria-pressed=false]");
    const hidden = new Set(Array.from(off, (key) => key.dataset.name));
    const data = plot.chart.kind === "heat" ? heat(plot.chart) : lines(plot.chart, hidden);
    Plotly.react(plot, data, layout(plot.chart), { responsive: true, displayModeBar: false });
    document.documentElement.dataset.drawn = "true";
  }

  function again() { plots.filter(isDrawn).forEach(draw); }

  function print(on) {
    if (printing !== on) {
      printing = on;
      (on ? plots : plots.filter(isDrawn)).forEach(draw);
    }
  }

  const near = new IntersectionObserver(function (entries) {
    entries.filter((entry) => entry.isIntersecting).forEach(function (entry) {
      near.unobserve(entry.target);
      if (!isDrawn(entry.target)) { draw(entry.target); }
    });
  }, { rootMargin: "600px 0px" });
  plots.forEach((plot) => near.observe(plot));
  if (plots.length <= AT_ONCE) {
    plots.filter((plot) => plot.clientWidth > 0).forEach(draw);
  }
  for (const media of [matchMedia("(prefers-color-scheme: dark)"), coarse]) {
    media.addEventListener("change", again);
  }
  paper.addEventListener("change", () => print(paper.matches));
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));

  // --- buttons and keys ---

  const AXES = ["xaxis", "yaxis"];
  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const ACTS = { "+": "in", "=": "in", "-": "out", "0": "home" };

  const isZoomed = (plot) => AXES.some(function (name) {
    const now = plot.layout[name], home = layout(plot.chart)[name].range;
    return home ? String(now.range) !== String(home) : now.autorange === false;
  });

  // Both axes of every plot of a figure: (low, high) to what `change` makes of them.
  function relayout(figure, change) {
    figure.querySelectorAll(".plot").forEach(function (plot) {
      if (!isDrawn(plot)) { draw(plot); }
      const update = {};
      AXES.forEach(function (name, i) { Object.assign(update, change(plot, name, i)); });
      Plotly.relayout(plot, update);
    });
  }

  const toRange = (name, low, high) => ({ [name + ".range"]: [low, high], [name + ".autorange"]: false });

  function act(figure, what) {
    relayout(figure, function (plot, name) {
      if (what === "home") {
        const home = layout(plot.chart)[name].range;
        return home ? toRange(name, home[0], home[1]) : { [name + ".autorange"]: true };
      }
      const [low, high] = plot.layout[name].range;
      const middle = (low + high) / 2, half = (high - low) / 2 * (what === "in" ? 0.7 : 1 / 0.7);
      return toRange(name, middle - half, middle + half);
    });
  }

  function move(figure, steps) {
    relayout(figure, function (plot, name, i) {
      const [low, high] = plot.layout[name].range, step = steps[i] * (high - low) / 5;
      return toRange(name, low + step, high + step);
    });
  }

  document.querySelectorAll(".tools").forEach((tools) => { tools.hidden = false; });
  document.querySelectorAll("figure.drawing").forEach(function (figure) {
    figure.addEventListener("click", function (event) {
      const button = event.target.closest("button");
      if (button && button.dataset.act) { act(figure, button.dataset.act); }
      if (button && button.classList.contains("key")) {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
        figure.querySelectorAll(".plot").forEach(draw);
      }
    });
    figure.addEventListener("keydown", function (event) {
      if (event.ctrlKey || event.altKey || event.metaKey) { return; }
      const zoomed = Array.from(figure.querySelectorAll(".plot")).filter(isDrawn).some(isZoomed);
      if (ACTS[event.key]) {
        act(figure, ACTS[event.key]);
      } else if (MOVES[event.key] && zoomed) {  // else they scroll the page
        move(figure, MOVES[event.key]);
      } else {
        return;
      }
      event.preventDefault();
    });
  });
})();
