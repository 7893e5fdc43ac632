// Two temperatures on one vector of logits.  DATA: [{ name, logits, temps: [teacher's, student's], numbers }, ...].
const section = document.currentScript.closest("section"), play = section.querySelector(".play");
const WHO = ["teacher", "student"], K = DATA[0].logits.length;

function exponentials(z, temp) { // the largest is 1, so none overflows
  const top = Math.max(...z);
  return z.map(x => Math.exp((x - top) / temp));
}

function softmax(z, temp) {
  const e = exponentials(z, temp), total = e.reduce((a, b) => a + b);
  return e.map(x => x / total);
}

function crossEntropy(p, z, temp) { // −Σ_k p_k log softmax(z / temp)_k
  const top = Math.max(...z), logTotal = Math.log(exponentials(z, temp).reduce((a, b) => a + b));
  return p.reduce((sum, share, k) => sum + share * (logTotal - (z[k] - top) / temp), 0);
}

function look(logits, temps) { // what the teacher and the student make of the logits
  const probs = temps.map(temp => softmax(logits, temp));
  const entropies = probs.map((p, i) => crossEntropy(p, logits, temps[i]));
  return { probs, entropies, loss: crossEntropy(probs[0], logits, temps[1]) };
}

function show({ probs, entropies, loss }) {
  sliders.forEach((slider, i) => { slider.nextElementSibling.textContent = (+slider.value).toFixed(3); });
  bars.forEach((bar, n) => {
    const share = probs[n % 2][n >> 1];
    bar.style.width = `calc((100% - 3.2rem) * ${share})`;
    bar.nextSibling.textContent = ` ${share.toFixed(3)}`;
  });
  const share = H => `${H.toFixed(2)} nats, ${Math.round(100 * H / Math.log(K))} % of ln ${K}`;
  play.querySelector("[aria-live]").innerHTML =
    `Entropy of the teacher: ${share(entropies[0])}. Of the student: ${share(entropies[1])}.<br>
     Loss H(p<sub>t</sub>, p<sub>s</sub>): <b>${loss.toFixed(2)}</b>. The student can still remove
     ${Math.max(0, loss - entropies[0]).toFixed(2)} of it.`;
}

function start({ logits, temps, numbers }) {
  sliders.forEach((slider, i) => { slider.value = temps[i]; });
  fields.forEach((field, k) => { field.value = logits[k]; });
  show(numbers);
}

play.innerHTML = `<p><label>Logits <select>${DATA.map(({ name, temps }) =>
  `<option>${name}, teacher's τ ${temps[0]}</option>`).join("")}</select></label>
${WHO.map(who => `<label>${who}'s τ <input type="range" min="0.01" max="0.2" step="0.005">
  <output></output></label>`).join("")}</p>
<table><tr><th>logit</th>${WHO.map(who => `<th>${who}</th>`).join("")}</tr>
${DATA[0].logits.map((_, k) => `<tr><th><input type="number" min="-1" max="1" step="0.01"
  aria-label="logit of prototype ${k + 1}"></th>${"<td><i></i><span></span></td>".repeat(2)}</tr>`).join("")}</table>
<p aria-live="polite"></p>`;
const sliders = [...play.querySelectorAll("[type=range]")], fields = [...play.querySelectorAll("[type=number]")];
const bars = [...play.querySelectorAll("i")];
play.oninput = event => {
  if (event.target.matches("select")) start(DATA[event.target.selectedIndex]);
  else show(look(fields.map(field => +field.value), sliders.map(slider => +slider.value)));
};
start(DATA[0]);
Object.assign(section, { look });
