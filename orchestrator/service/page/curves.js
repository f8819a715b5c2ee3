"use strict";
// Line charts as inline SVG. Colors come from the style sheet; text from data goes in as text, never as markup.
const Curves = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const W = 340, H = 200, LEFT = 40, RIGHT = 10, TOP = 26, BOTTOM = 26;

  function el(parent, name, attributes, text) {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  function ticks(low, high, wanted) {
    if (!(high > low)) return [low];
    const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  }

  const short = (value) => String(Number(value.toPrecision(3)));

  // series: [{style, points: [[x, y], ...]}]; range: [low, high] of y, else from the data
  function draw(title, series, range) {
    const points = series.flatMap((one) => one.points);
    const svg = el(null, "svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
    el(svg, "text", { x: 0, y: 14, class: "title" }, title);
    if (!points.length) return svg;
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const x0 = Math.min(...xs), x1 = Math.max(...xs);
    let [y0, y1] = range || [Math.min(...ys), Math.max(...ys)];
    if (!range && y0 === y1) { y0 -= 0.5; y1 += 0.5; }
    const x = (v) => LEFT + (x1 > x0 ? (v - x0) / (x1 - x0) : 0.5) * (W - LEFT - RIGHT);
    const y = (v) => TOP + (1 - (v - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
    for (const value of ticks(y0, y1, 4)) {
      el(svg, "line", { x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value), class: "grid" });
      el(svg, "text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, short(value));
    }
    for (const value of ticks(x0, x1, 5)) {
      el(svg, "text", { x: x(value), y: H - 8, "text-anchor": "middle" }, short(value));
    }
    for (const one of series) {
      if (!one.points.length) continue;
      const path = one.points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
      el(svg, "path", { d: path, class: `curve c-${one.style}` });
      const last = one.points[one.points.length - 1];
      const dot = el(svg, "circle", { cx: x(last[0]), cy: y(last[1]), r: 3.5, class: `d-${one.style}` });
      el(dot, "title", {}, `${one.style}: ${short(last[1])} at ${last[0]}`);
    }
    return svg;
  }

  function key(style) {
    const svg = el(null, "svg", { width: 26, height: 8, "aria-hidden": "true" });
    el(svg, "path", { d: "M0 4H26", class: `curve c-${style}` });
    return svg;
  }

  return { draw, key };
})();
