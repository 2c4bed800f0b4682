import type { Room } from "matrix-js-sdk";
import { outbox, type Spoken } from "../matrix/outbox";
import type { Recording } from "./recorder";

const endings: Record<string, string> = { "audio/ogg": "ogg", "audio/webm": "webm", "audio/mp4": "m4a" };

/** Sends a recording as a voice message, in the format that clients have sent since 2021. docs/voice.md */
export async function sendVoice(room: Room, recording: Recording, relation: Record<string, unknown> = {}, spoken?: Spoken): Promise<void> {
    const type = recording.blob.type;
    const name = `Voice message.${endings[type] ?? "bin"}`;
    const content = {
        msgtype: "m.audio",
        body: name,
        info: { duration: recording.duration, mimetype: type, size: recording.blob.size },
        "org.matrix.msc1767.text": name,
        "org.matrix.msc1767.audio": { duration: recording.duration, waveform: recording.waveform },
        "org.matrix.msc3245.voice": {},
        "m.mentions": {},
        ...relation,
    };
    await outbox.send(room, recording.blob, name, content, spoken);
}
