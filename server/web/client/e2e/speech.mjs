// A stand-in for a speech service with OpenAI's interface: what it hears is how long the recording is.
import { createServer } from "node:http";

/** Starts it. It answers with the words for the length of the WAV file it gets, in whole seconds, so that a wrong file shows. */
export async function speechService(wordsFor) {
    let asked = 0;
    const server = createServer(async (request, response) => {
        const parts = [];
        for await (const part of request) parts.push(part);
        const body = Buffer.concat(parts);
        const at = body.indexOf("RIFF");
        if (request.url !== "/v1/audio/transcriptions" || at < 0) {
            response.writeHead(400).end();
            return;
        }
        asked++;
        const samples = body.readUInt32LE(body.indexOf("data", at) + 4) / 2;
        const text = wordsFor(Math.round(samples / body.readUInt32LE(at + 24)));
        response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify({ text, language: "english" }));
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    return { url: `http://127.0.0.1:${server.address().port}`, asked: () => asked, close: () => server.close() };
}
