// Speaking while others listen, on two servers.
import { arrived, go, press as pressButton, recorded, slideAway, step, until } from "./browser.mjs";
import { ask, voices } from "./servers.mjs";

const marker = "im.parley.voice.live";

/** Presses the button to talk where others hear it meanwhile. */
export async function press(page) {
    await page.waitForSelector(".live-switch[aria-checked=true]"); // after a reload it takes a moment
    return pressButton(page);
}

/** Lets the button go, not so soon that it would be a tap. */
async function release(page) {
    await recorded(page, 500);
    await page.mouse.up();
}

/** Notes on a page when it records, sends, gets and plays. Milliseconds since 1970. */
export function watch(page) {
    return page.evaluate(() => {
        const at = (window.noted = {});
        const note = (what, time = performance.now()) => (at[what] ??= Math.round(performance.timeOrigin + time));
        const { start } = MediaRecorder.prototype;
        MediaRecorder.prototype.start = function (...given) {
            note("recording");
            this.addEventListener("dataavailable", ({ data }) => data.size && note("chunk"));
            start.apply(this, given);
        };
        const { play } = HTMLMediaElement.prototype;
        HTMLMediaElement.prototype.play = function () {
            this.addEventListener("playing", () => note("playing"));
            return play.call(this);
        };
        new PerformanceObserver((list) => {
            for (const { name, startTime, responseStart, responseEnd } of list.getEntries()) {
                if (name.includes("/send/m.room.message/")) note("told", startTime), note("taken", responseEnd);
                if (/\/live\/.*offset=0/.test(name)) note("appending", startTime), note("appended", responseEnd);
                if (name.includes("/sync?") && !at.shown) at.synced = Math.round(performance.timeOrigin + responseEnd);
                if (/\/_parley\/media\/|\/media\/download\//.test(name) && at.shown) note("asked", startTime), note("bytes", responseStart);
            }
        }).observe({ type: "resource" });
        document.addEventListener("pointerdown", (e) => note("pressed", e.timeStamp), true);
    });
}

/** Plays a live message as soon as it is shown, and notes when it is shown, heard, complete, and has been heard to its end. */
export function listen(page) {
    return page.evaluate(() => {
        const at = window.noted;
        const note = (what) => (at[what] ??= Date.now());
        const look = () => {
            const button = document.querySelector(".voice.live button.play");
            if (button && !at.shown) {
                note("shown");
                button.click();
            }
            if (Number(document.querySelector(".voice.live .voice-track input")?.value) > 0) note("heard");
            if (at.shown && !document.querySelector(".voice.live")) note("complete");
            if (at.complete && !document.querySelector(".voice .speed")) note("ended");
            if (!at.ended) requestAnimationFrame(look);
        };
        look();
    });
}

export const noted = (page) => page.evaluate(() => window.noted);

/** On the way from the press to the sound, in the order in which they come; the first seven are the talker's. */
export const stations = ["pressed", "recording", "chunk", "appending", "appended", "told", "taken", "synced", "shown", "asked", "bytes", "playing", "heard"];

/** What came when, each by so much later than the press. */
export function split(press, times) {
    return Object.entries(times)
        .map(([what, time]) => `${what} ${time === undefined ? "?" : time - press}`)
        .join(", ");
}

/** How long the story's servers wait for more of a recording before they end it. */
export const idle = "8s";

/** The newest event of a room that is live, as a server's first person sees it. */
function liveEvent(server, room) {
    return until(
        async () => {
            const { chunk } = await ask(server, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(room)}/messages?dir=b&limit=10`);
            return chunk.find((event) => event.content[marker] && !event.unsigned?.["m.relations"]?.["m.replace"]);
        },
        () => "there is no live message",
    );
}

/** Reads a file through a server to its end, and says when bytes came. */
async function read(server, mxc) {
    const headers = { Authorization: `Bearer ${server.users[0].access_token}` };
    const answer = await fetch(`${server.client_url}/_matrix/client/v1/media/download/${mxc.slice("mxc://".length)}`, { headers });
    if (!answer.ok) throw new Error(`download: ${answer.status} ${await answer.text()}`);
    const parts = [];
    let first;
    for await (const part of answer.body) {
        first ??= Date.now();
        parts.push(part);
    }
    return { bytes: Buffer.concat(parts), first, last: Date.now(), length: answer.headers.get("Content-Length") };
}

export async function liveVoice({ alice, bob, one, two, room, look }) {
    const inRoom = `#/room/${encodeURIComponent(room)}`;
    await step("live voice is off until it is chosen, for each conversation, and stays chosen", async () => {
        await go(alice, inRoom);
        await go(bob, inRoom);
        await alice.waitForSelector(".live-switch[aria-checked=false]");
        await alice.click(".live-switch");
        let places = 0;
        const count = (request) => (places += /media\/v1\/create/.test(request.url()) && request.method() === "POST");
        alice.on("request", count);
        for (let i = 0; i < 3; i++) {
            await alice.reload();
            await alice.waitForSelector(".live-switch[aria-checked=true]");
            await alice.hover(".talk");
            await alice.waitForFunction(() => localStorage.getItem("parley.live.place"));
        }
        alice.off("request", count);
        if (places > 1) throw new Error(`${places} places for recordings were made, and the server lets a person have few`);
        await look(alice, "live-switch");
    });
    await step("bob on the other server hears alice while she speaks", async () => {
        await bob.waitForSelector(".talk");
        await Promise.all([watch(alice), watch(bob)]);
        await listen(bob);
        const sent = alice.waitForResponse((answer) => answer.url().includes("/send/m.room.message/"));
        const { at } = await press(alice);
        const { event_id: id } = await (await sent).json();
        const event = await ask(one, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(room)}/event/${encodeURIComponent(id)}`);
        const readers = [read(one, event.content.url), read(two, event.content.url)];
        await bob.waitForFunction(() => window.noted.heard);
        await look(alice, "live-speaking");
        await look(bob, "live-listening");
        if (!(await bob.locator(".voice.live").count())) throw new Error("it is not live any more");
        const released = Date.now();
        await alice.mouse.up();
        await bob.waitForFunction(() => window.noted.ended);
        const times = { ...(await noted(alice)), ...(await noted(bob)) };
        const [home, away] = await Promise.all(readers);
        if (home.length || away.length) throw new Error("a length was told before it was known");
        if (!(home.first < released && away.first < released)) throw new Error("the readers got nothing before it ended");
        if (home.bytes.length === 0 || !home.bytes.equals(away.bytes)) throw new Error(`${home.bytes.length} bytes here, ${away.bytes.length} there`);
        const whole = await Promise.all([read(one, event.content.url), read(two, event.content.url)]);
        if (!whole.every(({ bytes }) => bytes.equals(home.bytes))) throw new Error("afterwards it is another file");
        const way = Object.fromEntries(stations.map((what) => [what, times[what]]));
        return [
            `heard ${times.heard - at} ms after the press (${split(at, way)})`,
            `from the release: last byte here after ${home.last - released} ms, there ${away.last - released} ms, complete ${times.complete - released} ms`,
        ].join("; ");
    });
    await step("then it is an ordinary message, played and unedited", async () => {
        for (const page of [alice, bob]) {
            const message = page.locator("article.message", { has: page.locator(".voice") }).last();
            await message.locator(".waveform:not(.speaking)").waitFor();
            if (/edited|bearbeitet/.test(await message.innerText())) throw new Error("it says that it was edited");
            if (!/0:[0-9]*[1-9]/.test(await message.locator(".voice-time").innerText())) throw new Error("it has no duration");
        }
        await bob.waitForFunction(() => ![...document.querySelectorAll(".voice")].at(-1).querySelector(".dot"));
        await bob.reload();
        await bob.waitForSelector(".voice");
        if (await bob.locator(".voice.live").count()) throw new Error("after a reload it is live again");
    });
    await step("an answer can be live, and is in the inbox meanwhile", async () => {
        const before = await voices(two, room);
        await go(bob, "#/inbox");
        const question = alice.locator("article.message.theirs").last();
        await question.hover();
        await question.locator("[aria-label=Reply]").click();
        await alice.waitForSelector(".about");
        await press(alice);
        await bob.waitForSelector(".cards .voice.live");
        const { event_id: id } = await liveEvent(one, room);
        await recorded(alice, 1200); // of less than half a second it says 0:00
        await alice.mouse.up();
        await bob.waitForSelector(".cards .voice.live", { state: "detached" });
        await bob.waitForFunction(() => /0:[0-9]*[1-9]/.test([...document.querySelectorAll(".cards .voice-time")].at(-1).textContent));
        await alice.waitForSelector(".about", { state: "detached" });
        await go(bob, inRoom);
        await arrived(bob, two, room, before + 1);
        await bob.waitForSelector(`[id="event-${id}"] .quotation`);
    });
    await step("what is taken back vanishes, here and there", async () => {
        const { box } = await press(alice);
        await bob.waitForSelector(".voice.live");
        await alice.waitForSelector(".voice.live");
        const { content, event_id: id } = await liveEvent(one, room);
        await slideAway(alice, box);
        await Promise.all([alice, bob].map((page) => page.waitForSelector(`[id="event-${id}"]`, { state: "detached" })));
        await alice.waitForSelector(".live-notice:not(:empty)");
        await look(alice, "live-taken-back");
        const answer = await read(two, content.url).catch((error) => error.message);
        if (!String(answer).includes("404")) throw new Error("the other server still has it");
        await Promise.all([alice, bob].map((page) => page.reload()));
        for (const page of [alice, bob]) {
            await page.waitForSelector(".voice");
            if (await page.locator(`[id="event-${id}"]`).count()) throw new Error("a trace of it is left");
        }
    });
    await step("a slip of the finger is not heard", async () => {
        const before = await voices(two, room);
        const told = [];
        const watch = (request) => request.url().includes("/send/m.room.message/") && told.push(request.url());
        alice.on("request", watch);
        await alice.waitForSelector(".live-switch[aria-checked=true]");
        await alice.hover(".talk");
        const box = await alice.locator(".talk").boundingBox();
        // Without waiting for each other: on a busy machine it would not be a slip otherwise.
        const hand = await alice.context().newCDPSession(alice);
        const at = (type, x) => hand.send("Input.dispatchMouseEvent", { type, x, y: box.y + 20, button: "left", buttons: type === "mouseReleased" ? 0 : 1, clickCount: 1 });
        await Promise.all([at("mousePressed", box.x + 20), at("mouseMoved", box.x - 150), at("mouseReleased", box.x - 150)]);
        await alice.waitForSelector("textarea");
        await alice.waitForTimeout(600); // longer than others wait to be told
        // A slow one: nobody is told while it is about to be taken back, and what the server has of it goes.
        const gone = alice.waitForResponse((answer) => answer.request().method() === "DELETE" && answer.url().includes("/live/") && answer.ok());
        await Promise.all([at("mousePressed", box.x + 20), at("mouseMoved", box.x - 20)]);
        await recorded(alice, 600);
        await Promise.all([at("mouseMoved", box.x - 150), at("mouseReleased", box.x - 150)]);
        await gone;
        await hand.detach();
        alice.off("request", watch);
        if (told.length || (await voices(two, room)) !== before) throw new Error("it was sent");
    });
    await step("without a connection one goes on talking, and the rest follows", async () => {
        const before = await voices(two, room);
        await press(alice);
        await bob.waitForSelector(".voice.live");
        await alice.route("**/im.parley.voice/live/**", (route) => route.abort());
        await alice.waitForSelector(".live-state.interrupted");
        await alice.unroute("**/im.parley.voice/live/**");
        await alice.waitForSelector(".live-state.on");
        await release(alice);
        await alice.waitForSelector(".outgoing", { state: "detached" });
        await arrived(bob, two, room, before + 1);
    });
    await step("what is ended without a connection survives a reload, and is completed", async () => {
        const before = await voices(two, room);
        await press(alice);
        await bob.waitForSelector(".voice.live");
        await alice.route("**/im.parley.voice/live/**", (route) => route.abort());
        await alice.waitForSelector(".live-state.interrupted");
        await release(alice);
        await alice.waitForSelector(".outgoing-problem");
        await alice.unroute("**/im.parley.voice/live/**");
        await alice.reload();
        await alice.waitForSelector(".outgoing", { state: "detached" });
        await arrived(bob, two, room, before + 1);
    });
    await step("if the server has ended it meanwhile, the whole goes out as an ordinary message", async () => {
        const before = await voices(two, room);
        await press(alice);
        await bob.waitForSelector(".voice.live");
        const { event_id: cut } = await liveEvent(one, room);
        await alice.route("**/im.parley.voice/live/**", (route) => route.abort());
        await alice.waitForSelector(".live-state.interrupted");
        await look(alice, "live-interrupted");
        await bob.waitForSelector(".voice.live", { state: "detached" });
        await alice.unroute("**/im.parley.voice/live/**");
        await alice.waitForSelector(".live-state.off");
        await look(alice, "live-off");
        await release(alice);
        await alice.waitForSelector(".live-notice:not(:empty)");
        await bob.waitForSelector(`[id="event-${cut}"]`, { state: "detached" });
        await arrived(bob, two, room, before + 1);
    });
    await step("if it cannot be live, it is an ordinary message", async () => {
        const before = await voices(two, room);
        await alice.route("**/media/v1/create", (route) => route.fulfill({ status: 403, json: { errcode: "M_FORBIDDEN", error: "Not today" } }));
        await alice.reload(); // a place made ahead is forgotten
        await press(alice);
        await alice.waitForSelector(".live-state.off");
        await release(alice);
        await arrived(bob, two, room, before + 1);
        await alice.waitForSelector(".live-notice >> text=Not today");
        await alice.unroute("**/media/v1/create");
        await alice.click(".live-switch");
    });
}
