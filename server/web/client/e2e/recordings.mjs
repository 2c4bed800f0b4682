// Recordings that the story needs, made of a short one.
import { readFileSync } from "node:fs";

const crcTable = Array.from({ length: 256 }, (_, i) => {
    let r = i << 24;
    for (let bit = 0; bit < 8; bit++) r = r & 0x80000000 ? (r << 1) ^ 0x04c11db7 : r << 1;
    return r >>> 0;
});

function crc(bytes) {
    let r = 0;
    for (const b of bytes) r = ((r << 8) ^ crcTable[((r >>> 24) ^ b) & 0xff]) >>> 0;
    return r;
}

/** The packets of an Ogg file whose packets do not cross pages more than pages allow. */
function packets(file) {
    const all = [];
    let part = [];
    for (let at = 0; at < file.length; ) {
        const segments = file.subarray(at + 27, at + 27 + file[at + 26]);
        at += 27 + segments.length;
        for (const size of segments) {
            part.push(file.subarray(at, at + size));
            at += size;
            if (size < 255) {
                all.push(Buffer.concat(part));
                part = [];
            }
        }
    }
    return all;
}

function page(sequence, flags, granule, content) {
    const lacing = content.flatMap((p) => [...Array(Math.floor(p.length / 255)).fill(255), p.length % 255]);
    const head = Buffer.alloc(27);
    head.write("OggS");
    head[5] = flags;
    head.writeBigInt64LE(BigInt(granule), 6);
    head.writeUInt32LE(7, 14);
    head.writeUInt32LE(sequence, 18);
    head[26] = lacing.length;
    const whole = Buffer.concat([head, Buffer.from(lacing), ...content]);
    whole.writeUInt32LE(crc(whole), 22);
    return whole;
}

/** A recording of so many seconds, with what is said in the given one (Ogg Opus, frames of 20 ms) over and over. */
export function longRecording(path, seconds) {
    const [head, tags, ...speech] = packets(readFileSync(path));
    const pages = [page(0, 2, 0, [head]), page(1, 0, 0, [tags])];
    const count = seconds * 50;
    for (let from = 0; from < count; from += 50) {
        const content = Array.from({ length: Math.min(50, count - from) }, (_, i) => speech[(from + i) % speech.length]);
        const last = from + content.length === count;
        pages.push(page(pages.length, last ? 4 : 0, (from + content.length) * 960, content));
    }
    return Buffer.concat(pages);
}
