// The rectangles that one call of sample_masks tried for a view, one at a time.
// DATA: {seed: {counts: [patches of each view], steps: {view: [{patches, accepted, words}, ...]}}}.
const play = document.currentScript.closest("section").querySelector(".play");
let batch, view, shown; // of the steps of this view, so many are shown

function pick(to) { // another view of the batch
  view = to;
  views.forEach((button, n) => button.setAttribute("aria-pressed", n == view));
  show(1);
}

function draw() { // another batch
  batch = DATA[seeds.value];
  views.forEach((button, n) => {
    button.innerHTML = `<i style="height: ${batch.counts[n] / 4}px"></i>${batch.counts[n]}`;
    button.disabled = !batch.counts[n];
  });
  pick(batch.counts.indexOf(38));
}

function show(n) { // the first n steps
  const steps = batch.steps[view];
  shown = Math.min(n, steps.length);
  cells.forEach(cell => { cell.className = ""; });
  for (const { patches, accepted } of steps.slice(0, shown))
    if (accepted) patches.forEach(patch => { cells[patch].className = "masked"; });
  const last = steps[shown - 1], tried = steps.slice(0, Math.min(shown, steps.length - 1));
  last.patches.forEach(patch => cells[patch].classList.add(last.accepted ? "yes" : "no"));
  const accepted = tried.filter(step => step.accepted).length, masked = grid.querySelectorAll(".masked").length;
  next.disabled = all.disabled = shown == steps.length;
  play.querySelector("[aria-live]").innerHTML = `${last.words}<br>Rectangles so far: ${accepted} accepted,
    ${tried.length - accepted} rejected.  Masked: ${masked} of ${batch.counts[view]} patches.`;
}

play.innerHTML = `<style>
  .grid { display: grid; grid-template-columns: repeat(16, 1fr); width: 19rem; gap: 2px }
  .grid i { aspect-ratio: 1; background: var(--rule) } .grid .masked { background: var(--blue) }
  .grid .yes { outline: 2px solid var(--ink) } .grid .no { outline: 2px solid #d05050; background: #d0505055 }
  .grid .masked.no { background: var(--blue) }
  .views { display: flex; align-items: flex-end; gap: 0.2rem } .views button { flex: 1; padding: 0.2rem 0; min-width: 0 }
  .views i { display: block; width: 60%; margin: auto; background: var(--blue) }
  .views [aria-pressed=true] { outline: 2px solid var(--ink) } .beside { flex: 1 1 20rem }
</style><div class="grid" role="img" aria-label="16×16 patches of a view"></div><div class="beside">
<p><label>Seed <select>${Object.keys(DATA).map(seed => `<option>${seed}</option>`).join("")}</select></label></p>
<p>Masked patches of each view of the batch; choose one:</p>
<div class="views">${[1, 2, 3, 4, 5, 6, 7, 8].map(n => `<button aria-label="view ${n}"></button>`).join("")}</div>
<p><button class="next">Next rectangle</button> <button class="all">All</button> <button class="first">Start again</button></p>
<p aria-live="polite"></p><p>The outline is the last rectangle.  It is red if it was rejected.</p></div>`;
const [grid, seeds, next, all, first] = [".grid", "select", ".next", ".all", ".first"].map(x => play.querySelector(x));
const views = [...play.querySelectorAll(".views button")];
grid.innerHTML = "<i></i>".repeat(256);
const cells = [...grid.children];
views.forEach((button, n) => { button.onclick = () => pick(n); });
seeds.onchange = draw;
next.onclick = () => show(shown + 1);
all.onclick = () => show(Infinity);
first.onclick = () => show(1);
seeds.value = 2;
draw();
