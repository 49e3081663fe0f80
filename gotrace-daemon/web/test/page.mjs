// Opens each view of the page in a real browser, on processes that are traced, and holds what it shows against the API.
//
//   node test/page.mjs URL SHOP WEB LOCKS DIRECTORY [TOKEN-URL TOKEN]
//
// SHOP is the pid of tests/go/demo, WEB that of a server whose requests are traced, LOCKS that of tests/go/cases with the
// case `holder`: eight wait for a Mutex that main.flusher holds. Screenshots go to DIRECTORY. Fails on
// any error in the console, which a breach of the policy is, on a request to elsewhere, and on what axe-core finds.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [url, shop, web, locks, directory, locked, token] = process.argv.slice(2);
const PATIENCE = Number(process.env.PATIENCE_MS ?? 60_000);
const BROWSERS = ["/usr/bin/chromium", "/usr/bin/google-chrome", "/usr/bin/chromium-browser"];
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const executablePath = process.env.CHROMIUM ?? BROWSERS.find(existsSync);
assert(executablePath, `no browser: ${BROWSERS}`);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const wrong = [];

async function open(base, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, reducedMotion: "reduce", ...options });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.on("console", (message) => {
    // Of these the browser tells whatever the page makes of them: a wrong token, a process that is being read already.
    const expected = /status of (401|429) /.test(message.text());
    if (["error", "warning"].includes(message.type()) && !expected) wrong.push(`console: ${message.text()} ${message.location().url}`);
  });
  page.on("pageerror", (error) => wrong.push(`error: ${error.stack}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(base) && !request.url().startsWith("blob:")) wrong.push(`asked elsewhere: ${request.url()}`);
  });
  return page;
}

/** What axe-core finds, by `evaluate`: the policy refuses a script tag. */
async function accessible(page, where) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ resultTypes: ["violations"] }));
  for (const { id, impact, help, nodes } of violations) {
    wrong.push(`axe, ${where}: ${impact} ${id}: ${help}: ${nodes.slice(0, 3).map(({ html }) => html.slice(0, 160)).join(" | ")}`);
  }
}

async function fits(page, where) {
  const [width, wide] = await page.evaluate(() => [innerWidth, document.documentElement.scrollWidth]);
  if (wide > width) wrong.push(`${where}: ${wide} pixels wide on a screen of ${width}`);
}

const json = async (path) => {
  const text = await (await fetch(`${url}${path}`)).text();
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${path}: ${text}`);
  }
};

/** How many goroutines wait for ever, by the API. */
async function waitForEver() {
  let answer;
  // The page may have it read just now.
  do answer = await fetch(`${url}api/v1/processes/${shop}/goroutines`);
  while (answer.status === 429 && (await new Promise((resolve) => setTimeout(() => resolve(true), 200))));
  const lines = (await answer.text()).trim().split("\n").map((line) => JSON.parse(line));
  return lines.filter(({ group }) => group?.own_code?.function === "main.waitForever").reduce((sum, { group }) => sum + group.count, 0);
}

/** A time as the page writes it. */
function nanoseconds(text) {
  const [, value, unit] = /([\d.]+) (ns|µs|ms|s)/.exec(text);
  return Number(value) * { ns: 1, µs: 1e3, ms: 1e6, s: 1e9 }[unit];
}

/** Whether a number is what another one is when it is rounded to be read. */
const about = (a, b) => Math.abs(a - b) <= 0.06 * Math.abs(b) + 100;

/** Opens a slow request of the server that waited for a Mutex, and for whom; what the API told the page of it. */
async function openSlow(page) {
  const has = ({ waits, open }) => !open && waits.some(({ reason, causes }) => reason === "sync.Mutex.Lock" && causes.length > 0);
  // Reports come more often than the page is told of them: only what it got is in it.
  const told = page.waitForResponse(async (response) => {
    if (!response.url().endsWith(`/api/v1/processes/${web}`) || !response.ok()) return false;
    const { interval } = await response.json().catch(() => ({ interval: {} }));
    return interval.requests?.slow.some(has);
  });
  await page.goto(`${url}#/p/${web}/requests`);
  const request = (await (await told).json()).interval.requests.slow.find(has);
  await page.goto(`${url}#/p/${web}/requests?request=${request.id}`);
  await page.locator(".timeline svg").waitFor();
  return request;
}

