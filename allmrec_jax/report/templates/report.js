"use strict";
// Tables sort by a click on a heading; single users are browsed. Without this script every table stands as it is.
(() => {
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  for (const table of document.querySelectorAll("table.data")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", null, { type: "button" });
      const [label, ...about] = head.childNodes;
      button.append(label, make("span", null, { class: "arrow", "aria-hidden": "true" }), ...about);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.sort ?? "";
        const rows = [...table.tBodies[0].rows].sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return down ? (isNaN(x) ? order : -order) : isNaN(x) ? -order : order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // Says that a table goes on to the right, as long as it does.
  for (const box of document.querySelectorAll(".scroll:has(> table.data)")) {
    const hint = make("p", "More columns to the right: scroll or swipe →", { class: "more", "aria-hidden": "true" });
    box.before(hint);
    const update = () => { hint.hidden = box.scrollLeft + box.clientWidth >= box.scrollWidth - 2; };
    box.addEventListener("scroll", update, { passive: true });
    new ResizeObserver(update).observe(box);
    update();
  }

  const RIGHT = 1;
  for (const browser of document.querySelectorAll(".browser")) {
    const data = JSON.parse(browser.querySelector("script").textContent);
    const [system, show, other, words] = ["system", "show", "other", "words"].map((n) => browser.querySelector(`[name=${n}]`));
    const [list, person, status] = [".people", ".person", "[role=status]"].map((n) => browser.querySelector(n));
    const title = (number) => data.titles[number];
    const likelihood = data.systems.map((_, s) => data.users.every((user) => user.a[s][3].every((score) => score <= 0)));
    let open = null;

    data.systems.forEach((name, s) => {
      system.append(make("option", name, { value: s }));
      other.append(make("option", name, { value: s }));
    });
    const preferred = data.systems.indexOf("A-LLMRec");
    system.value = Math.max(preferred, 0);
    other.value = Math.max(data.systems.indexOf("SASRec"), 0);

    const right = (user, s) => user.a[s][1] === RIGHT;
    const tests = {
      all: () => true,
      misses: (user) => !right(user, system.value),
      hits: (user) => right(user, system.value),
      won: (user) => right(user, system.value) && !right(user, other.value),
      lost: (user) => !right(user, system.value) && right(user, other.value),
      cold: (user) => user.s.includes("cold"),
      warm: (user) => user.s.includes("warm"),
    };

    function filter() {
      const text = words.value.trim().toLowerCase();
      other.closest("label").hidden = !["won", "lost"].includes(show.value);
      const found = data.users.filter(
        (user) => tests[show.value](user) &&
          (!text || [...user.h, ...user.c].some((number) => title(number).toLowerCase().includes(text))),
      );
      list.replaceChildren(...found.map((user) => {
        const button = make("button", null, { type: "button", "data-user": user.u, "aria-pressed": "false" });
        const hit = right(user, system.value);
        button.append(make("span", `User ${user.u}`), make("span", hit ? "hit" : "miss", { class: hit ? "good" : "bad" }));
        button.addEventListener("click", () => visit(user));
        const item = make("li");
        item.append(button);
        return item;
      }));
      status.textContent = `${found.length} of ${data.users.length} users`;
      if (found.length) visit(found.includes(open) ? open : found[0]);
      else {
        open = null;
        person.replaceChildren(make("p", "No user is left by these filters.", { class: "none" }));
      }
    }

    function visit(user) {
      open = user;
      for (const button of list.querySelectorAll("button"))
        button.setAttribute("aria-pressed", String(Number(button.dataset.user) === user.u));
      const s = Number(system.value);
      const [rank, verdict, written, scores] = user.a[s];
      const head = make("h4", `User ${user.u}`);
      for (const name of user.s) head.append(make("span", `${name} item`, { class: "chip" }));
      const told = make("p");
      told.append(`${data.systems[s]} `, make("strong", verdict === RIGHT ? "is right" : `misses: ${data.verdicts[verdict]}`,
        { class: verdict === RIGHT ? "good" : "bad" }), `; it ranks the true item ${rank} of ${scores.length}.`);
      if (written !== null) {
        const line = make("p", "It wrote: ");
        line.append(make("code", written));
        told.append(line);
      }
      const past = make("ol", null, { start: user.m - user.h.length + 1 });
      user.h.forEach((number) => past.append(make("li", title(number))));
      person.replaceChildren(head, told,
        make("h5", `History, oldest first${user.m > user.h.length ? ` (the last ${user.h.length} of ${user.m})` : ""}`),
        past, scrolling(candidates(user, scores, likelihood[s])), scrolling(answers(user, s)));
    }

    function candidates(user, scores, likely) {
      const most = Math.max(...scores);
      const least = Math.min(...scores);
      const total = scores.reduce((sum, score) => sum + Math.exp(score - most), 0);
      const share = (score) => (likely ? Math.exp(score - most) / total : (score - least) / (most - least || 1));
      const table = rows(`Candidates by this system’s ${likely ? "log-likelihood; the bar is the share among them" : "score"}`,
        [["Candidate"], [likely ? "Log-likelihood" : "Score", "n"], [""]]);
      [...scores.keys()].sort((a, b) => scores[b] - scores[a]).forEach((k, place) => {
        const row = make("tr", null, { class: (k === user.t ? "true " : "") + (place === 0 ? "chosen" : "") });
        const name = make("th", title(user.c[k]), { scope: "row" });
        if (k === user.t) name.append(make("span", "true next item", { class: "chip" }));
        const bar = make("td", null, { class: "share" });
        bar.append(make("i"));
        bar.firstChild.style.width = `${(100 * share(scores[k])).toFixed(1)}%`;
        row.append(name, make("td", String(scores[k]).replace("-", "−"), { class: "n" }), bar);
        table.tBodies[0].append(row);
      });
      return table;
    }

    function answers(user, s) {
      const table = rows("Every system’s answer", [["System"], ["Wrote"], ["Verdict"], ["Rank of the true item", "n"]]);
      user.a.forEach(([rank, verdict, written], n) => {
        const row = make("tr", null, n === s ? { class: "picked" } : {});
        const text = make("td");
        text.append(written === null ? make("span", "ranks only", { class: "none" }) : make("code", written));
        row.append(make("th", data.systems[n], { scope: "row" }), text,
          make("td", data.verdicts[verdict], { class: verdict === RIGHT ? "good" : "bad" }), make("td", rank, { class: "n" }));
        table.tBodies[0].append(row);
      });
      return table;
    }

    function scrolling(table) {
      const box = make("div", null, { class: "scroll" });
      box.append(table);
      return box;
    }

    function rows(caption, heads) {
      const table = make("table");
      table.append(make("caption", caption));
      const head = make("tr");
      for (const [text, kind] of heads) head.append(text ? make("th", text, { scope: "col", class: kind ?? "" }) : make("td"));
      const top = make("thead");
      top.append(head);
      table.append(top, make("tbody"));
      return table;
    }

    for (const control of [system, show, other]) control.addEventListener("change", filter);
    words.addEventListener("input", filter);
    browser.hidden = false;
    filter();
  }
})();
