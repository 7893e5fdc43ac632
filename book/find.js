// A search over all pages, keys, and the outline.  INDEX stands above: {page: [[id, section, text], ...]}.
"use strict";
const SHOWN = 30, AROUND = 60;  // results; characters before a found word

const plain = text => text.toLowerCase().normalize("NFKD").replace(/[\u0300-\u036f]/g, "");  // ŵ is found as w

function search(query) {
  // [score, page, id, section, text] of each entry that has all words of the query, the best first.
  const words = plain(query).split(/\s+/).filter(Boolean), found = [];
  if (!words.length) return found;
  for (const [page, entries] of Object.entries(INDEX)) for (const [id, section, text] of entries) {
    const name = plain(`${page}.py ${section}`), all = plain(text);
    if (!words.every(word => all.includes(word) || name.includes(word))) continue;
    let score = 0;
    for (const word of words) {
      if (plain(section) === word) score += 6;
      if (all.split(/[^\p{L}\p{N}_]+/u).includes(word)) score += 3;  // a whole word
    }
    if (!/^[LT]\d/.test(id)) score += 4;  // text explains more than a line of code
    found.push([score, page, id, section, text]);
  }
  return found.sort((a, b) => b[0] - a[0]);
}

function result(words, page, id, section, text) {
  // A link with the place, and an excerpt whose found words are marked.
  const li = document.createElement("li"), a = document.createElement("a"), place = document.createElement("b");
  a.href = `${page}.html#${id}`;
  place.textContent = [page === "index" ? "Contents" : `${page}.py`, section].filter(Boolean).join(" · ");
  const low = text.toLowerCase(), first = Math.min(...words.map(w => low.indexOf(w)).filter(i => i >= 0), low.length);
  const from = first < text.length && first > AROUND ? text.indexOf(" ", first - AROUND) + 1 : 0;
  const to = from + 3 * AROUND, shown = (from ? "… " : "") + text.slice(from, to) + (to < text.length ? " …" : "");
  a.append(place, document.createElement("br"));
  const pattern = new RegExp(`(${words.map(w => w.replace(/[^\p{L}\p{N}_]/gu, "\\$&")).join("|")})`, "i");
  shown.split(pattern).forEach((piece, i) => {
    const node = document.createElement(i % 2 ? "mark" : "span");
    node.textContent = piece;
    a.append(node);
  });
  li.append(a);
  return li;
}

const nav = document.querySelector("nav"), field = document.createElement("input"), list = document.createElement("ol");
const count = document.createElement("p"), fold = document.querySelector(".outline");
const wide = matchMedia("(min-width: 1000px)"), label = "Search all pages";
Object.assign(field, {type: "search", id: "find", placeholder: `${label} ( / )`, ariaLabel: label});
count.setAttribute("role", "status");
count.id = "count";
list.id = "found";
nav.firstElementChild.after(field);
nav.after(count, list);

function show() {
  const found = search(field.value), words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  list.replaceChildren(...found.slice(0, SHOWN).map(([, ...entry]) => result(words, ...entry)));
  count.textContent = !words.length ? "" : found.length > SHOWN ? `${found.length} places; the best ${SHOWN}:` :
    `${found.length} ${found.length === 1 ? "place" : "places"}`;
}

field.addEventListener("input", show);
list.addEventListener("click", () => { field.value = ""; show(); });  // the place may be on this page

document.addEventListener("keydown", event => {
  const on = document.activeElement, links = [field, ...list.querySelectorAll("a")], at = links.indexOf(on);
  if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (at >= 0 && ["ArrowDown", "ArrowUp"].includes(event.key)) {
    event.preventDefault();
    links[at + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
  } else if (on === field && event.key === "Enter") links[1]?.click();
  else if (at >= 0 && event.key === "Escape") { field.value = ""; show(); field.blur(); }
  else if (on !== document.body && !on.matches("a, summary")) return;  // someone types, or moves something
  else if (event.key === "/") { event.preventDefault(); field.focus(); }
  else if (event.key === "ArrowLeft") document.querySelector("a[rel=prev]")?.click();
  else if (event.key === "ArrowRight") document.querySelector("a[rel=next]")?.click();
});

const unfold = () => { fold.open = wide.matches; };  // folded on a phone
wide.addEventListener("change", unfold);
fold.addEventListener("click", event => { if (event.target.matches("a")) unfold(); });
unfold();
