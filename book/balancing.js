// Sinkhorn-Knopp step by step, beside softmax centering.  DATA: { cells: exp(Z), centred: centering's first targets }.
const section = document.currentScript.closest("section"), play = section.querySelector(".play");
let cells = DATA.cells, steps = 0;

const sum = numbers => numbers.reduce((a, b) => a + b);
const columns = Q => Q[0].map((_, k) => sum(Q.map(row => row[k]))); // their sums
const divideRows = Q => Q.map(row => row.map(x => x / sum(row)));

function divideColumns(Q) {
  const total = columns(Q);
  return Q.map(row => row.map((x, k) => x / total[k]));
}

function sinkhorn(Q, steps) { // columns in steps 1, 3, 5; rows in steps 2, 4, 6
  for (let n = 0; n < steps; n++) Q = n % 2 ? divideRows(Q) : divideColumns(Q);
  return Q;
}

function centred(Q, batches, momentum = 0.9) { // targets after so many batches like this one; c starts at 0
  const weight = 1 - momentum ** batches; // of the batches' mean in c
  const c = Q[0].map((_, k) => weight * sum(Q.map(row => Math.log(row[k]))) / Q.length);
  return divideRows(Q.map(row => row.map((x, k) => x / Math.exp(c[k]))));
}

function table(Q) { // with the sums of rows and columns
  const head = numbers => numbers.map(x => `<th>${x.toFixed(3)}</th>`).join("");
  const most = Math.max(...Q.flat()), cell = x => `<td style="--share: ${60 * x / most}%">${x.toFixed(3)}</td>`;
  const rows = Q.map(row => `<tr>${row.map(cell).join("")}${head([sum(row)])}</tr>`);
  return `${rows.join("")}<tr>${head(columns(Q))}</tr>`;
}

function show(targets) {
  const [, left, right] = play.querySelectorAll("table");
  left.innerHTML = table(sinkhorn(cells, steps));
  right.innerHTML = table(targets);
  next.textContent = steps % 2 ? "Next step: rows" : "Next step: columns";
  next.disabled = steps == 6;
  play.querySelector("[aria-live]").textContent = !steps ? "Step 0: exp(Z/τ)"
    : `Step ${steps}: ${steps % 2 ? "columns" : "rows"} divided by their sums${steps == 6 ? ". Done" : ""}`;
  batches.nextElementSibling.textContent = batches.value;
}

const inputs = cells.map((row, b) => `<tr>${row.map((x, k) => `<td><input type="number" min="0.1" step="any"
  value="${x}" aria-label="sample ${b + 1}, prototype ${k + 1}"></td>`).join("")}</tr>`).join("");
play.innerHTML = `<div><h3>exp(Z/τ)</h3><p>Write other numbers above 0.<br>Try 40 in the first cell, with 60 batches:<br>six steps make columns nearly equal.</p>
<table>${inputs}</table></div>
<div><h3>Sinkhorn-Knopp</h3><p aria-live="polite"></p><table></table>
<p><button></button> <button>Start again</button></p></div>
<div><h3>Softmax centering</h3><p><label>Earlier batches <input type="range" max="60" value="0">
<output></output></label></p><table></table></div>`;
const [next, again] = play.querySelectorAll("button"), batches = play.querySelector("[type=range]");
const fields = [...play.querySelectorAll("[type=number]")];
const update = () => show(centred(cells, +batches.value));
next.onclick = () => { steps++; update(); };
again.onclick = () => { steps = 0; update(); };
play.oninput = () => {
  cells = cells.map((row, b) => row.map((x, k) => fields[4 * b + k].value > 0 ? +fields[4 * b + k].value : x));
  update();
};
show(DATA.centred);
Object.assign(section, { sinkhorn, centred });
