// The page of explore.py: point at a patch, and every picture shows the cosines of its patches with that patch.
const bytes = (text, Type) => new Type(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const SIDE = DATA.side, N = SIDE * SIDE, COUNT = DATA.pictures.length, rgb = bytes(DATA.rgb, Uint8Array);
const parts = DATA.parts && bytes(DATA.parts, Uint8Array); // of the patches, if they are known
const inside = bytes(DATA.foreground, Uint8Array), attention = bytes(DATA.attention, Uint8Array);
const features = Float32Array.from(bytes(DATA.features, Int16Array), a => a / 32767), K = features.length / COUNT / N;
document.title = "Explore patch features";
document.head.insertAdjacentHTML("beforeend", `<style>
:root { color-scheme: light dark; font: 16px system-ui, sans-serif }
body { margin: 1em auto; max-width: 70em; padding: 0 .7em }
h1 { font-size: 1.5em } #grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: .6em }
figure { margin: 0 } figcaption { font-size: .85em; height: 1.3em; white-space: nowrap }
#words { min-height: 4em } #ends { min-height: 2.6em } @media (max-width: 600px) { #words { min-height: 8em } }
.other { color: light-dark(#a33000, #ffa070) } figure.here { outline: 3px solid; outline-offset: 2px }
label { white-space: nowrap; margin-right: .8em; display: inline-block; padding: .3em 0 }
canvas { width: 100%; aspect-ratio: 1; display: block; cursor: crosshair; touch-action: manipulation }
.bar { display: inline-block; width: 10em; height: .8em; vertical-align: middle;
       background: linear-gradient(90deg, ${[0, .25, .5, .75, 1].map(x => `rgb(${colour(x)})`)}) }
</style>`);
document.body.insertAdjacentHTML("beforeend", `<h1>Where does this patch lie in the other pictures?</h1>
<p>Point at a patch, or touch it. A click keeps the patch; a click on it again, or Escape, lets it go. Keys: arrows move
the patch, Tab goes to the next picture, Enter keeps the patch.</p>
<p id="views">${["Heat map", "PCA colours", "Foreground alone", "[CLS] attention", "Nearest pictures",
    "Pictures alone"].map((name, i) =>
  `<label><input type="radio" name="view" value="${i}" ${i ? "" : "checked"}> ${name}</label>`).join(" ")}</p>
<p>${DATA.about} ${parts ? "The names of the parts are true ones; the network never saw them." : ""}</p>
<p id="ends"></p><p id="words" aria-live="polite"></p><div id="grid"></div>`);
const at = id => document.getElementById(id);
let view = 0, picture = 0, kept = false;
const coarse = n => (Math.floor(n / SIDE) >> 1) * SIDE / 2 + (n % SIDE >> 1); // attention has a value for 2×2 patches
let patch = Array.from({ length: N }, (_, n) => n).reduce((m, n) => // the most attended patch of the first object
  inside[n] * (1 + attention[coarse(n)]) > inside[m] * (1 + attention[coarse(m)]) ? n : m);
const figures = DATA.pictures.map((address, i) => {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  canvas.width = canvas.height = 256;
  canvas.tabIndex = 0;
  canvas.setAttribute("aria-label", `picture ${i + 1}`);
  figure.append(canvas, document.createElement("figcaption"));
  at("grid").append(figure);
  const image = new Image();
  image.onload = draw;
  image.src = address;
  const point = event => {
    const box = canvas.getBoundingClientRect(), cell = x => Math.max(0, Math.min(SIDE - 1, Math.floor(x * SIDE)));
    const to = cell((event.clientY - box.top) / box.height) * SIDE + cell((event.clientX - box.left) / box.width);
    const same = picture == i && patch == to;
    [picture, patch] = [i, to];
    return same;
  };
  canvas.onpointermove = event => kept || view == 4 || point(event) || draw();
  canvas.onclick = event => { kept = !(point(event) && kept); draw(); };
  canvas.onfocus = () => { if (canvas.matches(":focus-visible")) { picture = i; kept = false; draw(); } };
  canvas.onkeydown = event => {
    if (event.key == "Enter" || event.key == "Escape") kept = event.key == "Enter";
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      const x = patch % SIDE + step[0], y = Math.floor(patch / SIDE) + step[1];
      event.preventDefault();
      picture = i;
      if (x >= 0 && y >= 0 && x < SIDE && y < SIDE) patch = y * SIDE + x;
    }
    draw();
  };
  return { canvas, image, words: figure.lastChild };
});
at("views").onchange = event => { view = +event.target.value; draw(); };

function colour(x) { // dark blue, green, yellow: darker is less for every reader
  return [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]].reduce((sum, c, i) =>
    sum.map((s, j) => s + c[j] * Math.max(0, 1 - Math.abs(x * 4 - i))), [0, 0, 0]).map(Math.round);
}

const COLOURS = Array.from({ length: 256 }, (_, i) => [...colour(i / 255), 170]);

