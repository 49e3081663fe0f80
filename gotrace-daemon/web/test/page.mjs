// Opens each view of the page in a real browser, on processes that are traced, and holds what it shows against the API.
//
//   node test/page.mjs URL SHOP WEB DIRECTORY [TOKEN-URL TOKEN]
//
// SHOP is the pid of tests/go/demo, WEB that of a server whose requests are traced. Screenshots go to DIRECTORY. Fails on
// any error in the console, which a breach of the policy is, on a request to elsewhere, and on what axe-core finds.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [url, shop, web, directory, locked, token] = process.argv.slice(2);
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

const json = async (path) => (await fetch(`${url}${path}`)).json();

/** How many goroutines wait for ever, by the API. */
async function waitForEver() {
  let answer;
  // The page may have it read just now.
  do answer = await fetch(`${url}api/v1/processes/${shop}/goroutines`);
  while (answer.status === 429 && (await new Promise((resolve) => setTimeout(() => resolve(true), 200))));
  const lines = (await answer.text()).trim().split("\n").map((line) => JSON.parse(line));
  return lines.filter(({ group }) => group?.own_code?.function === "main.waitForever").reduce((sum, { group }) => sum + group.count, 0);
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
    for (const view of ["home", "overview", "places", "requests", "flame"]) {
      await other.goto(url + VIEWS[view][0]);
      await other.locator({ home: "tbody tr", overview: ".chart", places: "tbody tr", requests: "#requests", flame: ".flame text" }[view]).first().waitFor();
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
