// What tests/book/test_book.py asks of a page, in a browser: FOLDER and PAGES are given; the answer is JSON in <pre id="found">.

const LEAVES = "h1, h2, h3, p, figcaption, svg, svg text, dt, dd, .line, math, li > *, td, th, nav a, del, ins";
const MISSING = "\u0378";  // no font has a glyph for it

function inside(a, b) {
  return a === b || a.contains(b) || b.contains(a);
}

function named(e) {
  return `<${e.tagName.toLowerCase()}> ${e.textContent.trim().slice(0, 40)}`;
}

function layout(d, width) {
  const found = [];
  if (d.documentElement.scrollWidth > width) found.push(`the page is ${d.documentElement.scrollWidth} wide`);
  const boxes = [...d.querySelectorAll(LEAVES)].map(e => [e, e.getBoundingClientRect()])
    .filter(([e, r]) => r.width > 0 && r.height > 0 && !e.closest("details:not([open]) > :not(summary)")).sort((a, b) => a[1].top - b[1].top);
  for (const [e, r] of boxes) {
    const column = e.closest(".left, .right, .break > *, td, figure") || d.body;
    const limit = column.getBoundingClientRect();
    if (r.right > limit.right + 1 || r.left < limit.left - 1) found.push(`${named(e)} leaves its column by ${Math.round(r.right - limit.right)}`);
  }
  for (const e of d.querySelectorAll(".at")) {
    const range = d.createRange();
    range.selectNodeContents(e);
    if (range.getClientRects().length > 1) found.push(`the number ${e.textContent} is broken in two`);
  }
  boxes.forEach(([a, r], i) => {
    for (let j = i + 1; j < boxes.length && boxes[j][1].top < r.bottom - 2; j++) {
      const [b, s] = boxes[j];
      if (Math.min(r.right, s.right) - Math.max(r.left, s.left) > 2 && Math.min(r.bottom, s.bottom) - s.top > 2 && !inside(a, b))
        found.push(`${named(a)} and ${named(b)} are drawn over each other`);
    }
  });
  return found;
}

function glyphs(d) {
  const found = [], seen = new Set(), canvas = document.createElement("canvas"), g = canvas.getContext("2d", {willReadFrequently: true});
  canvas.width = canvas.height = 32;
  function drawn(font, letter) {
    g.clearRect(0, 0, 32, 32);
    g.font = `20px ${font}`;
    g.fillText(letter, 6, 22);
    return g.getImageData(0, 0, 32, 32).data.join();
  }
  const walker = d.createTreeWalker(d.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, font = getComputedStyle(e).fontFamily, text = walker.currentNode.data;
    const letters = [...text].map(c => e.tagName.toLowerCase() === "mi" && [...text.trim()].length === 1 ? italic(c) : c);
    for (const letter of letters) {
      if (/\s/.test(letter) || seen.has(font + letter)) continue;
      seen.add(font + letter);
      if (drawn(font, letter) === drawn(font, MISSING)) found.push(`no glyph for ${letter} in ${font}`);
    }
  }
  return found;
}

function italic(c) {  // what <mi> makes of a letter
  if (c === "h") return "ℎ";
  const n = c.codePointAt(0);
  for (const [first, last, start] of [[65, 90, 0x1d434], [97, 122, 0x1d44e], [0x3b1, 0x3c9, 0x1d6fc]])
    if (n >= first && n <= last) return String.fromCodePoint(start + n - first);
  return c;
}

(async () => {
  const found = {seen: 0};
  for (const page of PAGES) for (const width of [1280, 390]) {
    const frame = document.createElement("iframe");
    frame.style = `width:${width}px; height:3000px; border:0`;
    frame.src = `${FOLDER}/${page}`;
    document.body.append(frame);
    await new Promise(done => { frame.onload = done; });
    const faults = [...layout(frame.contentDocument, width), ...(width > 1000 ? glyphs(frame.contentDocument) : [])];
    if (faults.length) found[`${page} at ${width}`] = faults;
    found.seen++;
    frame.remove();
  }
  const answer = document.createElement("pre");
  answer.id = "found";
  answer.textContent = JSON.stringify(found);
  document.body.append(answer);
})();
