// KoLeo's points on a circle.  DATA: { degrees: one angle for each point, numbers: what koleo(degrees) returns }.
const section = document.currentScript.closest("section"), play = section.querySelector(".play");
const degrees = [...DATA.degrees], place = (e, where) => Object.entries(where).forEach(pair => e.setAttribute(...pair));

function koleo(degrees, eps = 1e-8) { // loss, and of each point: distance, number of its nearest, gradient
  const x = degrees.map(a => [Math.cos(a * Math.PI / 180), Math.sin(a * Math.PI / 180)]), B = x.length;
  const squared = (a, b) => (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2;
  const nearest = x.map((a, i) => x.reduce((best, b, j) =>
    j != i && (best < 0 || squared(a, b) < squared(a, x[best])) ? j : best, -1));
  const d2 = x.map((a, i) => squared(a, x[nearest[i]])), gradient = x.map(() => [0, 0]);
  nearest.forEach((j, i) => [0, 1].forEach(k => { // both ends of a distance get a gradient
    const push = (x[j][k] - x[i][k]) / (d2[i] + eps) / B;
    gradient[i][k] += push;
    gradient[j][k] -= push;
  }));
  gradient.forEach((g, i) => { // rows are normalised, so only the part along the circle counts
    const along = x[i][0] * g[1] - x[i][1] * g[0];
    gradient[i] = [-along * x[i][1], along * x[i][0]];
  });
  const loss = -d2.reduce((sum, gap) => sum + Math.log(gap + eps) / 2, 0) / B;
  return { loss, d: d2.map(Math.sqrt), nearest, gradient };
}

function show({ loss, d, nearest, gradient }) {
  const x = degrees.map(a => [Math.cos(a * Math.PI / 180), -Math.sin(a * Math.PI / 180)]); // y goes down on a screen
  points.forEach((point, i) => {
    const [px, py] = x[i], [qx, qy] = x[nearest[i]], size = Math.hypot(...gradient[i]);
    const cut = Math.min(0.3, 0.6 / size); // an arrow's length is 0.3 times its gradient's, and at most 0.6
    place(point, { cx: px, cy: py, "aria-valuenow": Math.round(degrees[i]) });
    place(lines[i], { x1: px, y1: py, x2: qx, y2: qy });
    place(arrows[i], { x1: px, y1: py, x2: px - cut * gradient[i][0], y2: py + cut * gradient[i][1] });
    place(labels[i], { x: 1.17 * px, y: 1.17 * py });
    rows[i].innerHTML = [i + 1, `${Math.round(degrees[i])}°`, nearest[i] + 1, d[i].toFixed(3), size.toFixed(3)]
      .map(text => `<td>${text}</td>`).join("");
  });
  play.querySelector("[aria-live]").innerHTML = `Loss: <b>${loss.toFixed(3)}</b>`;
}

const each = markup => degrees.map((_, i) => markup(i + 1)).join("");
const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
picture.setAttribute("viewBox", "-1.3 -1.3 2.6 2.6");
picture.innerHTML = `<marker id="tip" viewBox="0 0 4 4" refX="2" refY="2" markerWidth="4" markerHeight="4"
  orient="auto"><path d="M0 0 4 2 0 4z"/></marker><circle r="1"/>${each(() => '<line class="near"/>')}
  ${each(() => '<line class="push" marker-end="url(#tip)"/>')}${each(i => `<text dy=".05">${i}</text>`)}
  ${each(i => `<circle r=".045" class="point" tabindex="0" role="slider" aria-label="point ${i}, degrees"
  aria-valuemin="0" aria-valuemax="360"/>`)}`;
play.innerHTML = `<div><p><button>Step down the gradient</button></p><p aria-live="polite"></p>
<table><tr><th>point</th><th>angle</th><th>nearest</th><th>d</th><th>length of gradient</th></tr>
${each(() => "<tr></tr>")}</table></div>`;
play.prepend(picture);
play.insertAdjacentHTML("beforeend", `<p>Drag a point, or choose it with Tab and move it with the arrow keys.  A line
  leads to the nearest point.  An orange arrow is minus the gradient.  A step moves a point by a third of its arrow.</p>`);
const [points, lines, arrows, labels, rows] =
  [".point", ".near", ".push", "text", "tr + tr"].map(name => [...play.querySelectorAll(name)]);

function move(i, to) {
  degrees[i] = (to + 360) % 360;
  show(koleo(degrees));
}

points.forEach((point, i) => {
  point.onpointerdown = event => point.setPointerCapture(event.pointerId);
  point.ontouchstart = event => event.preventDefault(); // a finger on a point does not scroll the page
  point.onpointermove = event => {
    if (!point.hasPointerCapture(event.pointerId)) return;
    const box = picture.getBoundingClientRect(), x = event.clientX - box.left - box.width / 2;
    move(i, Math.atan2(box.top + box.height / 2 - event.clientY, x) * 180 / Math.PI);
  };
  point.onkeydown = event => {
    const step = { ArrowUp: 2, ArrowRight: 2, ArrowDown: -2, ArrowLeft: -2 }[event.key];
    if (!step) return;
    event.preventDefault(); // the page stays where it is
    move(i, degrees[i] + step);
  };
});
play.querySelector("button").onclick = () => { // a tenth of the gradient; along the circle, at most 0.2
  const { gradient } = koleo(degrees);
  gradient.forEach(([x, y], i) => {
    const a = degrees[i] * Math.PI / 180, along = Math.cos(a) * y - Math.sin(a) * x;
    degrees[i] = (degrees[i] + 360 - Math.max(-0.2, Math.min(0.2, 0.1 * along)) * 180 / Math.PI) % 360;
  });
  show(koleo(degrees));
};
show(DATA.numbers);
Object.assign(section, { koleo });
