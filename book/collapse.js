// Recorded curves in three panels, a colour for each arm, and a box that hides its curves.
// DATA: {arm: [{name of a panel: [[step, value], ...]} of each seed]}.
const play = document.currentScript.closest("section").querySelector(".play");
const COLOURS = { whole: "var(--blue)", plain: "#d05050", centre: "#3c9f60", copy: "var(--orange)", warm: "#9a63c0" };
const PANELS = { entropy_image: "Entropy of one target", entropy_mean: "Entropy of the mean target", knn_20: "k-NN accuracy" };
const WIDTH = 300, HEIGHT = 190, LEFT = 30, RIGHT = 6, TOP = 8, BOTTOM = 20;
const last = Math.max(...DATA.whole[0].entropy_image.map(([step]) => step));
const x = step => LEFT + (WIDTH - LEFT - RIGHT) * step / last;
const y = value => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value;

function add(parent, tag, attributes, text = "") {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => e.setAttribute(name, value));
  e.textContent = text;
  parent.append(e);
  return e;
}

function panel(name) {
  const figure = document.createElement("figure");
  figure.innerHTML = `<figcaption>${PANELS[name]}</figcaption>`;
  const chart = add(figure, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": PANELS[name] });
  for (const value of [0, 0.5, 1]) {
    add(chart, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), stroke: "var(--rule)" });
    add(chart, "text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, value);
  }
  for (const step of [0, last / 2, last])
    add(chart, "text", { x: x(step), y: HEIGHT - 5, "text-anchor": step == last ? "end" : "middle" }, step || "step 0");
  for (const [arm, runs] of Object.entries(DATA))
    for (const run of runs) {
      const points = run[name].map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      add(chart, "polyline", { points, fill: "none", style: `stroke: ${COLOURS[arm]}`, "data-of": arm });
    }
  return figure;
}

const paragraphs = [...play.children]; // one for each arm, in order
const charts = document.createElement("div");
charts.className = "charts whole";
charts.innerHTML = `<style>
  .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 0 1.5rem }
  .charts figure { margin: 0.3rem 0 } .charts text { font-size: 11px } .charts polyline { stroke-width: 1.3 }
  .play p label { margin-right: 0.3rem } .play p input { min-height: 0 }
</style>`;
charts.append(...Object.keys(PANELS).map(panel));
play.prepend(charts);
for (const [n, arm] of Object.keys(DATA).entries()) {
  const words = paragraphs[n], label = document.createElement("label"), box = document.createElement("input");
  Object.assign(box, { type: "checkbox", checked: n < 2 });
  box.style.accentColor = COLOURS[arm];
  box.onchange = () => charts.querySelectorAll(`[data-of=${arm}]`)
    .forEach(line => { line.style.display = box.checked ? "" : "none"; });
  box.onchange();
  label.style.borderBottom = `3px solid ${COLOURS[arm]}`;
  label.append(box, words.querySelector("b"));
  words.prepend(label);
}