/** Has the picture of goroutines of the shop that was marked compared with a later one. */
async function compare(page, first, second) {
  let body = first;
  const path = `**/processes/${shop}/debug/pprof/goroutine`;
  await page.route(path, (route) => route.fulfill({ body, contentType: "application/octet-stream" }));
  await page.goto(`${url}#/p/${shop}/flame?of=goroutines`);
  await page.getByRole("button", { name: "mark", exact: true }).click();
  await page.getByText("shows what has changed since").waitFor();
  body = second;
  await page.getByRole("button", { name: "take again" }).click();
  await page.getByRole("heading", { name: "What changed most" }).waitFor();
  await page.unroute(path);
}

/** Goroutines of the shop as a profile, and how many wait for ever in it at least. */
async function profile() {
  const least = await waitForEver();
  let answer;
  do answer = await fetch(`${url}processes/${shop}/debug/pprof/goroutine`);
  while (answer.status === 429 && (await new Promise((resolve) => setTimeout(() => resolve(true), 200))));
  return { body: Buffer.from(await answer.arrayBuffer()), least };
}

const number = (text) => Number(text.replace(/[^\d.]/g, ""));
const listed = (await json("api/v1/processes")).processes.find(({ pid }) => String(pid) === shop);

/** The views, each with what makes sure that it shows what it is there for. */
const VIEWS = {
  home: ["#/", async (page) => {
    await page.getByText("LEAK", { exact: true }).first().waitFor();
    const problem = page.locator(".problems > li", { hasText: "main.waitForever" }).first();
    await problem.waitFor();
    assert.match(await problem.innerText(), /main\.go:122/);
    const row = page.locator("tbody tr", { hasText: shop });
    assert.equal(await row.getByRole("link").innerText(), listed.service, "a name is text, whatever is in it");
    await row.locator("svg.spark polyline").waitFor();
  }],
  overview: [`#/p/${shop}/overview`, async (page) => {
    await page.getByRole("img", { name: /^Goroutines: alive \d/ }).waitFor();
    await page.locator("tbody tr", { hasText: "chan receive" }).first().waitFor();
    await page.locator(".chart polyline").first().waitFor({ state: "attached" });
  }],
  places: [`#/p/${shop}/places`, async (page) => {
    const before = await waitForEver();
    await page.getByRole("button", { name: "read goroutines again" }).click();
    const row = page.locator("tbody tr", { hasText: "main.waitForever" });
    await row.waitFor();
    await page.waitForFunction((least) => {
      const row = [...document.querySelectorAll("tbody tr")].find((row) => row.textContent.includes("main.waitForever"));
      return row && Number(row.cells[3].textContent.replace(/\D/g, "")) >= least;
    }, before);
    const shown = number(await row.locator("td").nth(3).innerText());
    const after = await waitForEver();
    assert(before > 0 && before <= shown && shown <= after, `${before} <= ${shown} <= ${after}`);
    await row.getByRole("button").click();
    await page.locator(".details .stack", { hasText: "main.waitForever" }).first().waitFor();
    assert.match(await page.locator(".details").innerText(), /created by main\.leakyHandler \(main\.go:118\)/);
    // Waits that have ended, with their times.
    const serve = page.locator("tbody tr", { hasText: "main.cook" }).first();
    assert.match(await serve.innerText(), /\d+ (ms|µs)/);
  }],
  sites: [`#/p/${shop}/sites?q=leakyHandler`, async (page) => {
    const row = page.locator("tbody tr");
    await row.first().waitFor();
    assert.equal(await row.count(), 1);
    assert.match(await row.innerText(), /main\.waitForever[\s\S]*main\.leakyHandler[\s\S]*main\.go:118/);
  }],
  flame: [`#/p/${shop}/flame`, async (page) => {
    await page.locator(".flame text", { hasText: "main.cook" }).first().waitFor();
    await page.locator(".flame text", { hasText: "[" }).first().waitFor();
    await page.locator(".flame svg").focus();
    await page.keyboard.press("ArrowDown");
    await page.waitForFunction(() => !document.querySelector("p.frame .function").textContent.startsWith("all"));
    await page.getByLabel("profile").selectOption("goroutines");
    await page.locator(".flame text", { hasText: "main.waitForever" }).first().waitFor();
  }],
  requests: [`#/p/${web}/requests`, async (page) => {
    // An interval of its requests, in which some slept.
    await page.waitForFunction(() => [...document.querySelectorAll("tbody tr")].some((row) =>
      row.textContent.startsWith("GET ") && /sleep \d+ %/.test(row.querySelector("svg.stacked")?.getAttribute("aria-label"))));
    await page.locator("svg.stacked rect").first().waitFor({ state: "attached" });
  }],
  timeline: [`#/p/${web}/requests`, async (page) => {
    const request = await openSlow(page);
    const waits = [...request.waits].sort((a, b) => a.offset_ns - b.offset_ns);
    const rows = page.locator(".details tbody tr");
    await rows.first().waitFor();
    assert.equal(await rows.count(), waits.length);
    // At once: it takes its width from its surroundings.
    const bars = await page.locator(".timeline svg").evaluate((svg) => {
      const of = (bar, name) => Number(bar.getAttribute(name)) / Number(svg.getAttribute("width"));
      return [...svg.querySelectorAll(".wait rect.part")].map((bar) => [of(bar, "x"), of(bar, "width")]);
    });
    for (const [n, wait] of waits.entries()) {
      const cells = await rows.nth(n).locator("td").allInnerTexts();
      assert(about(nanoseconds(cells[0]), wait.offset_ns), `${cells[0]}: ${wait.offset_ns}`);
      assert(about(nanoseconds(cells[1]), wait.duration_ns), `${cells[1]}: ${wait.duration_ns}`);
      assert.equal(cells[3], wait.reason);
      // The bar is where the wait was.
      const [x, share] = bars[n];
      assert(Math.abs(x - wait.offset_ns / request.duration_ns) < 0.005, `${x}: ${wait.offset_ns} of ${request.duration_ns}`);
      assert(Math.abs(share - wait.duration_ns / request.duration_ns) < 0.006, `${share}: ${wait.duration_ns} of ${request.duration_ns}`);
    }
    const n = waits.findIndex(({ reason, causes }) => reason === "sync.Mutex.Lock" && causes.length > 0);
    const text = await page.locator(".timeline .wait title").nth(n).textContent();
    const { goid, state } = waits[n].causes[0];
    assert(text.includes("sync.Mutex.Lock") && text.includes(`← goroutine ${goid}: ${state}`), text);
    assert.match(text, /main\.locks kinds\.go:\d+/);
    assert.equal(await page.locator(".timeline .wait").nth(n).locator("rect.part").getAttribute("class"), "part lock");
    // By the keyboard each can be chosen, and is told.
    await page.locator(".timeline svg").focus();
    await page.keyboard.press("Home");
    for (let step = 0; step < n; step++) await page.keyboard.press("ArrowDown");
    await page.locator(".chosen", { hasText: "sync.Mutex.Lock" }).waitFor();
    await page.getByText("stack of this wait").click();
    await page.locator(".chosen .stack", { hasText: "main.locks" }).waitFor();
    await page.locator(".timeline").scrollIntoViewIfNeeded();
  }],
  locks: [`#/p/${locks}/locks`, async (page) => {
    const row = page.locator("tbody tr", { hasText: "Mutex 0x" });
    await row.waitFor();
    const cells = await row.locator("td").allInnerTexts();
    assert.equal(cells[1], "8");
    assert.match(cells[2], /^8 × main\.put/);
    // The line at which it stands while it holds it, and what it does now.
    assert.match(cells[3], /^goroutine \d+ main\.flusher[\s\S]*locks\.go:108[\s\S]*sleep$/);
    // Those that wait are left of the lock, and who holds it is right of it.
    const left = async (box) => Number(await box.locator("rect").getAttribute("x"));
    const node = (text) => page.locator(".graph .node", { hasText: text }).first();
    const [waits, lock, holder] = [await left(node("8 × main.put")), await left(node("Mutex 0x")), await left(node("main.writeSnapshot"))];
    assert(waits < lock && lock < holder, `${waits} < ${lock} < ${holder}`);
    await page.locator(".graph .edge.holds.locked", { hasText: "held by" }).waitFor();
    assert.equal(await page.locator(".graph .edge.waits", { hasText: "lock × 8" }).count(), 1);
    await row.getByRole("button").click();
    const details = page.locator(".details");
    await details.locator(".stack", { hasText: "main.flusher" }).waitFor();
    assert.match(await details.innerText(), /8 goroutines wait for it/);
    // The picture shows what was chosen, and a link has it.
    assert.match(page.url(), /at=mutex/);
    const lines = (await (await fetch(`${url}api/v1/processes/${locks}/graph`)).text()).trim().split("\n").map((line) => JSON.parse(line));
    const object = lines.find(({ object }) => object?.kind === "mutex").object;
    assert.equal(cells[0], `Mutex ${object.address}`);
    // A filter takes out what does not match.
    await page.getByRole("searchbox").fill("no-such-function");
    await page.getByText("None matches the filter.").waitFor();
    await page.getByRole("searchbox").fill("flusher");
    await row.waitFor();
  }],
  channels: [`#/p/${shop}/locks`, async (page) => {
    // The newest may still be on the stack of who made it, and then in a row of its own.
    const row = page.locator("tbody tr", { hasText: "main.waitForever" }).first();
    await row.waitFor();
    const before = await waitForEver();
    await page.getByRole("button", { name: "read goroutines again" }).click();
    await page.waitForFunction((least) => {
      const rows = [...document.querySelectorAll("tbody tr")].filter((row) => row.textContent.includes("main.waitForever"));
      return rows.reduce((sum, row) => sum + Number(row.cells[1].textContent.replace(/\D/g, "")), 0) >= least;
    }, before);
    assert((await page.locator(".graph .faint").count()) === 0);
    await page.locator(".graph .node.chan", { hasText: " channels" }).first().click();
    await page.locator(".details", { hasText: "main.waitForever" }).waitFor();
    assert((await page.locator(".graph .faint").count()) > 0, "all that has nothing to do with it is faint");
    assert.equal(await row.getByRole("button").getAttribute("aria-expanded"), "true");
  }],
  compared: [`#/p/${shop}/flame`, async (page) => {
    const first = await profile();
    let second = await profile();
    // So many more that it has a colour.
    const enough = first.least + Math.max(3, first.least * 0.04);
    for (const until = Date.now() + PATIENCE; second.least < enough; second = await profile()) {
      assert(Date.now() < until, `only ${second.least} wait for ever after ${first.least}`);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    const change = page.locator("tbody tr", { hasText: "main.waitForever" });
    await compare(page, second.body, first.body);
    await page.locator(".flame .frame.shrank", { hasText: "main.waitForever" }).waitFor();
    const [, , , before, now, less] = await change.locator("td").allInnerTexts();
    assert.equal(number(before) - number(now), number(less));
    assert(less.startsWith("−") && number(less) >= 2, less);
    await compare(page, first.body, second.body);
    await page.locator(".flame .frame.grew", { hasText: "main.waitForever" }).waitFor();
    const cells = await change.locator("td").allInnerTexts();
    assert.deepEqual(cells.slice(3), [now, before, less.replace("−", "+")], "the other way round");
    await page.locator(".flame .frame", { hasText: "main.waitForever" }).click();
    assert.match(await page.locator("p.frame").innerText(), new RegExp(`main\\.waitForever ${now} → ${before} \\(\\+`));
  }],
  capture: [`#/p/${shop}/capture`, async (page) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "Goroutines as text" }).click()]);
    assert.equal(download.suggestedFilename(), `goroutines-${shop}.txt`);
    assert.match(readFileSync(await download.path(), "utf8"), /^goroutine \d+ \[[\s\S]*main\.waitForever/);
  }],
};

