import type { MatrixEvent, Room, RoomNameState } from "matrix-js-sdk";
import { t } from "../i18n";
import { isLive, vanished } from "../voice/live";
import { transcripts, type Transcript } from "../voice/transcripts";
import { localpart } from "./people";
import { me } from "./session";

/** What is known of a voice message without fetching it. */
export interface Voice {
    event: MatrixEvent;
    /** Milliseconds. */
    duration: number;
    /** Values from 0 to 1; empty if the sender gave none. */
    waveform: number[];
    transcript: Transcript | undefined;
    /** It is still being spoken, so that nobody knows how long it is. */
    live: boolean;
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
        transcript: transcripts.of(event),
        live: isLive(event),
    };
}

/** The events of a room that are shown, oldest first. */
export function shownEvents(room: Room): MatrixEvent[] {
    return [...new Set(room.getLiveTimeline().getEvents().concat(room.getPendingEvents()))].filter(isShown);
}

function isShown(event: MatrixEvent): boolean {
    if (event.isRelation("m.replace") || event.isRelation("m.annotation") || vanished(event)) return false;
    switch (event.getType()) {
        case "m.room.message":
        case "m.room.encrypted":
            return true;
        case "m.room.member":
        case "m.room.name":
        case "m.room.topic":
        case "m.room.encryption":
        case "im.parley.voice.limit":
            return event.isState();
        default:
            return false;
    }
}

/** The name of whoever sent an event, as this room knows them. */
export function senderName(event: MatrixEvent): string {
    return shortName(event.sender?.name ?? event.getSender() ?? "");
}

/** A name as people say it: who has set none is called by the first part of their address. */
export function shortName(name: string): string {
    return localpart(name);
}

/** What a conversation without a name is called. */
export function generatedName(_room: string, state: RoomNameState): string | null {
    if ("name" in state) return null; // it has one
    if ("names" in state && state.names.length > 0) {
        const names = state.names.map(shortName);
        const others = state.count - 1 - names.length;
        if (others > 0) return t("rooms.namedAndOthers", { names: names.join(", "), count: others });
        return names.join(", ");
    }
    const before = "oldName" in state ? state.oldName : undefined;
    return before ? t("rooms.emptyWas", { name: shortName(before) }) : t("rooms.nobody");
}

/** The text of a message, without the quotation that older clients put before an answer. */
export function bodyOf(event: MatrixEvent): string {
    const body = String(event.getContent().body ?? "");
    return event.replyEventId ? body.replace(/^(> .*\n)+\n/, "") : body;
}

/** One line about a message, for lists and quotations. */
export function summary(event: MatrixEvent): string {
    const voice = voiceOf(event);
    if (event.isRedacted()) return t("room.redacted");
    if (event.isDecryptionFailure() || event.getType() === "m.room.encrypted") return t("room.unreadable");
    if (voice?.live) return isMine(event) ? t("live.you") : t("live.speaking", { name: senderName(event) });
    if (voice) return `▶ ${t("voice.title")}${voice.transcript?.text ? ` · ${voice.transcript.text}` : ""}`;
    if (event.getContent().msgtype === "m.image") return t("room.picture");
    return bodyOf(event);
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
        if ((type === "m.room.message" || type === "m.room.encrypted") && !events[i].isRelation("m.replace") && !vanished(events[i])) return events[i];
    }
    return undefined;
}
