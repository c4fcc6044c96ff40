"use strict";
(() => {
  const root = document.documentElement;
  const one = (id) => document.getElementById(id);
  const figures = JSON.parse(one("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };
  let ready = false;

  /* Theme: the system's, until the button says otherwise. */
  const remembered = () => { try { return localStorage.getItem("prunus-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("prunus-theme", theme); } catch { /* a file may have none */ } };
  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const name = () => {
    const next = theme() === "dark" ? "Light" : "Dark";
    one("theme").textContent = next;
    one("theme").setAttribute("aria-label", `Switch to ${next.toLowerCase()} colors`);
  };
  const set = (value) => { root.dataset.theme = value; name(); draw(); };
  if (["dark", "light"].includes(remembered())) root.dataset.theme = remembered();
  one("theme").hidden = false;
  name();
  one("theme").addEventListener("click", () => { set(theme() === "dark" ? "light" : "dark"); remember(theme()); });
  dark.addEventListener("change", () => { name(); draw(); });

  /* Charts: colors are names such as "@after" until here. */
  const colored = (value, key, style) => {
    if (Array.isArray(value)) return value.map((v) => colored(v, key, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, colored(v, k, style)]));
    if (typeof value === "string" && value[0] === "@" && /color$/.test(key)) {
      return value === "@clear" ? "rgba(0,0,0,0)" : style.getPropertyValue("--" + value.slice(1)).trim();
    }
    return value;
  };
  const picked = (figure) => figure.choices[Number(one("tensor").value)];
  const chosen = (figure) => (!figure.choices ? figure : {
    data: figure.data.map((trace, i) => ({ ...trace, x: picked(figure).x, y: picked(figure).y[i] })),
    layout: figure.layout,
  });
  const show = (box) => {
    const style = getComputedStyle(root);
    const figure = colored(chosen(figures[box.dataset.figure]), "", style);
    figure.layout.font.family = getComputedStyle(document.body).fontFamily;
    if (still.matches) figure.layout.transition = { duration: 0 };
    box.querySelector(".wait")?.remove();
    box.style.height = figure.layout.height + "px";
    return Plotly.react(box, figure.data, figure.layout, config);
  };
  const draw = () => {
    if (!ready) return Promise.resolve();
    delete root.dataset.drawn;
    const boxes = [...document.querySelectorAll("[data-figure]")];
    return Promise.all(boxes.map(show)).then(() => { root.dataset.drawn = String(boxes.length); });
  };
  const start = () => {
    const held = one("plotly");
    if (!held) { root.dataset.drawn = "0"; return; }
    const script = document.createElement("script");
    script.textContent = held.textContent;
    document.body.append(script);
    held.remove();
    ready = true;
    draw();
  };

  const tensor = one("tensor");
  if (tensor) {
    tensor.disabled = false;
    tensor.addEventListener("change", () => {
      one("weights-said").textContent = picked(figures.weights).said;
      if (ready) show(one("chart-weights"));
    });
  }

  /* The drawing of the network. */
  for (const button of document.querySelectorAll("[data-show][type=button]")) {
    button.addEventListener("click", () => {
      one("net").dataset.show = button.dataset.show;
      for (const other of document.querySelectorAll("[data-show][type=button]"))
        other.setAttribute("aria-pressed", String(other === button));
    });
  }

  /* Paper: light, and with all tables open. */
  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, shut: [...document.querySelectorAll("details:not([open])")] };
    before.shut.forEach((d) => { d.open = true; });
    set("light");
  });
  addEventListener("afterprint", () => {
    before?.shut.forEach((d) => { d.open = false; });
    if (before?.theme) set(before.theme);
    else { delete root.dataset.theme; name(); draw(); }
  });

  /* The heavy script runs once the text has been painted. */
  const painted = () => requestAnimationFrame(() => setTimeout(start, 0));
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", painted);
  else painted();
})();