async function all() {
  const page = await open(url, { permissions: ["clipboard-read", "clipboard-write"] });
  await page.goto(url);
  await page.locator(".state.live").waitFor();
  for (const [name, [hash, look]] of Object.entries(VIEWS)) {
    const begun = Date.now();
    await page.goto(url + hash);
    await look(page).catch((error) => wrong.push(`${name}: ${error.stack}`));
    await accessible(page, name);
    await fits(page, name);
    await page.screenshot({ path: `${directory}/${name}.png` });
    console.log(`${name}: ${Date.now() - begun} ms`);
  }
  // Nothing of a name became an element.
  assert.equal(await page.locator("img, iframe, body script").count(), 0);
  assert.equal(await page.evaluate(() => globalThis.hit), undefined);

  // A problem as text for a ticket.
  await page.goto(`${url}#/`);
  const problem = page.locator(".problems > li", { hasText: "main.waitForever" }).first();
  await problem.getByRole("button", { name: "copy as Markdown" }).click();
  await page.getByText("copied").waitFor();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  assert.match(copied, /^\*\*LEAK\*\* [\d,]+ goroutines? in `/);
  assert.match(copied, /- blocked at `main\.waitForever \(main\.go:122\)`, `chan receive`/);
  assert(copied.includes(`#/p/${shop}/overview`), copied);

  // News come by themselves, and none while it is paused.
  const seen = () => page.evaluate(() => performance.getEntriesByType("resource").filter(({ name }) => name.endsWith("/findings")).length);
  const first = await seen();
  await page.waitForFunction((first) => performance.getEntriesByType("resource").filter(({ name }) => name.endsWith("/findings")).length > first + 1, first);
  await page.getByRole("button", { name: "pause" }).click();
  await page.locator(".state.paused").waitFor();
  await page.getByRole("button", { name: "resume" }).click();
  await page.locator(".state.live").waitFor();

  // By the keyboard alone: what has the focus is seen, and a row's button opens it.
  await page.keyboard.press("/");
  await page.keyboard.type("demo-that-is-not-there");
  await page.getByText("No process matches the filter.").waitFor();
  assert.match(page.url(), /q=demo-that-is-not-there/);
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.press("Delete");
  await page.locator("tbody tr").first().waitFor();
  await page.keyboard.press("Tab");
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  if (outline === "none") wrong.push("the focus is not seen");

  // The same small, and dark.
  for (const [name, options] of [
    ["phone", { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true }],
    ["dark", { colorScheme: "dark" }],
  ]) {
    const other = await open(url, options);
    for (const view of ["home", "overview", "places", "requests", "timeline", "locks", "flame", "compared"]) {
      if (view === "timeline") await openSlow(other);
      else if (view === "compared") {
        const now = await profile();
        await compare(other, now.body, now.body);
      } else await other.goto(url + VIEWS[view][0]);
      const shown = { home: "tbody tr", overview: ".chart", places: "tbody tr", requests: "#requests", timeline: ".timeline .wait", locks: "tbody tr", flame: ".flame text", compared: ".flame text" }[view];
      await other.locator(shown).first().waitFor();
      if (view === "timeline") await other.locator(".timeline").scrollIntoViewIfNeeded();
      await accessible(other, `${view}, ${name}`);
      await fits(other, `${view}, ${name}`);
      await other.screenshot({ path: `${directory}/${view}-${name}.png` });
    }
    await other.context().close();
  }
}

async function withToken() {
  const page = await open(locked);
  await page.goto(locked);
  const field = page.getByLabel("Token");
  await field.fill(`${token}x`);
  await field.press("Enter");
  await page.getByText("This is not the token.").waitFor();
  await accessible(page, "login");
  await page.screenshot({ path: `${directory}/login.png` });
  await field.fill(token);
  await field.press("Enter");
  await page.locator(".state.live").waitFor();
  const [cookie] = await page.context().cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.value.includes(token)], [true, "Strict", false]);
}

try {
  await all();
  if (locked) await withToken();
} catch (error) {
  wrong.push(error.stack);
}
await browser.close();
if (wrong.length) {
  console.error(wrong.join("\n"));
  process.exit(1);
}
