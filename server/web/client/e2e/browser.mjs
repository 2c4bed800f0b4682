// The browser of the story, and how its pages are looked at.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";
import { voices } from "./servers.mjs";

const axeSource = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export const phone = { width: 390, height: 844 };
export const desktop = { width: 1200, height: 800 };

let failures = 0;

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
        console.log(`ok   ${name} (${Date.now() - start} ms${note ? `, ${note}` : ""})`);
    } catch (error) {
        fail(name, String(error).split("\n").slice(0, 6).join("\n     "));
        throw error;
    }
}

export async function launch(screenshots) {
    const browser = await chromium.launch({
        executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
        args: ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--disable-background-networking"],
    });

    /** Opens a page as a person of its own would. */
    async function open(url, viewport, options = {}) {
        const context = await browser.newContext({ viewport, permissions: ["microphone", "clipboard-read", "clipboard-write"], locale: "en-US", ...options });
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
    // A good mobile network: on the loopback a browser has read a file before it knows that it need not.
    const rate = (8 * 1_000_000) / 8;
    await devtools.send("Network.emulateNetworkConditions", { offline: false, latency: 20, downloadThroughput: rate, uploadThroughput: rate });
    return async () => {
        await devtools.detach();
        return sum;
    };
}

/** Holds the button to talk, and says when it was let go. */
export async function hold(page, milliseconds) {
    const box = await (await page.waitForSelector(".talk")).boundingBox();
    await page.mouse.move(box.x + 20, box.y + 20);
    await page.waitForTimeout(200);
    await page.mouse.down();
    await page.waitForTimeout(milliseconds);
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

/** Waits until there are so many of them, none live, and the page shows the newest. */
export async function arrived(page, server, room, count) {
    for (const end = Date.now() + 30_000; (await voices(server, room)) !== count; ) {
        if (Date.now() > end) throw new Error(`there are ${await voices(server, room)} voice messages, not ${count}`);
    }
    await page.waitForSelector(".voice.live", { state: "detached" });
    await page.locator(".voice").last().locator(".waveform:not(.speaking)").waitFor();
}
