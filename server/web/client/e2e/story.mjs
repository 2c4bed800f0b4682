// What two people do with the web client, in a real browser with a fake microphone, on two federating servers:
//
//   npm run story -- PATH_OF_PARLEY [SCREENSHOT_DIR]
//
// Needs Chromium (CHROMIUM, or /usr/bin/chromium). Ends with status 1 if anything does not work, if a page throws, or if axe
// finds an accessibility fault.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";
import { longRecording } from "./recordings.mjs";

const [parley, screenshots] = process.argv.slice(2);
const axeSource = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const phone = { width: 390, height: 844 };
const desktop = { width: 1200, height: 800 };
let failures = 0;

function fail(what, why) {
    failures++;
    console.log(`FAIL ${what}: ${why}`);
}

const world = spawn(parley, ["dev", "-json"], { stdio: ["ignore", "pipe", "inherit"] });
const [one, two] = await new Promise((resolve, reject) => {
    let text = "";
    world.stdout.on("data", (chunk) => {
        text += chunk;
        if (text.includes("\n")) resolve(JSON.parse(text).servers);
    });
    world.on("exit", (code) => reject(new Error(`parley dev ended with ${code}`)));
});
world.removeAllListeners("exit");
const password = one.users[0].password;

const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--disable-background-networking"],
});

async function open(url, viewport, options = {}) {
    const context = await browser.newContext({ viewport, permissions: ["microphone"], locale: "en-US", ...options });
    const page = await context.newPage();
    page.on("pageerror", (error) => fail(url, error.message));
    page.on("console", (message) => {
        if (/Content Security Policy|Content-Security-Policy/.test(message.text())) fail(url, message.text());
    });
    page.on("dialog", (dialog) => dialog.accept(password));
    await page.goto(url);
    return page;
}

async function signIn(page, name) {
    await page.fill("input[name=user]", name);
    await page.fill("input[name=password]", password);
    await page.click("button.primary");
    await page.waitForSelector(".sidebar", { state: "attached" });
}

