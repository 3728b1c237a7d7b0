// Plotly draws; this hands it the figures, and hides runs in all of them at once.
const drawn = JSON.parse(document.getElementById("drawn").textContent);
const byTouch = matchMedia("(pointer: coarse)").matches; // where a finger that drags wants to scroll the page
const font = getComputedStyle(document.body).fontFamily;
const common = {
  margin: { l: 46, r: 10, t: 10, b: 36 },
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  font: { family: font, size: 12 }, hovermode: "x unified", dragmode: byTouch ? false : "zoom",
  hoverlabel: { bgcolor: "#24292f", bordercolor: "#24292f", font: { color: "#ffffff", family: font, size: 12 } },
  legend: { orientation: "h", x: 1, xanchor: "right", y: 1.0, yanchor: "bottom" },
};
const config = { responsive: true, displayModeBar: false };
const plots = drawn.map((figure, i) => {
  const plot = document.getElementById(`figure-${i}`);
  Plotly.newPlot(plot, figure.data, { ...common, ...figure.layout }, config);
  return plot;
});
for (const box of document.querySelectorAll("[data-run]")) {
  box.onchange = () => plots.forEach((plot, i) => {
    const own = drawn[i].data.flatMap((trace, n) => (trace.meta === Number(box.dataset.run) ? [n] : []));
    if (own.length) Plotly.restyle(plot, { visible: box.checked }, own);
  });
}
for (const box of document.querySelectorAll("[data-log]")) {
  box.onchange = () =>
    Plotly.relayout(plots[box.dataset.log], { "yaxis.type": box.checked ? "log" : "linear", "yaxis.autorange": true });
}
