"use strict";
(function () {
  var svg = document.documentElement, side = 10, width = 1200 - 2 * side, character = 7;
  var box = document.getElementById("frames"), total = +box.dataset.total;
  var frames = Array.prototype.slice.call(box.children).map(function (g) {
    return { g: g, rect: g.querySelector("rect"), text: g.querySelector("text"),
             start: +g.dataset.s, count: +g.dataset.c, name: g.dataset.n,
             y: +g.querySelector("rect").getAttribute("y") };
  });
  var reset = document.getElementById("reset"), search = document.getElementById("search");
  var matched = document.getElementById("matched"), details = document.getElementById("details");

  // As much of a name as there are places for; the path of the package goes first.
  function fitting(name, places) {
    if (name.length > places) { name = name.replace(/^[^(\[]*\//, ""); }
    return name.length <= places ? name : places < 3 ? "" : name.slice(0, places - 2) + "..";
  }
  // Shows the goroutines from start on, and of the rows below y the frames around them.
  function show(start, count, y) {
    frames.forEach(function (f) {
      var around = f.start <= start && f.start + f.count >= start + count && f.y > y;
      var within = f.start >= start && f.start + f.count <= start + count && f.y <= y;
      f.g.classList.toggle("hide", !around && !within);
      var x = around ? side : side + (f.start - start) / count * width;
      var w = around ? width : f.count / count * width;
      f.rect.setAttribute("x", x);
      f.rect.setAttribute("width", Math.max(w, 0.1));
      f.text.setAttribute("x", x + 3);
      f.text.textContent = fitting(f.name, Math.floor((w - 6) / character));
    });
    reset.classList.toggle("hide", count === total);
  }
  function unzoom() { show(0, total, Infinity); }
  function mark() {
    var wanted = prompt("Regular expression of function names; empty for none", "");
    if (wanted === null) { return; }
    var expression;
    try { expression = wanted && new RegExp(wanted); } catch (e) { alert(e.message); return; }
    var ranges = [];
    frames.forEach(function (f) {
      var is = !!expression && expression.test(f.name);
      f.g.classList.toggle("match", is);
      if (is) { ranges.push([f.start, f.start + f.count]); }
    });
    // A goroutine counts once, however many of its frames match.
    var sum = 0, end = 0;
    ranges.sort(function (a, b) { return a[0] - b[0]; }).forEach(function (r) {
      if (r[1] > end) { sum += r[1] - Math.max(r[0], end); end = r[1]; }
    });
    matched.textContent = expression ? "matched: " + sum + ", " + (100 * sum / total).toFixed(2) + "%" : " ";
  }
  frames.forEach(function (f) {
    f.g.addEventListener("click", function () { show(f.start, f.count, f.y); });
    f.g.addEventListener("mouseenter", function () {
      details.textContent = f.g.querySelector("title").textContent.split("\n")[0];
    });
    f.g.addEventListener("mouseleave", function () { details.textContent = " "; });
  });
  reset.addEventListener("click", unzoom);
  search.addEventListener("click", mark);
  svg.addEventListener("keydown", function (e) {
    if (e.ctrlKey && e.key === "f") { e.preventDefault(); mark(); }
  });
})();
