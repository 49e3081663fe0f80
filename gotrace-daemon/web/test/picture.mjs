// A picture of the page for the README: where goroutines of a process wait, with its leak above.
//
//   node test/picture.mjs URL PID FILE
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const [url, pid, file] = process.argv.slice(2);
const PATIENCE = 180_000;
const BROWSERS = ["/usr/bin/chromium", "/usr/bin/google-chrome", "/usr/bin/chromium-browser"];
const executablePath = process.env.CHROMIUM ?? BROWSERS.find(existsSync);
assert(executablePath, `no browser: ${BROWSERS}`);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"], timeout: PATIENCE });
try {
  const context = await browser.newContext({ viewport: { width: 1340, height: 780 }, reducedMotion: "reduce" });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  await page.goto(url);
  await page.locator("tbody tr", { hasText: pid }).waitFor();
  await page.goto(`${url}#/p/${pid}/places`);
  // What it retains is told once that is known.
  const problem = page.locator(".problems > li", { hasText: "main.waitForever" }).filter({ hasText: "retains" }).first();
  await problem.waitFor();
  const leaked = Number(/([\d,]+) ×/.exec(await problem.innerText())[1].replace(/,/g, ""));
  // Figures of some seconds, and a snapshot that has all of the leaked ones.
  await page.locator("tbody tr", { hasText: "main.janitor" }).first().waitFor();
  await page.getByRole("button", { name: "read goroutines again" }).click();
  await page.waitForFunction((leaked) => {
    const row = [...document.querySelectorAll("tbody tr")].find((row) => row.textContent.includes("main.waitForever"));
    return row && Number(row.cells[3].textContent.replace(/\D/g, "")) >= leaked;
  }, leaked);
  await page.mouse.move(0, 0);
  await page.screenshot({ path: file });
} finally {
  await browser.close();
}
