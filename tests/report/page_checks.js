// What a reader could not read or reach, for the test of the page in a browser.
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colour, [r, g, b]) => {  // an opaque colour beneath a CSS colour
    canvas.globalCompositeOperation = "copy";
    canvas.fillStyle = `rgb(${r} ${g} ${b})`;
    canvas.fillRect(0, 0, 1, 1);
    canvas.globalCompositeOperation = "source-over";
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((one) => (one / 255 <= 0.04045 ? one / 3294.6 : ((one / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    const chain = [];
    for (let one = element; one; one = one.parentElement) chain.unshift(getComputedStyle(one).backgroundColor);
    return chain.reduce((beneath, colour) => over(colour, beneath), [255, 255, 255]);
  };
  const faint = [], seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || seen.has(element) || element.closest("script, style, title, defs")) continue;
    seen.add(element);
    const style = getComputedStyle(element);
    const beneath = background(element);
    const text = over(element.closest("svg") ? style.fill : style.color, beneath);
    const [low, high] = [luminance(text), luminance(beneath)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) faint.push(`${element.tagName} ${walker.currentNode.data.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  const cut = [...document.querySelectorAll(".number, .interval, h1, h2, h3, figcaption")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.right > innerWidth + 0.5 || one.scrollWidth > one.clientWidth + 1;
  });
  return {
    faint,
    texts: seen.size,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    cut: cut.map((one) => one.textContent),
    repeated: ids.filter((one, at) => ids.indexOf(one) !== at),
    dangling: [...document.querySelectorAll("nav a")].filter((one) => !document.querySelector(one.hash)).map((one) => one.hash),
    sections: [...document.querySelectorAll("section")].filter((one) => one.offsetHeight > 40).map((one) => one.id),
  };
}