function cosines() { // of the patch under the pointer with all: (I · N)
  const from = (picture * N + patch) * K, found = new Float32Array(COUNT * N);
  for (let p = 0; p < COUNT * N; p++) {
    let sum = 0;
    for (let k = 0; k < K; k++) sum += features[from + k] * features[p * K + k];
    found[p] = Math.min(1, sum);
  }
  return found;
}

function paint(i, values, low) {
  const { canvas, image } = figures[i], pen = canvas.getContext("2d"), small = new ImageData(SIDE, SIDE);
  for (let n = 0; n < N; n++) {
    const p = i * N + n;
    const share = view == 0 ? (values[p] - low) / (1 - low) : attention[i * N / 4 + coarse(n)] / 255;
    const paints = view == 1 ? [...rgb.subarray(3 * p, 3 * p + 3), 255] : view == 2 ? [0, 0, 0, inside[p] ? 0 : 255]
      : view > 3 ? [0, 0, 0, 0] : COLOURS[Math.round(255 * share)];
    small.data.set(paints, 4 * n);
  }
  const layer = new OffscreenCanvas(SIDE, SIDE);
  layer.getContext("2d").putImageData(small, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.filter = view == 0 || view == 3 ? "grayscale(1)" : "none"; // only the map has colours
  pen.drawImage(image, 0, 0, 256, 256);
  pen.filter = "none";
  pen.drawImage(layer, 0, 0, 256, 256);
}

function ring(i, n) {
  const pen = figures[i].canvas.getContext("2d"), cell = 256 / SIDE, radius = Math.max(8, cell * .8);
  for (const [style, width] of [["black", 5], ["white", 2]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc((n % SIDE + .5) * cell, (Math.floor(n / SIDE) + .5) * cell, radius, 0, 7);
    pen.stroke();
  }
}

function draw() {
  const values = cosines(), low = Math.min(values.reduce((a, b) => Math.min(a, b)), .999), order = DATA.cls[picture];
  const best = figures.map((_, i) => {
    const own = values.subarray(i * N, (i + 1) * N);
    return i == picture ? patch : own.indexOf(own.reduce((a, b) => Math.max(a, b)));
  });
  const part = (i, n) => parts ? DATA.names[parts[i * N + n]] : "", here = part(picture, patch);
  const has = i => parts && parts.subarray(i * N, (i + 1) * N).includes(parts[picture * N + patch]);
  figures.forEach(({ canvas, words }, i) => {
    paint(i, values, low);
    if (view != 3 && view != 4) ring(i, best[i]);
    canvas.parentNode.style.order = view == 4 ? Math.round((1 - order[i]) * 1000) - (i == picture) : 0;
    canvas.parentNode.className = i == picture ? "here" : "";
    canvas.dataset.best = best[i];
    canvas.dataset.cosine = values[i * N + best[i]].toFixed(4);
    const found = part(i, best[i]), number = (view == 4 ? order[i] : values[i * N + best[i]]).toFixed(2);
    words.textContent = `${i + 1}` + (view == 3 ? "" : view == 4 ? i == picture ? ": this picture" : `: ${number}`
      : `: ${i == picture ? "here" : number}` + (found && `, ${found}`));
    words.className = view != 3 && view != 4 && has(i) && found != here ? "other" : "";
  });
  at("ends").innerHTML = [`Cosine with the patch: ${low.toFixed(2)} (the least of all) <span class="bar"></span> 1.00`,
    "Red, green, blue: three principal components of the foreground of all pictures. Equal colours: similar features",
    "The foreground: one side of the first principal component of all patches",
    `Attention of [CLS], the token of the whole picture: 0 <span class="bar"></span> its largest. Patches do not change it`,
    "Click a picture: the others follow, the nearest first, with the cosine of their [CLS] (token of the whole picture)",
    "The pictures as they are"][view];
  const others = figures.map((_, i) => i).filter(i => i != picture);
  const closeness = i => view == 4 ? order[i] : +figures[i].canvas.dataset.cosine;
  const top = others.reduce((m, i) => closeness(i) > closeness(m) ? i : m, others[0]);
  const able = others.filter(has), right = able.filter(i => part(i, best[i]) == here).length;
  at("words").textContent = view == 3 ? "" : view == 4
    ? `Picture ${picture + 1}. ` + (COUNT > 1 ? `Nearest: picture ${top + 1}, cosine ${closeness(top).toFixed(2)}.` : "")
    : `Column ${patch % SIDE + 1}, row ${Math.floor(patch / SIDE) + 1} of picture ${picture + 1}` +
      (here && `, ${here}`) + ". " + (COUNT > 1 ? "A ring is the best match in a picture. The best of all: " +
      `picture ${top + 1}, cosine ${closeness(top).toFixed(2)}. ` : "") +
      (here && able.length ? `Of the ${able.length} other pictures with this part, ${right} ring it (orange: not). ` : "") +
      (kept ? "Kept." : "");
}
