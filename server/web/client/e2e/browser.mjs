// The browser of the story, and how its pages are looked at.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";
import { voices } from "./servers.mjs";

const axeSource = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export const phone = { width: 390, height: 844 };
export const desktop = { width: 1200, height: 800 };

let failures = 0;
/** Every page that is open, and what is known of it. */
const pages = new Map();
let pictures = 0;
let folder;

export function fail(what, why) {
    failures++;
    console.log(`FAIL ${what}: ${why}`);
}

export const failed = () => failures;

/** One thing that must work. */
export async function step(name, run) {
    const start = Date.now();
    try {
        const note = await run();
        console.log(`ok   ${name} (${Date.now() - start} ms${typeof note === "string" ? `, ${note}` : ""})`);
    } catch (error) {
        fail(name, String(error).split("\n").slice(0, 6).join("\n     "));
        await tell();
        error.told = true;
        throw error;
    }
}

/** What the pages show now: where they are, what they complain of, what has the focus; and a picture of each if there is a folder for them. */
export async function tell() {
    for (const [page, { warnings }] of pages) {
        console.log(`     ${page.url()}`);
        const seen = page.evaluate(() => ({
            title: document.querySelector("main h1")?.textContent,
            problems: [...document.querySelectorAll(".problem, [role=alert], .offline")].map((element) => element.textContent.trim()),
            focus: document.activeElement?.cloneNode(false).outerHTML.slice(0, 200),
        }));
        // A page that hangs tells nothing.
        const late = new Promise((resolve) => setTimeout(() => resolve({ problems: ["it does not answer"] }), 5000));
        const { title, problems, focus } = await Promise.race([seen, late]).catch((error) => ({ problems: [error.message] }));
        if (title) console.log(`       title    ${title}`);
        for (const problem of problems) console.log(`       problem  ${problem}`);
        if (focus) console.log(`       focus    ${focus}`);
        for (const warning of warnings) console.log(`       console  ${warning}`);
        if (!folder) continue;
        const path = `${folder}/failed-${pictures++}.png`;
        const taken = await page.screenshot({ path, timeout: 5000 }).then(() => path, (error) => error.message);
        console.log(`       picture  ${taken}`);
    }
}

/** Keeps in mind a page, also one that another has opened, until it is closed. */
function know(page) {
    const warnings = [];
    pages.set(page, { warnings });
    page.on("close", () => pages.delete(page));
    page.on("console", (message) => {
        if (/warning|error/.test(message.type())) warnings.splice(0, warnings.length - 4, message.text().slice(0, 300));
    });
}

