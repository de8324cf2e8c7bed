// Draws every chart from the JSON beside it, in the page's own colours, and again when the reader
// turns from light to dark, or prints.
(function () {
  "use strict";
  const styles = getComputedStyle(document.documentElement);
  const colour = (name) => styles.getPropertyValue("--" + name).trim();

  function traces(chart) {
    const seen = new Set();
    return chart.lines.map(function (line) {
      const first = !seen.has(line.name);
      seen.add(line.name);
      return {
        type: "scatter", mode: "lines", name: line.name, legendgroup: line.name, showlegend: first,
        x: line.x, y: line.y, opacity: 0.85, connectgaps: false,
        line: { color: colour("line-" + line.colour), width: 1.8, dash: line.dashed ? "4px,3px" : "solid" },
      };
    });
  }

  function axis(title, more) {
    return Object.assign({
      title: { text: title, standoff: 8 }, automargin: true, fixedrange: true,
      gridcolor: colour("rule"), linecolor: colour("faint"), zeroline: false, ticks: "outside",
      tickcolor: colour("rule"),
    }, more);
  }

  function layout(chart) {
    const range = chart.range && (chart.log ? chart.range.map(Math.log10) : chart.range);
    const y = chart.log
      ? { type: "log", dtick: 1, exponentformat: "power" }
      : { rangemode: "tozero" };
    if (range) { y.range = range; }
    return {
      margin: { l: 56, r: 8, t: 8, b: 44 },
      paper_bgcolor: colour("paper"), plot_bgcolor: colour("paper"),
      font: { color: colour("ink"), size: 13, family: getComputedStyle(document.body).fontFamily },
      xaxis: axis(chart.x, { rangemode: "tozero" }),
      yaxis: axis(chart.y, y),
      legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" },
      hoverlabel: { namelength: -1 },
    };
  }

  function draw() {
    document.querySelectorAll(".plot").forEach(function (plot) {
      const chart = JSON.parse(plot.nextElementSibling.textContent);
      plot.querySelectorAll("noscript").forEach((node) => node.remove());
      Plotly.react(plot, traces(chart), layout(chart), { responsive: true, displayModeBar: false });
    });
    document.documentElement.dataset.drawn = String(document.querySelectorAll(".plot .main-svg").length > 0);
  }

  draw();
  for (const medium of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(medium).addEventListener("change", draw);
  }
})();
