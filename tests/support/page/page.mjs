// Drives Chromium for tests: reads one command in JSON from each line, and answers each with a line.
//
//   {"open": URL}                 opens a page
//   {"wait": EXPRESSION}          evaluates it in the page until it is true, and answers its value
//   {"press": KEY}                presses a key
//   {"look": {width, height, scheme, path}}   takes a screenshot
//   {"seen": true}                every request, and everything that the page complained of, so far
//
// The answer is {"value": …} or {"error": …}. It ends with its input.
//
// Arguments: the folder that has node_modules/playwright-core, Chromium's program, an empty folder for its profile.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [modules, executablePath, profile] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/package.json`)("playwright-core");

// How long a condition may take to come about, in milliseconds; far more than any needs.
const PATIENCE = 90_000;
const BETWEEN_LOOKS = 50;

const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  viewport: { width: 1280, height: 800 },
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
const page = context.pages()[0] ?? (await context.newPage());
const requests = [];
const complaints = [];
context.on("request", (request) => requests.push(request.url()));
page.on("console", (message) => {
  // Where the machine stands still there is no preview in time (503), and the page asks again.
  const isLate = message.text().includes("503 (Service Unavailable)") && message.location().url.includes("/preview?");
  if (["error", "warning"].includes(message.type()) && !isLate) complaints.push(message.text());
});
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("dialog", (dialog) => {
  complaints.push(`dialog: ${dialog.message()}`);
  dialog.dismiss();
});

async function waitFor(expression) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const value = await page.evaluate(expression).catch((error) => {
      // While another page comes, the one that was asked is gone.
      if (/context was destroyed|navigati/i.test(error.message)) return undefined;
      throw error;
    });
    if (value) return value;
    if (Date.now() > deadline) {
      const text = await page.evaluate("document.body.innerText");
      throw new Error(`this did not come about: ${expression}\nthe page says: ${text}\nit complained: ${complaints}`);
    }
    await new Promise((resolve) => setTimeout(resolve, BETWEEN_LOOKS));
  }
}

async function answer(command) {
  if (command.open) return (await page.goto(command.open)).status();
  if (command.wait) return waitFor(command.wait);
  if (command.press) return page.keyboard.press(command.press);
  if (command.look) {
    const { width, height, scheme, path } = command.look;
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height });
    await page.screenshot({ path });
    return true;
  }
  return { requests, complaints };
}

for await (const line of createInterface({ input: process.stdin })) {
  let said;
  try {
    said = { value: (await answer(JSON.parse(line))) ?? null };
  } catch (error) {
    said = { error: String(error) };
  }
  console.log(JSON.stringify(said));
}
await context.close();