/** Looks at a page: a picture of it, and what axe finds. */
async function look(page, name) {
    if (screenshots) await page.screenshot({ path: `${screenshots}/${name}.png` });
    await page.evaluate(axeSource);
    const { violations } = await page.evaluate(() => globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa"] }));
    for (const v of violations) fail(`axe on ${name}`, `${v.impact} ${v.id}: ${v.nodes[0].html.slice(0, 160)}`);
}

async function step(name, run) {
    const start = Date.now();
    try {
        const note = await run();
        console.log(`ok   ${name} (${Date.now() - start} ms${note ? `, ${note}` : ""})`);
    } catch (error) {
        fail(name, String(error).split("\n")[0]);
        throw error;
    }
}

async function hold(page, milliseconds) {
    const box = await (await page.waitForSelector(".talk")).boundingBox();
    await page.mouse.move(box.x + 20, box.y + 20);
    await page.waitForTimeout(200);
    await page.mouse.down();
    await page.waitForTimeout(milliseconds);
    await page.mouse.up();
    return Date.now();
}

const roomOf = (page) => decodeURIComponent(/#\/room\/([^/]+)/.exec(page.url())[1]);

/** Sends a recording as a server's first person, as a client other than this one may do it. */
async function sendRecording(server, room, recording) {
    const headers = { Authorization: `Bearer ${server.users[0].access_token}`, "Content-Type": "audio/ogg" };
    const ask = async (method, path, body) => {
        const answer = await fetch(server.client_url + path, { method, headers, body });
        if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
        return answer.json();
    };
    const { content_uri: url } = await ask("POST", "/_matrix/media/v3/upload?filename=Voice.ogg", recording);
    const content = { msgtype: "m.audio", body: "Voice.ogg", url, info: { mimetype: "audio/ogg" }, "org.matrix.msc3245.voice": {} };
    await ask("PUT", `/_matrix/client/v3/rooms/${encodeURIComponent(room)}/send/m.room.message/${Date.now()}`, JSON.stringify(content));
}

/** Counts the bytes that a page gets from addresses with something in them. */
async function bytesOf(page, what) {
    const devtools = await page.context().newCDPSession(page);
    const counted = new Set();
    let sum = 0;
    devtools.on("Network.requestWillBeSent", (e) => e.request.url.includes(what) && counted.add(e.requestId));
    devtools.on("Network.dataReceived", (e) => counted.has(e.requestId) && (sum += e.dataLength));
    await devtools.send("Network.enable");
    // A good mobile network: on the loopback a browser has read a file before it knows that it need not.
    const rate = (8 * 1_000_000) / 8;
    await devtools.send("Network.emulateNetworkConditions", { offline: false, latency: 20, downloadThroughput: rate, uploadThroughput: rate });
    return async () => {
        await devtools.detach();
        return sum;
    };
}

async function story() {
    const alice = await open(one.client_url, desktop, { colorScheme: "dark" });
    const bob = await open(two.client_url, phone, { locale: "de-DE" });
    await look(alice, "login-desktop");
    await look(bob, "login-phone");
    await signIn(alice, "alice");
    await signIn(bob, "bob");
    await look(alice, "home-desktop");
    await look(bob, "home-phone");

    const converse = async (encrypted) => {
        await alice.goto(`${one.client_url}/#/new`);
        await alice.fill(".people-picker input", two.users[0].user_id);
        await alice.keyboard.press("Enter");
        if (encrypted) await alice.check(".switch input");
        await look(alice, "new");
        await alice.click("form.form > button.primary");
        await alice.waitForSelector(".timeline");
        await bob.goto(`${two.client_url}/#/`);
        await bob.waitForSelector(".invitation .primary");
        await look(bob, "invitation");
        await bob.click(".invitation .primary");
        await bob.waitForSelector(".timeline");
    };
    await step("alice starts a conversation and bob, on another server, accepts", () => converse(false));
    await step("text arrives", async () => {
        await alice.fill("textarea", "Hello Bob");
        await alice.keyboard.press("Enter");
        await bob.waitForSelector(".timeline >> text=Hello Bob");
    });
    await step("a voice message arrives", async () => {
        const released = await hold(alice, 1500);
        await bob.waitForSelector(".voice .dot");
        return `${Date.now() - released} ms after the release`;
    });
    await step("sliding to the left cancels", async () => {
        const box = await (await alice.waitForSelector(".talk")).boundingBox();
        await alice.mouse.move(box.x + 20, box.y + 20);
        await alice.mouse.down();
        await alice.waitForTimeout(600);
        await look(alice, "recording");
        await alice.mouse.move(box.x - 150, box.y + 20, { steps: 5 });
        await alice.mouse.up();
        await alice.waitForSelector("textarea");
        if ((await alice.locator(".voice").count()) !== 1) throw new Error("it was sent");
    });
    await step("by keyboard: Enter starts, Enter sends", async () => {
        await alice.focus(".talk");
        await alice.keyboard.press("Enter");
        await alice.waitForTimeout(1000);
        await alice.click(".recorder .accent");
        await bob.waitForFunction(() => document.querySelectorAll(".voice").length === 2);
    });
    await look(alice, "room-desktop");
    await look(bob, "room-phone");

    const bobsTablet = await open(two.client_url, phone);
    await step("bob's second device has both in its inbox", async () => {
        await signIn(bobsTablet, "bob");
        await bobsTablet.goto(`${two.client_url}/#/inbox`);
        await bobsTablet.waitForFunction(() => document.querySelectorAll(".cards .voice").length === 2);
        await look(bobsTablet, "inbox");
    });
    await step("playing one goes on to the next", async () => {
        await bob.click(".voice .play");
        await bob.waitForFunction(() => document.querySelectorAll(".voice .dot").length === 0);
    });
    await step("the second device learns that they were played", () => bobsTablet.waitForSelector(".cards .voice", { state: "detached" }));
    await step("speed, seek, stop and go on where one stopped", async () => {
        await bob.waitForFunction(() => !document.querySelector(".voice .speed")); // the first round has ended
        await bob.locator(".voice-track input").first().fill("900");
        await bob.click(".voice .play");
        await bob.click(".voice .speed");
        await bob.click(".voice .play"); // pauses
        const at = Number(await bob.locator(".voice-track input").first().inputValue());
        if (at < 900) throw new Error(`it is at ${at} ms`);
        await bob.waitForTimeout(1200); // positions are stored after a second
        await bob.reload();
        await bob.waitForFunction(() => Number(document.querySelector(".voice-track input")?.value) >= 900);
    });
    await step("a long message is heard at 80 % without fetching it whole", async () => {
        const recording = longRecording("../../audio/testdata/speech.ogg", 1500);
        await sendRecording(one, roomOf(alice), recording);
        const count = await bytesOf(bob, "/_parley/media/");
        const voice = bob.locator(".voice").last();
        await bob.waitForFunction(() => [...document.querySelectorAll(".voice-time")].at(-1)?.textContent === "25:00");
        await voice.locator("input").fill("1200000");
        await voice.locator(".play").click();
        await bob.waitForFunction(() => Number([...document.querySelectorAll(".voice-track input")].at(-1).value) > 1200500);
        const bytes = await count();
        await voice.locator(".play").click();
        const share = Math.round((100 * bytes) / recording.length);
        if (!bytes || share >= 30) throw new Error(`${share} % of ${recording.length} bytes were fetched`);
        return `${share} % of ${recording.length} bytes`;
    });
    await step("search finds what was written", async () => {
        await alice.goto(`${one.client_url}/#/search`);
        await alice.fill(".search-form input", "Hello");
        await alice.keyboard.press("Enter");
        await alice.waitForSelector(".cards li");
        await look(alice, "search");
    });

    await step("an encrypted conversation", () => converse(true));
    await step("encrypted text arrives", async () => {
        await alice.fill("textarea", "Between us");
        await alice.keyboard.press("Enter");
        await bob.waitForSelector(".timeline >> text=Between us");
    });
    await step("encrypted voice arrives and plays", async () => {
        await hold(alice, 1000);
        await bob.waitForSelector(".voice");
        await bob.click(".voice .play");
        await bob.waitForSelector(".voice .speed");
        if (await bob.locator(".voice .problem").count()) throw new Error("it cannot be played");
    });
    await step("key backup", async () => {
        await alice.goto(`${one.client_url}/#/settings`);
        await alice.click("text=Set up key backup");
        await alice.waitForSelector("#recovery-key");
        await look(alice, "settings");
    });
    const alicesPhone = await open("about:blank", phone);
    await step("a second device signs in by code", async () => {
        await alice.click("text=Sign in another device");
        await alice.waitForSelector("#device-link", { state: "attached" });
        await look(alice, "code");
        await alicesPhone.goto(await alice.getAttribute("#device-link", "href"));
        await alicesPhone.waitForSelector(".sidebar", { state: "attached" });
    });
    await step("it is confirmed by comparing pictures", async () => {
        await alicesPhone.goto(`${one.client_url}/#/settings`);
        await alicesPhone.click("text=Confirm from another device");
        await alice.click(".dialog >> text=Compare");
        await Promise.all([alice.waitForSelector(".emoji"), alicesPhone.waitForSelector(".emoji")]);
        await look(alicesPhone, "verify");
        await alicesPhone.click("text=They are the same");
        await alice.click("text=They are the same");
        await alicesPhone.waitForSelector(".dialog >> text=Confirmed");
    });
}

try {
    await story();
} catch {
    // It has been reported.
} finally {
    await browser.close();
    world.kill("SIGINT");
}
console.log(failures ? `${failures} failures` : "all well");
process.exit(failures ? 1 : 0);
