import type { MatrixEvent, Room } from "matrix-js-sdk";
import { me } from "./session";

/** What is known of a voice message without fetching it. */
export interface Voice {
    event: MatrixEvent;
    /** Milliseconds. */
    duration: number;
    /** Values from 0 to 1; empty if the sender gave none. */
    waveform: number[];
    transcript: string | undefined;
}

/** The voice message in an event, if it is one. */
export function voiceOf(event: MatrixEvent): Voice | undefined {
    const content = event.getContent();
    if (event.isRedacted() || content.msgtype !== "m.audio") return undefined;
    if (!content["org.matrix.msc3245.voice"] && !content["org.matrix.msc3245.voice.v2"]) return undefined;
    const unsigned = (event.getUnsigned() as Record<string, any>)["im.parley.voice"] ?? {};
    const claimed = content["org.matrix.msc1767.audio"] ?? {};
    const raw: number[] = (unsigned.waveform ?? claimed.waveform ?? []).filter((n: unknown) => typeof n === "number");
    const scale = Math.max(0, ...raw) > 256 ? 1024 : 256; // both are in the field
    return {
        event,
        duration: Number(unsigned.duration ?? claimed.duration ?? content.info?.duration ?? 0),
        waveform: raw.slice(0, 400).map((n) => Math.min(1, Math.max(0, n / scale))),
        transcript: unsigned.transcript?.text,
    };
}

/** The events of a room that are shown, oldest first. */
export function shownEvents(room: Room): MatrixEvent[] {
    return room
        .getLiveTimeline()
        .getEvents()
        .concat(room.getPendingEvents())
        .filter((event, i, all) => all.indexOf(event) === i && isShown(event));
}

function isShown(event: MatrixEvent): boolean {
    if (event.isRelation("m.replace") || event.isRelation("m.annotation")) return false;
    switch (event.getType()) {
        case "m.room.message":
        case "m.room.encrypted":
            return true;
        case "m.room.member":
        case "m.room.name":
        case "m.room.topic":
        case "m.room.encryption":
            return event.isState();
        default:
            return false;
    }
}

/** The name of whoever sent an event, as this room knows them. */
export function senderName(event: MatrixEvent): string {
    return event.sender?.name ?? event.getSender() ?? "";
}

export function isMine(event: MatrixEvent): boolean {
    return event.getSender() === me().getUserId();
}

/** Rooms that the person is in, the most recent first. */
export function joinedRooms(): Room[] {
    return me()
        .getVisibleRooms()
        .filter((room) => room.getMyMembership() === "join" && !room.isSpaceRoom())
        .sort((a, b) => lastActive(b) - lastActive(a));
}

export function invitations(): Room[] {
    return me()
        .getRooms()
        .filter((room) => room.getMyMembership() === "invite");
}

function lastActive(room: Room): number {
    return room.getLastActiveTimestamp();
}

/** The last thing said in a room, for the list. */
export function lastMessage(room: Room): MatrixEvent | undefined {
    const events = room.getLiveTimeline().getEvents();
    for (let i = events.length - 1; i >= 0; i--) {
        const type = events[i].getType();
        if ((type === "m.room.message" || type === "m.room.encrypted") && !events[i].isRelation("m.replace")) return events[i];
    }
    return undefined;
}
