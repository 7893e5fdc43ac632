// A slider over the steps of training; it shows one of the pictures that are there.
const play = document.currentScript.closest("section").querySelector(".play");
const pictures = [...play.children], slider = document.createElement("input");
Object.assign(slider, { type: "range", min: 0, max: pictures.length - 1, value: pictures.length - 1 });
slider.setAttribute("aria-label", "step of the training");
slider.oninput = () => {
  pictures.forEach((picture, n) => { picture.hidden = n != slider.value; });
  slider.setAttribute("aria-valuetext", pictures[slider.value].textContent);
};
const line = document.createElement("label");
line.append("First step ", slider, " last step");
play.prepend(line);
slider.oninput();
