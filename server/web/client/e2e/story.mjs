// What people do with the web client, in a real browser with a fake microphone, on two federating servers and a fresh one:
//
//   npm run story -- PATH_OF_PARLEY [SCREENSHOT_DIR]
//
// Needs Chromium (CHROMIUM, or /usr/bin/chromium). Ends with status 1 if anything does not work, if a page throws, or if axe
// finds an accessibility fault on any page or dialog, on a phone or a desktop, light or dark.
import { companyAccount } from "./company.mjs";
import { arrived, bytesOf, desktop, fail, failed, go, hold, launch, phone, press, recorded, scrollToStart, slideAway, step, tell, until } from "./browser.mjs";
import { idle, liveVoice } from "./live.mjs";
import { longRecording } from "./recordings.mjs";
import { ask, busyPerson, freshServer, send, sendRecording, twoServers, voices } from "./servers.mjs";
import { speechService } from "./speech.mjs";

const [parley, screenshots] = process.argv.slice(2);
const began = Date.now();

// 23 seconds, which nobody speaks here, are the recording with words to be searched for, thirty a long speech.
const speech = await speechService((seconds) =>
    seconds === 23 ? "The blue lorry comes on Thursday" : seconds >= 30 ? "Once more about the warehouse. ".repeat(20) : seconds === 26 ? "" : `noise of ${seconds} s`,
);
const { servers, stop } = await twoServers(parley, { PARLEY_VOICE_TRANSCRIPTS_ENDPOINT: speech.url, PARLEY_VOICE_LIVE_IDLE: idle });
const [one, two] = servers;
const password = one.users[0].password;
const { browser, open, look } = await launch(screenshots);
const shortRecording = (seconds) => longRecording("../../audio/testdata/speech.ogg", seconds);
const roomOf = (page) => decodeURIComponent(/#\/room\/([^/]+)/.exec(page.url())[1]);

async function signIn(page, name) {
    await page.fill("input[name=user]", name);
    await page.fill("input[name=password]", password);
    await page.click("button.primary");
    await page.waitForSelector(".sidebar", { state: "attached" });
}

async function givePassword(page, given = password) {
    await page.fill("dialog input[type=password]", given);
    await page.click("dialog .primary");
}

async function say(page, text) {
    await page.fill("textarea", text);
    await page.keyboard.press("Enter");
}

/** Opens what can be done with the newest message that has a text. */
async function actOn(page, text) {
    const message = page.locator("article.message", { hasText: text }).last();
    await message.hover();
    await message.locator("button[aria-haspopup=dialog]").click();
    await page.waitForSelector("dialog .menu");
}

async function newcomers() {
    const { link, stop } = await freshServer(parley);
    const start = Date.now();
    try {
        const root = await open(link, desktop);
        await step("the first account is made by the link that the server greets with", async () => {
            await look(root, "register");
            await root.fill("input[name=name]", "Rosa Weber");
            await root.fill("input[name=user]", "rosa");
            await root.fill("input[name=password]", "kurz");
            await root.click("button.primary");
            await root.waitForSelector("input[name=password]:invalid:focus"); // the browser refuses it and leads there
            await root.fill("input[name=password]", "a long password");
            await root.click("button.primary");
            await root.waitForSelector(".sidebar >> text=@rosa:");
            await look(root, "welcome");
        });
        let invitation;
        await step("she invites a colleague to the server", async () => {
            await root.click("a[href='#/settings']");
            await root.click("text=Invite a colleague to this server");
            invitation = await (await root.waitForSelector("#registration-link")).textContent();
            await look(root, "colleagues");
        });
        const tim = await open(invitation, phone, { locale: "de-DE", colorScheme: "dark", hasTouch: true });
        await step("he creates an account, finds her by name, and speaks", async () => {
            await tim.click("text=Ich habe ein Konto");
            await tim.waitForSelector("input[name=user]:focus"); // also the second time
            await tim.click("text=Konto anlegen");
            await tim.waitForSelector("input[name=name]:focus");
            await tim.fill("input[name=name]", "Tim");
            await tim.fill("input[name=user]", "rosa");
            await tim.fill("input[name=password]", "another password");
            await tim.click("button.primary");
            await tim.waitForSelector(".problem >> text=schon jemand");
            await tim.fill("input[name=user]", "tim");
            await tim.click("button.primary");
            await tim.click("text=Neues Gespräch");
            await tim.fill(".people-picker input", "weber");
            await tim.click(".people-picker .row");
            await tim.click("form.form > button.primary");
            await tim.waitForSelector(".timeline");
            await hold(tim, 1000);
            await tim.waitForSelector(".voice");
            await look(tim, "waiting-for-other");
        });
        await step("she accepts, and hears him", async () => {
            await root.click(".invitation .primary");
            await root.click(".voice .play");
            await root.waitForFunction(() => !document.querySelector(".voice .dot"));
            return `${Math.round((Date.now() - start) / 1000)} s after the page was opened`;
        });
        await Promise.all([root.context().close(), tim.context().close()]);
    } finally {
        await stop();
    }
}

/** With many rooms and messages, and without a mouse. */
async function busy() {
    const { room } = await busyPerson(one, "carol", password, { rooms: 200, messages: 2000 });
    const carol = await open(one.client_url, desktop);
    const press = async (key, until) => {
        for (let i = 0; i < 40; i++) {
            await carol.keyboard.press(key);
            if (await carol.evaluate((selector) => document.activeElement.matches(selector), until)) return;
        }
        throw new Error(`${key} does not lead to ${until}`);
    };
    await step("by keyboard alone: sign in, open a conversation, write, act on a message", async () => {
        await carol.waitForSelector("input[name=user]:focus");
        await carol.keyboard.type("carol");
        await carol.keyboard.press("Tab");
        await carol.keyboard.type(password);
        const start = Date.now();
        await carol.keyboard.press("Enter");
        await carol.waitForSelector(".rows .row");
        const signedIn = Date.now() - start;
        await press("Tab", ".rows a.row");
        await carol.keyboard.press("Enter");
        await carol.waitForSelector("textarea:focus");
        await carol.keyboard.type("Without a mouse");
        await carol.keyboard.press("Enter");
        await carol.waitForSelector("article >> text=Without a mouse");
        await press("Shift+Tab", ".timeline, .timeline *");
        await carol.keyboard.press("ArrowUp");
        await carol.keyboard.press("Enter");
        await carol.waitForSelector("dialog .menu");
        await carol.keyboard.press("Escape");
        await carol.waitForSelector("dialog", { state: "detached" });
        await carol.waitForSelector("article:focus");
        return `200 rooms ${signedIn} ms after the password`;
    });
    await step("2,000 messages are scrolled through", async () => {
        if (roomOf(carol) !== room) throw new Error("another room is open");
        const frames = await scrollToStart(carol, ".timeline", ".hint.centre");
        await carol.waitForSelector("article >> text=message 0");
        const kept = await carol.locator("article").count();
        if (kept > 300) throw new Error(`${kept} messages are kept on the page`);
        return `frames of ${frames.median} ms, 95 % within ${frames.p95} ms`;
    });
    await step("of many things found there are more", async () => {
        await go(carol, `#/search`);
        await carol.fill(".search-form input", "message");
        await carol.keyboard.press("Enter");
        await carol.waitForFunction(() => document.querySelectorAll(".cards li").length === 10);
        await carol.click(".scroll > button.link");
        await carol.waitForFunction(() => document.querySelectorAll(".cards li").length === 20);
    });
    await carol.context().close();
}

async function story() {
    await newcomers();
    await busy();
    await companyAccount({ parley, open, look });
    const alice = await open(one.client_url, desktop, { colorScheme: "dark" });
    const bob = await open(two.client_url, phone, { locale: "de-DE" });
    await look(alice, "login");
    await step("a wrong password is refused", async () => {
        await alice.fill("input[name=user]", "alice");
        await alice.fill("input[name=password]", "wrong");
        await alice.click("button.primary");
        await alice.waitForSelector(".problem >> text=not right");
    });
    await signIn(alice, "alice");
    await signIn(bob, "bob");
    await look(bob, "home");

    await step("people are found: here by name, elsewhere by address, and what is nobody", async () => {
        await go(alice, `#/new`);
        const status = alice.locator(".people-picker [role=status]");
        await alice.fill(".people-picker input", "zzz");
        await status.filter({ hasText: "Nobody found" }).waitFor();
        await look(alice, "people-none");
        await alice.fill(".people-picker input", two.users[0].user_id.replace("@bob", "@nobody"));
        await status.filter({ hasText: "knows nobody" }).waitFor();
        await alice.fill(".people-picker input", "@bob:127.0.0.1:1");
        await alice.waitForSelector(".people-picker .doubt >> text=does not answer");
        await look(alice, "people-silent");
        await alice.fill(".people-picker input", two.users[0].user_id);
        await alice.waitForSelector(`.people-picker .row:has-text("${two.users[0].user_id}") .tag`);
        await look(alice, "people-found");
    });
    const converse = async (encrypted) => {
        await go(alice, `#/new`);
        await alice.fill(".people-picker input", two.users[0].user_id);
        await alice.click(".people-picker .row");
        if (encrypted) {
            await alice.waitForSelector("text=You are talking with");
            await alice.check(".switch input");
            await look(alice, "new");
        }
        await alice.click("form.form > button.primary");
        await alice.waitForSelector(".timeline");
        await go(bob, `#/`);
        await bob.waitForSelector(".invitation .primary");
        if (!encrypted) await look(bob, "invitation");
        await bob.click(".invitation .primary");
        await bob.waitForSelector(".timeline");
    };
    await step("alice starts a conversation and bob, on another server, accepts", () => converse(false));
    const room = roomOf(alice);
    await look(alice, "room-empty");
    await step("text arrives", async () => {
        await say(alice, "Hello Bob");
        await bob.waitForSelector(".timeline >> text=Hello Bob");
    });
    await step("a voice message arrives", async () => {
        const released = await hold(alice, 1500);
        await bob.waitForSelector(".voice .dot");
        return `${Date.now() - released} ms after the release`;
    });
    await step("sliding to the left cancels", async () => {
        const { box } = await press(alice);
        await recorded(alice, 600);
        await look(alice, "recording");
        await slideAway(alice, box);
        await alice.waitForSelector("textarea");
    });
    await step("by keyboard: Enter starts, Enter sends", async () => {
        await alice.focus(".talk");
        await alice.keyboard.press("Enter");
        await alice.waitForSelector(".recorder .accent:focus");
        await recorded(alice, 1000);
        await look(alice, "recording-locked");
        await alice.keyboard.press("Enter");
        await arrived(bob, two, room, 2); // what was cancelled before is not among them
        await alice.waitForSelector(".talk:focus");
        await alice.keyboard.press("Enter");
        await alice.waitForSelector(".recorder .accent:focus");
        await alice.keyboard.press("Escape"); // discards it
        await alice.waitForSelector("textarea");
    });

    const bobsTablet = await open(two.client_url, phone);
    await step("bob's second device has both in its inbox", async () => {
        await signIn(bobsTablet, "bob");
        await go(bobsTablet, `#/inbox`);
        await bobsTablet.waitForFunction(() => document.querySelectorAll(".cards .voice").length === 2);
        await look(bobsTablet, "inbox");
    });
    await step("bob lets senders know what he has played", async () => {
        await go(bobsTablet, `#/settings`);
        const stored = bobsTablet.waitForResponse((answer) => answer.url().includes("played_receipts") && answer.ok());
        await bobsTablet.check("label:has-text('Senders may know') input");
        await stored;
        await go(bobsTablet, `#/inbox`);
    });
    await step("playing one goes on to the next", async () => {
        await bob.click(".voice .play");
        await bob.waitForFunction(() => document.querySelectorAll(".voice .dot").length === 0);
    });
    await step("the second device learns that they were played", () => bobsTablet.waitForSelector(".cards .voice", { state: "detached" }));
    await step("and so does alice", () => alice.waitForFunction(() => document.querySelectorAll(".played-by").length === 2));
    await look(bobsTablet, "inbox-empty");
    await step("speed, seek, stop and go on where one stopped", async () => {
        await bob.waitForFunction(() => !document.querySelector(".voice .speed")); // the first round has ended
        await sendRecording(one, room, shortRecording(22)); // long enough not to end meanwhile
        await arrived(bob, two, room, 3);
        const voice = bob.locator(".voice").last();
        const position = async () => Number(await voice.locator(".voice-track input").inputValue());
        await voice.locator(".voice-track input").fill("9000");
        await voice.locator(".play").click();
        await until(async () => (await position()) > 9000, () => "it does not play");
        await voice.locator(".speed").click();
        const stored = bob.waitForResponse((answer) => answer.url().includes("/played/") && (answer.request().postDataJSON()?.position ?? 0) > 9000 && answer.ok());
        await voice.locator(".play").click(); // pauses
        await stored;
        const left = await position();
        await bob.reload();
        await bob.waitForFunction((left) => Number([...document.querySelectorAll(".voice-track input")].at(-1)?.value) >= left - 100, left); // it moves in tenths of a second
        return `left at ${left} ms`;
    });

    await step("an answer, a reaction, an edit, a deletion, and that it was read", async () => {
        await say(bob, "Where are you?");
        await alice.waitForSelector(".timeline >> text=Where are you?");
        const question = alice.locator("article.message", { hasText: "Where are you?" });
        await question.hover();
        await question.locator("[aria-label=Reply]").click();
        await say(alice, "In the warehouse");
        await bob.waitForSelector(".quotation >> text=Where are you?");
        await actOn(bob, "In the warehouse");
        await look(bob, "actions");
        await bob.click("dialog .quick button");
        await alice.waitForSelector(".reactions button");
        await actOn(alice, "In the warehouse");
        await alice.click("dialog >> text=Edit");
        await alice.waitForSelector(".about");
        await say(alice, "In the big warehouse");
        await bob.waitForSelector(".timeline >> text=In the big warehouse");
        await say(alice, "Nonsense");
        await bob.waitForSelector(".timeline >> text=Nonsense");
        await actOn(alice, "Nonsense");
        await alice.click("dialog .menu .danger");
        await alice.waitForSelector("dialog .destructive");
        await look(alice, "confirm");
        await alice.click("dialog .destructive");
        await bob.waitForSelector(".timeline >> text=Nachricht gelöscht");
        await bob.evaluate(() => window.dispatchEvent(new Event("focus")));
        await alice.waitForSelector(".read-by");
    });
    await step("a picture and a file arrive", async () => {
        const picture = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64");
        await alice.setInputFiles("input[type=file]", { name: "red.png", mimeType: "image/png", buffer: picture });
        await bob.waitForSelector(".picture[src^=blob]");
        await alice.setInputFiles("input[type=file]", { name: "A list with a very long name that goes on and on and does not end.txt", mimeType: "text/plain", buffer: Buffer.from("1, 2, 3") });
        const [saved] = await Promise.all([bob.waitForEvent("download"), bob.click(".file")]);
        if (!saved.suggestedFilename().startsWith("A list")) throw new Error("the wrong file");
    });
    await step("somebody types", async () => {
        await bob.fill("textarea", "hm");
        await alice.waitForSelector(".typing");
        await bob.fill("textarea", "");
    });

    await step("what was said is written down, and appears under the message", async () => {
        await sendRecording(one, room, shortRecording(23));
        await bob.waitForSelector(".transcript >> text=The blue lorry comes on Thursday");
        await sendRecording(one, room, shortRecording(40));
        await bob.click(".transcript >> text=Alles zeigen");
        await sendRecording(one, room, shortRecording(26));
        await bob.waitForSelector(".transcript.faint >> text=nichts zu verstehen");
        await look(bob, "transcripts");
    });
    await step("the sender corrects it", async () => {
        const message = alice.locator(".transcript", { hasText: "lorry" });
        await message.locator("text=Correct the text").click();
        await alice.waitForSelector("dialog textarea:focus");
        await look(alice, "correction");
        await alice.fill("dialog textarea", "The blue lorry comes on Friday");
        await alice.click("dialog .primary");
        await alice.waitForSelector(".transcript >> text=Friday");
    });
    await step("search finds what was said, and what was written", async () => {
        await go(alice, `#/search`);
        await alice.waitForSelector(".search-form input:focus");
        await look(alice, "search-empty");
        await alice.fill(".search-form input", "lorry friday");
        await alice.keyboard.press("Enter");
        await alice.waitForSelector(".cards .voice");
        await alice.fill(".search-form input", "Hello");
        await alice.keyboard.press("Enter");
        await alice.waitForSelector(".cards .text >> text=Hello Bob");
        await look(alice, "search");
        await alice.click(".cards a");
        await alice.waitForSelector(".found >> text=Hello Bob");
    });
    await step("a long message is heard at 80 % without fetching it whole", async () => {
        const recording = shortRecording(1500);
        await sendRecording(one, room, recording);
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

    await liveVoice({ alice, bob, one, two, room, look });
    await step("what is recorded without a connection survives a reload, and goes out by itself", async () => {
        await go(alice, `#/room/${encodeURIComponent(room)}`);
        await alice.waitForSelector(".talk");
        const before = await voices(two, room);
        await alice.route("**/_matrix/**", (route) => route.abort());
        await hold(alice, 800);
        await alice.waitForSelector(".outgoing-problem");
        await look(alice, "offline");
        // This one goes before the other from now on: there is no moment in which it could get through.
        await alice.route("**/media/v3/upload*", (route) => route.fulfill({ status: 429, json: { errcode: "M_LIMIT_EXCEEDED", error: "Too many", retry_after_ms: 600_000 } }));
        await alice.unroute("**/_matrix/**");
        await alice.reload();
        await alice.waitForSelector(".outgoing-problem >> text=600 s");
        await look(alice, "busy");
        await alice.unroute("**/media/v3/upload*");
        await alice.click(".outgoing-problem .primary");
        await alice.waitForSelector(".outgoing", { state: "detached" });
        await arrived(bob, two, room, before + 1);
    });
    await step("a refused microphone is explained", async () => {
        const refused = await open(one.client_url, phone);
        await refused.addInitScript(() => {
            navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("Permission denied", "NotAllowedError"));
        });
        await signIn(refused, "alice");
        await go(refused, `#/room/${encodeURIComponent(room)}`);
        await refused.reload();
        await press(refused);
        await refused.waitForSelector(".problem >> text=does not let this page");
        await refused.mouse.up();
        await look(refused, "microphone-refused");
        await refused.context().close();
    });
    await step("a recording ends at the room's limit", async () => {
        const limit = `/_matrix/client/v3/rooms/${encodeURIComponent(room)}/state/im.parley.voice.limit/`;
        await ask(one, "PUT", limit, { max_duration: 2000 });
        await alice.waitForSelector(".notice >> text=longest voice message");
        const before = await voices(two, room);
        await hold(alice, 4000);
        await arrived(bob, two, room, before + 1);
        await alice.waitForSelector(".live-notice:not(:empty)");
        await ask(one, "PUT", limit, {});
    });
    await step("long names and text from right to left", async () => {
        const long = "The conversation about everything that has to be done before the great warehouse can be opened again";
        const { room_id: id } = await ask(one, "POST", "/_matrix/client/v3/createRoom", { name: long, invite: [two.users[0].user_id] });
        await send(one, id, { msgtype: "m.text", body: "مرحبا، هل وصلت الشحنة؟ (ABC-123)" });
        await send(one, id, { msgtype: "m.text", body: "A-word-that-does-not-end-".repeat(12) });
        await go(alice, `#/room/${encodeURIComponent(id)}`);
        await alice.waitForSelector(".timeline >> text=ABC-123");
        await look(alice, "long");
        await alice.click("[aria-label='About this conversation']");
        await look(alice, "details");
        await go(bob, `#/room/${encodeURIComponent(id)}`);
        await bob.waitForSelector(".page .invitation");
        await look(bob, "invitation-page");
        await bob.click(".page .invitation button:not(.primary)");
        await bob.waitForSelector(".page >> text=nicht");
    });

    await step("an encrypted conversation", () => converse(true));
    await step("encrypted text arrives", async () => {
        await say(alice, "Between us");
        await bob.waitForSelector(".timeline >> text=Between us");
    });
    await step("there is no live voice in it", async () => {
        if (await alice.locator(".live-switch").count()) throw new Error("it is offered");
    });
    await step("encrypted voice arrives and plays", async () => {
        await hold(alice, 1000);
        await bob.waitForSelector(".voice");
        await bob.click(".voice .play");
        await bob.waitForFunction(() => document.querySelector(".voice") && !document.querySelector(".voice .dot"));
    });
    await step("key backup", async () => {
        await go(alice, `#/settings`);
        await alice.click("text=Set up key backup");
        await alice.waitForSelector("#recovery-key");
        await look(alice, "settings");
    });
    const alicesPhone = await open("about:blank", phone);
    await step("a second device signs in by code", async () => {
        await alice.click("text=Sign in another device");
        await alice.waitForSelector("dialog input[type=password]:focus");
        await look(alice, "password");
        await givePassword(alice, "wrong");
        await alice.waitForSelector("dialog .problem");
        await givePassword(alice);
        await alice.waitForSelector("#device-link", { state: "attached" });
        await look(alice, "code");
        await alicesPhone.goto(await alice.getAttribute("#device-link", "href"));
        await alicesPhone.waitForSelector(".sidebar", { state: "attached" });
    });
    await step("it is confirmed by comparing pictures", async () => {
        await go(alicesPhone, `#/settings`);
        await alicesPhone.click("text=Confirm from another device");
        await alice.click("dialog >> text=Compare");
        await Promise.all([alice.waitForSelector(".emoji"), alicesPhone.waitForSelector(".emoji")]);
        await look(alicesPhone, "verify");
        await alicesPhone.click("text=They are the same");
        await alice.click("text=They are the same");
        await alicesPhone.waitForSelector("dialog >> text=Confirmed");
    });
    await step("a device is signed out from another one", async () => {
        await alice.click("dialog .link");
        await alice.reload();
        const { deviceId } = await alicesPhone.evaluate(() => JSON.parse(localStorage.getItem("parley.session")));
        await alice.click(`.devices li[title="${deviceId}"] button`);
        await givePassword(alice);
        await alice.waitForSelector(`.devices li[title="${deviceId}"]`, { state: "detached" });
        await alicesPhone.reload(); // it would learn it with its next request
        await alicesPhone.waitForSelector("main.login");
    });
}

try {
    await story();
} catch (error) {
    if (!error.told) {
        fail("the story", error.stack);
        await tell();
    }
} finally {
    await browser.close();
    stop();
    speech.close();
}
console.log(`${failed() ? `${failed()} failures` : "all well"} after ${Math.round((Date.now() - began) / 1000)} s`);
process.exit(failed() ? 1 : 0);
