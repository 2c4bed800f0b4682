// The servers of the story.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Two federating servers with a person each. */
export async function twoServers(parley, environment) {
    const world = spawn(parley, ["dev", "-json"], { stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, ...environment } });
    const servers = await new Promise((resolve, reject) => {
        let text = "";
        world.stdout.on("data", (chunk) => {
            text += chunk;
            if (text.includes("\n")) resolve(JSON.parse(text).servers);
        });
        world.on("exit", (code) => reject(new Error(`parley dev ended with ${code}`)));
    });
    world.removeAllListeners("exit");
    return { servers, stop: () => world.kill("SIGINT") };
}

/**
 * A server that nobody has an account on, as `go run ./server` makes it, and the link that it greets with. The configuration may depend
 * on the server's address.
 */
export async function freshServer(parley, configuration = () => "") {
    const directory = mkdtempSync(join(tmpdir(), "parley-fresh-"));
    const port = await new Promise((resolve) => {
        const probe = createServer().listen(0, "127.0.0.1", () => {
            const { port } = probe.address();
            probe.close(() => resolve(port));
        });
    });
    const address = `http://127.0.0.1:${port}`;
    writeFileSync(join(directory, "parley.yaml"), configuration(address));
    const server = spawn(parley, [], { cwd: directory, stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, PARLEY_LISTEN: `127.0.0.1:${port}` } });
    const greeting = await new Promise((resolve, reject) => {
        let text = "";
        const read = (chunk) => {
            text += chunk;
            if (text.includes("Next: ")) resolve(text);
        };
        server.stdout.on("data", read);
        server.stderr.on("data", read);
        server.on("exit", (code) => reject(new Error(`parley ended with ${code}: ${text}`)));
    });
    const link = /http\S+#register\S+/.exec(greeting)?.[0];
    server.removeAllListeners("exit");
    const stop = async () => {
        const ended = new Promise((resolve) => server.on("exit", resolve));
        server.kill("SIGINT");
        await ended;
        rmSync(directory, { recursive: true });
    };
    return { link, address, stop };
}

/** Asks a server as one of its people, as a client other than this one may do. */
export async function ask(server, method, path, body, type = "application/json") {
    const headers = { Authorization: `Bearer ${server.users[0].access_token}`, "Content-Type": type };
    const answer = await fetch(server.client_url + path, { method, headers, body: type === "application/json" && body ? JSON.stringify(body) : body });
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    return answer.json();
}

let transaction = 0;

export function send(server, room, content, type = "m.room.message") {
    return ask(server, "PUT", `/_matrix/client/v3/rooms/${encodeURIComponent(room)}/send/${type}/story${transaction++}`, content);
}

/** Sends a recording as a server's first person. */
export async function sendRecording(server, room, recording) {
    const { content_uri: url } = await ask(server, "POST", "/_matrix/media/v3/upload?filename=Voice.ogg", recording, "audio/ogg");
    await send(server, room, { msgtype: "m.audio", body: "Voice.ogg", url, info: { mimetype: "audio/ogg" }, "org.matrix.msc3245.voice": {} });
}

/** A person with many rooms, and one room with many messages, the first of which is `message 0`. Gives that room. */
export async function busyPerson(server, name, password, { rooms, messages }) {
    const body = { username: name, password, auth: { type: "m.login.dummy" } };
    const { access_token } = await ask({ ...server, users: [{}] }, "POST", "/_matrix/client/v3/register", body);
    const theirs = { ...server, users: [{ access_token }] };
    const inParallel = async (count, run) => {
        let next = 0;
        const worker = async () => {
            while (next < count) await run(next++);
        };
        await Promise.all(Array.from({ length: 8 }, worker));
    };
    const { room_id: room } = await ask(theirs, "POST", "/_matrix/client/v3/createRoom", { name: "The long one" });
    await inParallel(rooms - 1, (i) => ask(theirs, "POST", "/_matrix/client/v3/createRoom", { name: `Room ${i}` }));
    await send(theirs, room, { msgtype: "m.text", body: "message 0" });
    await inParallel(messages - 1, (i) => send(theirs, room, { msgtype: "m.text", body: `message ${i + 1} ${"and so on ".repeat(i % 7)}` }));
    return { room };
}

/** How many voice messages there are in a room, as a server has it. A page may have put earlier ones away. */
export async function voices(server, room) {
    const { chunk } = await ask(server, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(room)}/messages?dir=b&limit=500`);
    return chunk.filter((event) => event.content["org.matrix.msc3245.voice"]).length;
}
