// Speaking while others listen, on two servers.
import { arrived, step } from "./browser.mjs";
import { ask, voices } from "./servers.mjs";

const marker = "im.parley.voice.live";

/** Presses the button to talk and keeps it down. */
async function press(page) {
    const box = await (await page.waitForSelector(".talk")).boundingBox();
    await page.mouse.move(box.x + 20, box.y + 20);
    await page.waitForFunction(() => document.querySelector(".talk"));
    const at = Date.now();
    await page.mouse.down();
    return { at, box };
}

/** Notes when a live message is shown on a page, heard and complete. It is played as soon as it is shown. */
function listen(page) {
    return page.evaluate(() => {
        const at = (window.listened = {});
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

const listened = (page) => page.evaluate(() => window.listened);

/** How long the story's servers wait for more of a recording before they end it. */
export const idle = "8s";

/** The newest event of a room that is live, as a server's first person sees it. */
async function liveEvent(server, room) {
    for (;;) {
        const { chunk } = await ask(server, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(room)}/messages?dir=b&limit=10`);
        const found = chunk.find((event) => event.content[marker] && !event.unsigned?.["m.relations"]?.["m.replace"]);
        if (found) return found;
    }
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
    const roomAt = (server) => `${server.client_url}/#/room/${encodeURIComponent(room)}`;
    await step("live voice is off until it is chosen, for each conversation, and stays chosen", async () => {
        await alice.goto(roomAt(one));
        await bob.goto(roomAt(two));
        await alice.waitForSelector(".live-switch[aria-checked=false]");
        await alice.click(".live-switch");
        await alice.reload();
        await alice.waitForSelector(".live-switch[aria-checked=true]");
        await look(alice, "live-switch");
    });
    await step("bob on the other server hears alice while she speaks", async () => {
        await bob.waitForSelector(".talk");
        await listen(bob);
        const { at } = await press(alice);
        const event = await liveEvent(one, room);
        const readers = [read(one, event.content.url), read(two, event.content.url)];
        await bob.waitForFunction(() => window.listened.heard, undefined, { timeout: 15_000 });
        const { shown, heard } = await listened(bob);
        await look(alice, "live-speaking");
        await look(bob, "live-listening");
        if (!(await bob.locator(".voice.live").count())) throw new Error("it is not live any more");
        const released = Date.now();
        await alice.mouse.up();
        await bob.waitForFunction(() => window.listened.ended, undefined, { timeout: 20_000 });
        const { complete } = await listened(bob);
        const [home, away] = await Promise.all(readers);
        if (home.length || away.length) throw new Error("a length was told before it was known");
        if (!(home.first < released && away.first < released)) throw new Error("the readers got nothing before it ended");
        if (home.bytes.length === 0 || !home.bytes.equals(away.bytes)) throw new Error(`${home.bytes.length} bytes here, ${away.bytes.length} there`);
        const whole = await Promise.all([read(one, event.content.url), read(two, event.content.url)]);
        if (!whole.every(({ bytes }) => bytes.equals(home.bytes))) throw new Error("afterwards it is another file");
        return `from the press: shown after ${shown - at} ms, heard after ${heard - at} ms; from the release: last byte here after ${home.last - released} ms, there ${away.last - released} ms, complete ${complete - released} ms`;
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
        await bob.goto(`${two.client_url}/#/inbox`);
        const question = alice.locator("article.message.theirs").last();
        await question.hover();
        await question.locator("[aria-label=Reply]").click();
        await alice.waitForSelector(".about");
        await press(alice);
        await bob.waitForSelector(".cards .voice.live");
        const { event_id: id } = await liveEvent(one, room);
        await alice.mouse.up();
        await bob.waitForSelector(".cards .voice.live", { state: "detached" });
        await bob.waitForFunction(() => /0:[0-9]*[1-9]/.test([...document.querySelectorAll(".cards .voice-time")].at(-1).textContent));
        await alice.waitForSelector(".about", { state: "detached" });
        await bob.goto(roomAt(two));
        await arrived(bob, two, room, before + 1);
        await bob.waitForSelector(`[id="event-${id}"] .quotation`);
    });
    await step("what is taken back vanishes, here and there", async () => {
        const { box } = await press(alice);
        await bob.waitForSelector(".voice.live");
        await alice.waitForSelector(".voice.live");
        const { content, event_id: id } = await liveEvent(one, room);
        await alice.mouse.move(box.x - 150, box.y + 20, { steps: 5 });
        await alice.mouse.up();
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
        const { box } = await press(alice);
        await alice.mouse.move(box.x - 150, box.y + 20, { steps: 3 });
        await alice.mouse.up();
        await alice.waitForSelector("textarea");
        await alice.waitForTimeout(600); // longer than others wait to be told
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
        await alice.mouse.up();
        await alice.waitForSelector(".outgoing", { state: "detached" });
        await arrived(bob, two, room, before + 1);
    });
    await step("what is ended without a connection survives a reload, and is completed", async () => {
        const before = await voices(two, room);
        await press(alice);
        await bob.waitForSelector(".voice.live");
        await alice.route("**/im.parley.voice/live/**", (route) => route.abort());
        await alice.waitForSelector(".live-state.interrupted");
        await alice.mouse.up();
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
        await alice.mouse.up();
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
        await alice.mouse.up();
        await arrived(bob, two, room, before + 1);
        await alice.waitForSelector(".live-notice >> text=Not today");
        await alice.unroute("**/media/v1/create");
        await alice.click(".live-switch");
    });
}
