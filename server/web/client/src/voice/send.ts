import type { Room } from "matrix-js-sdk";
import { upload } from "../matrix/attachments";
import { me } from "../matrix/session";
import type { Recording } from "./recorder";

const endings: Record<string, string> = { "audio/ogg": "ogg", "audio/webm": "webm", "audio/mp4": "m4a" };

/** Sends a recording as a voice message, in the format that clients have sent since 2021. docs/voice.md */
export async function sendVoice(room: Room, recording: Recording): Promise<void> {
    const type = recording.blob.type;
    const name = `Voice message.${endings[type] ?? "bin"}`;
    const reference = await upload(me(), recording.blob, name, room.hasEncryptionStateEvent());
    await me().sendMessage(room.roomId, {
        msgtype: "m.audio",
        body: name,
        ...reference,
        info: { duration: recording.duration, mimetype: type, size: recording.blob.size },
        "org.matrix.msc1767.text": name,
        "org.matrix.msc1767.audio": { duration: recording.duration, waveform: recording.waveform },
        "org.matrix.msc3245.voice": {},
        "m.mentions": {},
    } as any);
}
