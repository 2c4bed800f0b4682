// How long it takes from the press of the button until somebody on another server hears the first sound, and where the time goes:
//
//   npm run delay -- PATH_OF_PARLEY [RUNS]
//
// Prints each run, then the medians and the worst. To compare two versions, take turns; the machine and what else runs on it count for much.
import { desktop, launch, phone, step } from "./browser.mjs";
import { listen, noted, press, split, stations, watch } from "./live.mjs";
import { ask, twoServers } from "./servers.mjs";

const [parley, runs = "5"] = process.argv.slice(2);
const { servers, stop } = await twoServers(parley, {});
const [one, two] = servers;
const { browser, open } = await launch();

async function enter(server, viewport, name, room) {
    const page = await open(server.client_url, viewport);
    await page.fill("input[name=user]", name);
    await page.fill("input[name=password]", server.users[0].password);
    await page.click("button.primary");
    await page.waitForSelector(".sidebar", { state: "attached" });
    await page.goto(`${server.client_url}/#/room/${encodeURIComponent(room)}`);
    await page.waitForSelector(".talk");
    return page;
}

try {
    const { room_id: room } = await ask(one, "POST", "/_matrix/client/v3/createRoom", { invite: [two.users[0].user_id] });
    await ask(two, "POST", `/_matrix/client/v3/join/${encodeURIComponent(room)}?server_name=${encodeURIComponent(one.server_name)}`, {});
    const alice = await enter(one, desktop, "alice", room);
    const bob = await enter(two, phone, "bob", room);
    await alice.click(".live-switch");
    const all = [];
    for (let run = 0; run < Number(runs); run++) {
        await step(`run ${run + 1}`, async () => {
            for (const page of [alice, bob]) {
                await page.reload();
                await page.waitForSelector(".talk");
                await page.click(".page-header h1"); // a page that nobody has touched may not play
            }
            await Promise.all([watch(alice), watch(bob)]);
            await listen(bob);
            const { at } = await press(alice);
            await bob.waitForFunction(() => window.noted.heard);
            await alice.mouse.up();
            await bob.waitForFunction(() => window.noted.ended);
            const times = { ...(await noted(alice)), ...(await noted(bob)) };
            all.push(Object.fromEntries(stations.map((what) => [what, times[what] - at])));
            return split(0, all.at(-1));
        });
    }
    const sorted = (what) => all.map((times) => times[what]).sort((a, b) => a - b);
    const medians = Object.fromEntries(stations.map((what) => [what, sorted(what)[Math.floor(all.length / 2)]]));
    console.log(`medians: ${split(0, medians)}; heard at worst after ${sorted("heard").at(-1)} ms`);
} finally {
    await browser.close();
    stop();
}
