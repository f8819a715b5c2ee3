"use strict";
// Every line chart of every page, drawn by uPlot. A chart is described by plain data: see report/charts.py.
const Charts = (() => {
  // uPlot reads the size of a font as a whole number
  const HEIGHT = 214, GAP = 14, SIZE = 12;
  const LOOKS = {
    base: ["base", [5, 4], "ring"], edited: ["edited", [], "dot"], memory: ["memory", [9, 4], "square"],
    edited_memory: ["edited_memory", [12, 3, 2, 3], "diamond"], routed: ["routed", [2, 3], "triangle"],
    ike: ["ike", [9, 4], "diamond"], ike_oracle: ["ike_oracle", [2, 3], "diamond"], count: ["count", [], "dot"],
  };
  const DASHES = { dashed: [7, 4], dotted: [2, 4] };
  const MARKS = ["dot", "square", "diamond", "triangle", "ring"];

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // "edited", "shade2", "c3", "c3 dashed diamond": a color, and perhaps dashes and a mark; a line without dashes is whole
  function look(style) {
    const [name, ...more] = style.split(" ");
    if (LOOKS[name]) { const [color, dash, mark] = LOOKS[name]; return { color: variable(color), dash, mark }; }
    const place = Number(name.replace(/\D/g, "")) || 0;
    return {
      color: variable(name.startsWith("shade") ? `s${place}` : name),
      dash: DASHES[more.find((one) => DASHES[one])] || [],
      mark: more.find((one) => MARKS.includes(one)) || MARKS[place % MARKS.length],
    };
  }

  // a line's color as one for letters: mixed with ink until it stands out from the paper as WCAG wants of small text (4.5 to 1)
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  function legible(color) {
    const [from, to, paper] = [color, variable("chart-ink"), variable("chart-paper")].map(channels);
    for (let share = 0; ; share += 0.1) {
      const mixed = from.map((v, i) => Math.round(v + share * (to[i] - v))), both = [light(mixed), light(paper)].sort((a, b) => b - a);
      if (share >= 1 || (both[0] + 0.05) / (both[1] + 0.05) >= 4.5) return `rgb(${mixed.join(" ")})`;
    }
  }

  // times of day for an axis: seconds where marks are that near, the date where it is another day than that of the mark before
  const two = (n) => String(n).padStart(2, "0");
  function moments(ticks, step) {
    let day = "";
    return ticks.map((tick) => {
      const at = new Date(tick * 1000), today = at.toLocaleDateString([], { month: "short", day: "numeric" });
      const clock = `${two(at.getHours())}:${two(at.getMinutes())}${step < 60 ? `:${two(at.getSeconds())}` : ""}`;
      const first = day !== today;
      day = today;
      return step >= 86400 ? today : first ? `${clock}\n${today}` : clock;
    });
  }

  function text(form, value) {
    if (value === null || value === undefined) return "–";
    const scaled = value * (form.scale ?? 1);
    if (form.digits === null || form.digits === undefined) return `${Number(scaled.toPrecision(3))}${form.suffix ?? ""}`;
    const plain = Math.abs(scaled).toLocaleString("en-US", { minimumFractionDigits: form.digits, maximumFractionDigits: form.digits });
    const sign = scaled < 0 ? "\u2212" : form.sign && scaled > 0 ? "+" : "";
    return `${sign}${plain}${form.suffix ?? ""}`;
  }

  // marks of an axis in words: with as many digits as tell them apart
  function apart(form, ticks) {
    for (let digits = form.digits ?? null; ; digits++) {
      const words = ticks.map((t) => text({ ...form, digits }, t));
      if (digits === null || digits > 6 || new Set(words).size === words.length) return words;
    }
  }

  // positions near the wanted ones, at least `gap` apart, within [low, high] if they fit
  function spread(wanted, gap, low, high) {
    const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
    const placed = [];
    for (const i of order) placed.push(Math.max(wanted[i], placed.length ? placed[placed.length - 1] + gap : low));
    let ceiling = high;
    for (let i = placed.length - 1; i >= 0; i--) { placed[i] = Math.min(placed[i], ceiling); ceiling = placed[i] - gap; }
    const result = [];
    order.forEach((i, n) => { result[i] = placed[n]; });
    return result;
  }

  function mark(context, kind, x, y, r, color, paper) {
    context.beginPath();
    if (kind === "square") context.rect(x - r, y - r, 2 * r, 2 * r);
    else if (kind === "diamond") { context.moveTo(x, y - 1.4 * r); context.lineTo(x + 1.4 * r, y); context.lineTo(x, y + 1.4 * r); context.lineTo(x - 1.4 * r, y); context.closePath(); }
    else if (kind === "triangle") { context.moveTo(x, y - 1.4 * r); context.lineTo(x + 1.3 * r, y + r); context.lineTo(x - 1.3 * r, y + r); context.closePath(); }
    else context.arc(x, y, r, 0, 2 * Math.PI);
    context.fillStyle = kind === "ring" ? paper : color;
    context.strokeStyle = kind === "ring" ? color : paper;
    context.fill();
    context.stroke();
  }

  // all x of all lines; what a line was not asked at is undefined (drawn across), what it did not measure null (a gap)
  function aligned(series) {
    const xs = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))].sort((a, b) => a - b);
    return [xs, ...series.map((one) => { const at = new Map(one.points.map((p) => [p[0], p[1]])); return xs.map((x) => at.get(x)); })];
  }

  // what stands at the ends of the lines, and its width; a name that has no room is cut short, a value never
  function endings(series, form, font, most) {
    const measure = document.createElement("canvas").getContext("2d");
    measure.font = font;
    return series.map((one) => {
      const value = text(form, [...one.points].reverse().find((p) => p[1] !== null)[1]);
      let name = one.label, whole = `${name} ${value}`;
      while (name && measure.measureText(whole).width > most) { name = name.slice(0, -1); whole = `${name}… ${value}`; }
      return { text: whole, width: measure.measureText(whole).width };
    });
  }

  function draw(node, spec) {
    node.chart?.destroy();
    node.replaceChildren();
    const series = spec.series.filter((one) => one.points.some((p) => p[1] !== null));
    if (!series.length) return;
    const looks = series.map((one) => look(one.style));
    const data = aligned(series), ratio = devicePixelRatio || 1;
    const ink = variable("chart-text"), rule = variable("chart-rule"), paper = variable("chart-paper");
    const font = `${SIZE * ratio}px ${getComputedStyle(node).fontFamily}`;
    const labeled = spec.labels !== false;
    const tip = document.createElement("div");
    tip.className = "chart-tip";
    tip.hidden = true;
    const ys = series.flatMap((one) => one.points.map((p) => p[1]).filter((y) => y !== null)
      .concat((one.spread || []).flat().filter((y) => y !== null)));
    if (spec.band) ys.push(spec.band.low, spec.band.high);
    if (spec.bars) ys.push(0); // a bar is as long as its value
    let [low, high] = spec.range || [Math.min(...ys), Math.max(...ys)];
    if (!spec.range && !spec.log) {
      const room = high - low > 1e-9 * Math.max(1, Math.abs(high)) ? 0.08 * (high - low) : 0.05 * Math.abs(high) || 1;
      [low, high] = [spec.bars && low === 0 ? 0 : low - room, high + room];
    }
    const xMost = Math.max(...data[0], ...(spec.events || []).map((e) => e.x)), xLeast = Math.min(...data[0]);
    // marks that stand aside are within the plot, too
    const few = (one) => one.points.length <= 60 && !spec.bars;
    const aside = (place) => (place ? Math.ceil(place / 2) * 8 * (place % 2 ? 1 : -1) : 0);
    const width = Math.max(node.clientWidth, 220);
    const tails = labeled ? endings(series, spec.form, `${SIZE}px ${getComputedStyle(node).fontFamily}`, 0.46 * width) : [];
    const room = labeled ? Math.max(...tails.map((one) => one.width)) + 18 : 22;
    const yRoom = 50 + (spec.yLabel ? 16 : 0), plot = width - room - yRoom;
    const edge = Math.min(0.3 * plot, Math.abs(aside(Math.max(0, series.filter(few).length - 1))) + 6);
    const padded = (from, to) => { const more = (edge * (to - from)) / (plot - 2 * edge); return [from - more, to + more]; };
    const xRange = spec.log ? null : spec.bars ? [xLeast - 0.6, xMost + 0.6]
      : spec.time ? padded(Math.min(xLeast, xMost - 60), xMost)
      : spec.tight ? padded(...(xMost > xLeast ? [xLeast, xMost] : [xLeast - 60, xMost + 60])) : padded(Math.min(0, xLeast), Math.max(xMost, 1));

    // a label above the plot, in the middle of what it names as far as it has room there, and right of others; where it ends
    function above(u, labels, middle, free) {
      const c = u.ctx, left = u.bbox.left, right = left + u.bbox.width;
      c.fillStyle = ink; c.font = font; c.textAlign = "center"; c.textBaseline = "alphabetic";
      for (const label of labels) {
        const half = c.measureText(label).width / 2, at = Math.max(left + half, Math.min(middle, right - half));
        if (at - half < free) continue;
        c.fillText(label, at, u.bbox.top - 10 * ratio);
        return at + half + 4 * ratio;
      }
      return free;
    }

    function under(u) {
      const c = u.ctx;
      c.save();
      if (spec.band) {
        const top = u.valToPos(spec.band.high, "y", true), bottom = u.valToPos(spec.band.low, "y", true);
        c.fillStyle = variable("chart-shade");
        c.fillRect(u.bbox.left, top, u.bbox.width, bottom - top);
        c.fillStyle = ink; c.font = font; c.textAlign = "left"; c.textBaseline = "alphabetic";
        c.fillText(spec.band.label, u.bbox.left + 6 * ratio, bottom - 6 * ratio);
      }
      let taken = -Infinity;
      for (const part of spec.spans || []) {
        const left = Math.max(u.bbox.left, u.valToPos(part.low, "x", true)), right = Math.min(u.bbox.left + u.bbox.width, u.valToPos(part.high, "x", true));
        c.fillStyle = variable("chart-shade");
        c.fillRect(left, u.bbox.top, right - left, u.bbox.height);
        taken = above(u, [part.label], (left + right) / 2, taken);
      }
      series.forEach((one, n) => {
        if (!one.spread) return;
        c.beginPath();
        one.points.forEach((p, i) => c[i ? "lineTo" : "moveTo"](u.valToPos(p[0], "x", true), u.valToPos(one.spread[i][1], "y", true)));
        [...one.points].reverse().forEach((p, i) => c.lineTo(u.valToPos(p[0], "x", true), u.valToPos(one.spread[one.points.length - 1 - i][0], "y", true)));
        c.globalAlpha = 0.15; c.fillStyle = looks[n].color; c.fill(); c.globalAlpha = 1;
      });
      let free = -Infinity;
      for (const event of [...(spec.events || [])].sort((a, b) => a.x - b.x)) {
        const x = u.valToPos(event.x, "x", true);
        c.strokeStyle = ink; c.lineWidth = ratio; c.setLineDash([3 * ratio, 3 * ratio]);
        c.beginPath(); c.moveTo(x, u.bbox.top - 4 * ratio); c.lineTo(x, u.bbox.top + u.bbox.height); c.stroke();
        c.setLineDash([]);
        free = above(u, [event.label, event.short], x, free);
      }
      c.restore();
    }

    function over(u) {
      const c = u.ctx, ends = [];
      c.save();
      c.lineWidth = 1.2 * ratio; c.setLineDash([]);
      // marks that would cover each other stand side by side
      const taken = new Map();
      series.forEach((one, n) => {
        one.points.forEach(([px, py]) => {
          if (py === null) return;
          const x = u.valToPos(px, "x", true), y = u.valToPos(py, "y", true);
          if (few(one)) {
            const key = `${Math.round(x)}/${Math.round(y / (6 * ratio))}`, before = taken.get(key) || 0;
            taken.set(key, before + 1);
            mark(c, looks[n].mark, x + aside(before) * ratio, y, 3.5 * ratio, looks[n].color, paper);
          }
        });
        const last = [...one.points].reverse().find((p) => p[1] !== null);
        ends.push([u.valToPos(last[0], "x", true), u.valToPos(last[1], "y", true)]);
      });
      if (labeled) {
        const right = u.bbox.left + u.bbox.width;
        const heights = spread(ends.map((e) => e[1]), GAP * ratio, u.bbox.top, u.bbox.top + u.bbox.height);
        c.font = font; c.textAlign = "left"; c.textBaseline = "middle";
        series.forEach((one, n) => {
          c.strokeStyle = c.fillStyle = looks[n].color; c.globalAlpha = 0.45; c.lineWidth = ratio;
          c.beginPath(); c.moveTo(ends[n][0] + 5 * ratio, ends[n][1]); c.lineTo(right + 11 * ratio, heights[n]); c.stroke();
          c.globalAlpha = 1;
          c.fillStyle = legible(looks[n].color);
          c.fillText(tails[n].text, right + 14 * ratio, heights[n]);
        });
      }
      c.restore();
    }

    function hovered(u) {
      const { idx, left, top } = u.cursor;
      if (idx === null || idx === undefined || left < 0) { tip.hidden = true; return; }
      const x = data[0][idx];
      const near = (spec.events || []).filter((e) => Math.abs(u.valToPos(e.x, "x") - left) < 6).map((e) => e.detail);
      const said = spec.time ? new Date(x * 1000).toLocaleString() : spec.names ? spec.names[x] : `${text(spec.x || { digits: 0 }, x)} ${spec.xLabel}`;
      const rows = series.map((one, n) => (data[n + 1][idx] ?? null) === null ? null : `${one.label}: ${text(spec.form, data[n + 1][idx])}`);
      tip.textContent = [said, ...rows.filter(Boolean), ...near].join("\n");
      tip.hidden = false;
      const box = tip.getBoundingClientRect(), whole = node.getBoundingClientRect();
      const at = left + u.bbox.left / ratio + 12;
      tip.style.left = `${Math.max(0, Math.min(at, whole.width - box.width))}px`;
      tip.style.top = `${Math.max(0, top - box.height / 2)}px`;
    }

    const axis = { stroke: ink, font: `${SIZE}px ${getComputedStyle(node).fontFamily}`, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1, size: 4 } };
    const axes = [
      { ...axis, label: spec.xLabel, labelFont: axis.font, labelSize: 16, size: spec.time ? 40 : 26, gap: 4, grid: { show: false }, space: Math.max(34, 18 + 7 * Math.round(xMost).toLocaleString("en-US").length) },
      { ...axis, label: spec.yLabel, labelFont: axis.font, labelSize: 16, size: 50, gap: 4, space: 32 },
    ];
    if (!spec.log) axes[1].values = (_, ticks) => apart(spec.tick || spec.form, ticks);
    if (spec.time) {
      axes[0].space = 64;
      axes[0].incrs = [1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000];
      axes[0].values = (_, ticks, __, ___, step) => moments(ticks, step);
    } else if (spec.names) {
      Object.assign(axes[0], { values: (_, ticks) => ticks.map((t) => spec.names[t] ?? ""), splits: () => spec.names.map((_, i) => i), rotate: -40, size: 76, space: 1 });
    } else if (!spec.log) axes[0].values = (_, ticks) => ticks.map((t) => (spec.x && spec.tight ? text(spec.x, t) : spec.tight || (Number.isInteger(t) && t >= Math.min(0, xLeast)) ? t.toLocaleString("en-US") : ""));
    node.chart = new uPlot({
      width, height: HEIGHT, legend: { show: false }, padding: [26, room, 0, 0],
      scales: {
        x: spec.log ? { time: false, distr: 3, range: [xLeast, 1.1 * xMost] } : { time: Boolean(spec.time), range: xRange },
        y: spec.log ? { distr: 3 } : { range: [low, high] },
      },
      axes,
      cursor: { drag: { x: false, y: false }, points: { show: false }, y: false },
      // a line beneath others is wider, so that one that lies on it does not hide it
      series: [{}, ...series.map((one, n) => ({
        label: one.label, stroke: looks[n].color, dash: looks[n].dash, width: 2 + 1.2 * Math.min(2, series.length - 1 - n) * (spec.log || spec.tight ? 0 : 1),
        points: { show: false }, spanGaps: false,
        ...(spec.bars ? { paths: uPlot.paths.bars({ size: [0.7, 24] }), fill: looks[n].color, width: 0 } : {}),
      }))],
      hooks: { drawAxes: [under], draw: [over], setCursor: [hovered] },
    }, data, node);
    node.append(tip);
    node.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  // a short piece of a line for a legend
  function key(canvas, style) {
    const ratio = devicePixelRatio || 1, c = canvas.getContext("2d"), found = look(style);
    canvas.width = 26 * ratio; canvas.height = 12 * ratio;
    c.strokeStyle = found.color; c.lineWidth = 2 * ratio; c.setLineDash(found.dash.map((d) => d * ratio));
    c.beginPath(); c.moveTo(0, 6 * ratio); c.lineTo(26 * ratio, 6 * ratio); c.stroke();
    c.setLineDash([]); c.lineWidth = ratio;
    mark(c, found.mark, 13 * ratio, 6 * ratio, 3.5 * ratio, found.color, variable("chart-paper"));
  }

  // every chart and key that the page was sent with; again when its width or its colors change
  function all(root = document) {
    for (const node of root.querySelectorAll("[data-chart]")) {
      const spec = JSON.parse(node.dataset.chart);
      let width = 0;
      const again = () => { if (node.clientWidth !== width && node.clientWidth) { width = node.clientWidth; draw(node, spec); } };
      new ResizeObserver(again).observe(node);
      const recolor = () => { width = 0; again(); };
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor);
      addEventListener("beforeprint", recolor);
      again();
    }
    for (const canvas of root.querySelectorAll("canvas[data-key]")) key(canvas, canvas.dataset.key);
  }

  return { draw, key, all };
})();