export async function launch(screenshots) {
    folder = screenshots;
    const browser = await chromium.launch({
        executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
        args: ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--disable-background-networking"],
    });

    /** Opens a page as a person of its own would. */
    async function open(url, viewport, options = {}) {
        const context = await browser.newContext({ viewport, permissions: ["microphone", "clipboard-read", "clipboard-write"], locale: "en-US", ...options });
        context.on("page", know);
        const page = await context.newPage();
        page.on("pageerror", (error) => fail(url, error.stack ?? error.message));
        page.on("console", (message) => {
            if (/Content Security Policy|Content-Security-Policy/.test(message.text())) fail(url, message.text());
        });
        page.on("dialog", (dialog) => fail(url, `the browser's own dialog: ${dialog.message()}`));
        page.usual = { viewport, colorScheme: options.colorScheme ?? "light" };
        await page.goto(url);
        return page;
    }

    /** Looks at a page on a phone and a desktop, light and dark: a picture each, and what axe finds. */
    async function look(page, name) {
        await page.evaluate(axeSource);
        for (const [size, viewport] of Object.entries({ phone, desktop })) {
            await page.setViewportSize(viewport);
            for (const colorScheme of ["light", "dark"]) {
                await page.emulateMedia({ colorScheme });
                if (screenshots) await page.screenshot({ path: `${screenshots}/${name}-${size}-${colorScheme}.png` });
                const { violations } = await page.evaluate(() => globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21aa"], resultTypes: ["violations"] }));
                for (const v of violations) fail(`axe on ${name}, ${size}, ${colorScheme}`, `${v.impact} ${v.id}: ${v.nodes[0].html.slice(0, 160)}`);
            }
        }
        await page.setViewportSize(page.usual.viewport);
        await page.emulateMedia({ colorScheme: page.usual.colorScheme });
    }

    return { browser, open, look };
}

/** Counts the bytes that a page gets from addresses with something in them. */
export async function bytesOf(page, what) {
    const devtools = await page.context().newCDPSession(page);
    const counted = new Set();
    let sum = 0;
    devtools.on("Network.requestWillBeSent", (e) => e.request.url.includes(what) && counted.add(e.requestId));
    devtools.on("Network.dataReceived", (e) => counted.has(e.requestId) && (sum += e.dataLength));
    await devtools.send("Network.enable");
    // A mobile network: on a faster one a browser on a busy machine has read much of a file before it knows that it need not.
    const rate = (2 * 1_000_000) / 8;
    await devtools.send("Network.emulateNetworkConditions", { offline: false, latency: 20, downloadThroughput: rate, uploadThroughput: rate });
    return async () => {
        await devtools.detach();
        return sum;
    };
}

/** Goes to a place in the client, and waits until the page has taken notice: a new hash alone loads nothing that could be waited for. */
export async function go(page, hash) {
    await page.evaluate(async (hash) => {
        if (location.hash === hash) return;
        const noticed = new Promise((resolve) => window.addEventListener("hashchange", resolve, { once: true }));
        location.hash = hash;
        await noticed;
        await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    }, hash);
}

/** Presses the button to talk and keeps it down. Says when, and where the button is. */
export async function press(page) {
    await page.hover(".talk"); // once it stands still
    const box = await page.locator(".talk").boundingBox();
    await page.waitForTimeout(200); // a hand comes near before it presses, and the microphone is opened
    const at = Date.now();
    await page.mouse.down();
    return { at, box };
}

/** Slides away with the button held down, which cancels. */
export async function slideAway(page, box, steps = 5) {
    await page.mouse.move(box.x - 150, box.y + 20, { steps });
    await page.mouse.up();
}

/** Waits until there is so much of what is being recorded. Milliseconds. */
export async function recorded(page, milliseconds) {
    await page.waitForSelector(".recorder .level:not(.opening)");
    await page.waitForTimeout(milliseconds);
}

/** Holds the button to talk until so much is recorded, and says when it was let go. */
export async function hold(page, milliseconds) {
    await press(page);
    await recorded(page, milliseconds);
    await page.mouse.up();
    return Date.now();
}

/** Scrolls to the beginning as a wheel does, and says how long frames took meanwhile. Milliseconds. */
export function scrollToStart(page, selector, until) {
    return page.evaluate(
        async ([selector, until]) => {
            const list = document.querySelector(selector);
            const frames = [];
            let last = performance.now();
            const end = last + 60_000;
            while (performance.now() < end && !document.querySelector(until)) {
                list.scrollTop -= 400;
                const now = await new Promise(requestAnimationFrame);
                frames.push(now - last);
                last = now;
            }
            frames.sort((a, b) => a - b);
            const at = (share) => Math.round(frames[Math.floor((frames.length - 1) * share)]);
            return { frames: frames.length, median: at(0.5), p95: at(0.95), longest: at(1) };
        },
        [selector, until],
    );
}

/** Asks until the answer is there. A server that is asked without a pause has no time for what it is asked about. */
export async function until(ask, otherwise) {
    for (const end = Date.now() + 30_000; ; ) {
        const answer = await ask();
        if (answer) return answer;
        if (Date.now() > end) throw new Error(await otherwise());
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
}

/** Waits until there are so many of them, none live, and the page shows the newest. */
export async function arrived(page, server, room, count) {
    await until(
        async () => (await voices(server, room)) === count,
        async () => `there are ${await voices(server, room)} voice messages, not ${count}`,
    );
    await page.waitForSelector(".voice.live", { state: "detached" });
    await page.locator(".voice").last().locator(".waveform:not(.speaking)").waitFor();
}
