import { signal } from "@preact/signals";
import { ClientEvent, Method, RoomEvent, type MatrixClient, type MatrixEvent, type Room } from "matrix-js-sdk";
import { problem, retryAfter, unreachable } from "../matrix/problem";
import { forgetWithSession, me, revision } from "../matrix/session";
import { liveType } from "./recorder";

// Speaking while others listen. docs/voice.md, "Listening while they speak"

/** In an event's content: it is being spoken. In that of a redaction: it was taken back before it was finished. */
export const marker = "im.parley.voice.live";
const prefix = "/_matrix/client/unstable/im.parley.voice";
const chosenKey = "parley.live";

/**
 * So long after the press others are told, so that a slip of the finger is not heard; while the finger slides away they are not told at
 * all. What is said meanwhile is on the server by then. Milliseconds.
 */
const grace = 250;
/** The longest wait for the answer to one request. Milliseconds. */
const patience = 30_000;
/** What is behind after an outage is caught up with in parts of so many bytes. */
const part = 256 * 1024;

/** A recording that others can hear while it grows: all that must be known to go on with it, even after a reload. */
export interface Live {
    room: string;
    /** The file that grows. */
    url: string;
    /** The transaction that sends the event: it may be tried again and there is still only one. */
    transaction: string;
    content: Record<string, unknown>;
    type: string;
    /** The event, once it is known to be sent. */
    event?: string;
    /** The bytes that the server has for certain. */
    sent: number;
}

/** Whether what the server refused may work later. */
export function passing(error: any): boolean {
    return unreachable(error) || retryAfter(error) !== undefined || error?.name === "TimeoutError";
}

/** Whether the server offers it at all; undefined until that is known. */
const offered = signal<boolean | undefined>(undefined);
/** The rooms in which this person wants it, on this device. */
const chosen = signal(new Set<string>(JSON.parse(localStorage.getItem(chosenKey) ?? "[]") as string[]));
/** What is said through this page now. */
export const speaking = signal<LiveSpeech | null>(null);
/** What the person should know of the last attempt, and in which room. */
export const notice = signal({ room: "", text: "" });

/** Live messages that are known not to be finished. */
const unfinished = new Set<string>();
/** Live messages that were taken back before they were finished. */
const takenBack = new Set<string>();

/** Learns whether the server offers it, and follows which live messages are finished or taken back. */
export async function watchLive(client: MatrixClient): Promise<void> {
    forgetWithSession(async () => localStorage.removeItem(chosenKey));
    const learn = (event: MatrixEvent): void => {
        const replaced = event.isRelation("m.replace") && event.getRelation()?.event_id;
        if (replaced) unfinished.delete(replaced);
        else if (isLive(event)) unfinished.add(event.getId()!);
    };
    for (const room of client.getRooms()) room.getLiveTimeline().getEvents().forEach(learn);
    client.on(RoomEvent.Timeline, learn);
    client.on(RoomEvent.Redaction, (redaction: MatrixEvent) => {
        const id = redaction.event.redacts ?? redaction.getContent().redacts;
        if (!id || !unfinished.delete(id)) return;
        takenBack.add(id);
        revision.value++;
    });
    const ask = async (): Promise<void> => {
        const [capabilities, versions] = await Promise.all([client.getCapabilities() as Promise<Record<string, any>>, client.getVersions()]);
        offered.value = capabilities[marker]?.enabled === true || versions.unstable_features?.[marker] === true;
    };
    try {
        await ask();
    } catch (error) {
        console.warn("whether there is live voice", error);
        client.once(ClientEvent.Sync, () => void ask().catch(() => undefined));
    }
}

/** Whether an event is a voice message that is still being spoken. */
export function isLive(event: MatrixEvent): boolean {
    return !event.isRedacted() && event.getContent()[marker] !== undefined && !event.isRelation("m.replace");
}

/** Whether an event's edit is the server's word that a live message is complete, and no change of what was said. */
export function completed(event: MatrixEvent): boolean {
    return event.getOriginalContent()[marker] !== undefined;
}

/** Whether an event was a live message that was taken back before it was finished. Nothing is shown of it. */
export function vanished(event: MatrixEvent): boolean {
    if (!event.isRedacted()) return false;
    return takenBack.has(event.getId() ?? "") || event.getUnsigned().redacted_because?.content?.[marker as "reason"] !== undefined;
}

/** The server must be able to read along, so not where it is encrypted; and the browser must be able to record so. */
function suits(room: Room): boolean {
    return !room.hasEncryptionStateEvent() && liveType() !== undefined;
}

/** Whether one can be heard in a room while one speaks. */
export function possible(room: Room): boolean {
    return offered.value === true && suits(room);
}

/** Whether this person wants to be heard in a room while they speak. */
export function wanted(room: Room): boolean {
    // Chosen is what was offered. Just after the page was opened that is not known anew, but somebody may speak already.
    return offered.value !== false && suits(room) && chosen.value.has(room.roomId);
}

export function want(room: Room, on: boolean): void {
    const rooms = new Set(chosen.value);
    if (on) rooms.add(room.roomId);
    else rooms.delete(room.roomId);
    chosen.value = rooms;
    localStorage.setItem(chosenKey, JSON.stringify([...rooms]));
    if (on) prepareLive();
}

/** A place for a recording at the server. */
interface Place {
    content_uri: string;
    /** When it ends unless something has come. Milliseconds since 1970. */
    unused_expires_at?: number;
}

const placeKey = "parley.live.place";
/** A place that is being made. */
let making: Promise<void> | undefined;

function create(): Promise<Place> {
    return me().http.authedRequest(Method.Post, "/create", undefined, {}, { prefix: "/_matrix/media/v1", localTimeoutMs: patience });
}

/** The place that was made before it is needed. It outlives the page: a person may have only a few that are unused. */
function keptPlace(): Place | undefined {
    const { user, ...place } = JSON.parse(localStorage.getItem(placeKey) ?? "{}") as Partial<Place> & { user?: string };
    const soon = Date.now() + 60_000;
    return user === me().getUserId() && place.content_uri && (place.unused_expires_at ?? soon) >= soon ? (place as Place) : undefined;
}

/** Has a place for the next recording made, if there is none. */
export function prepareLive(): void {
    if (making || keptPlace()) return;
    making = create()
        .then(
            (place) => localStorage.setItem(placeKey, JSON.stringify({ user: me().getUserId(), ...place })),
            (error) => console.warn("a place for live voice", error),
        )
        .finally(() => (making = undefined));
}

async function takePlace(): Promise<string> {
    await making;
    const { content_uri: url } = keptPlace() ?? (await create());
    localStorage.removeItem(placeKey);
    return url;
}

function pathOf(live: Live): string {
    const [, server, id] = /^mxc:\/\/([^/]+)\/([^/]+)$/.exec(live.url) ?? [];
    if (!id) throw new Error(`the server made a place without an address: ${live.url}`);
    return `/live/${encodeURIComponent(server)}/${encodeURIComponent(id)}`;
}

/** Sends the event, if that was not done. */
async function announce(live: Live, abortSignal?: AbortSignal): Promise<void> {
    if (live.event) return;
    const path = `/rooms/${encodeURIComponent(live.room)}/send/m.room.message/${encodeURIComponent(live.transaction)}`;
    const answer = await me().http.authedRequest<{ event_id: string }>(Method.Put, path, undefined, live.content, { localTimeoutMs: patience, abortSignal });
    live.event = answer.event_id;
    revision.value++;
}

/** Gives the server what it lacks of a recording, up to a part. */
async function append(live: Live, recording: Blob, end: boolean, abortSignal?: AbortSignal): Promise<void> {
    const to = Math.min(recording.size, live.sent + part);
    const query = { offset: String(live.sent), ...(end && to === recording.size ? { end: "true" } : {}) };
    const headers = { "Content-Type": live.type };
    // Sent as bytes, not as a Blob: the type of a Blob would take the place of the header in some browsers.
    const body = (await recording.slice(live.sent, to).arrayBuffer()) as unknown as BodyInit;
    try {
        const answer = await me().http.authedRequest<{ size: number }>(Method.Put, pathOf(live), query, body, { prefix, headers, localTimeoutMs: patience, abortSignal });
        live.sent = answer.size;
        if (end && query.end && answer.size !== recording.size) throw new Error(`the server ended it at ${answer.size} of ${recording.size} bytes`);
    } catch (error: any) {
        const size = error?.httpStatus === 409 ? error.data?.size : undefined;
        if (!Number.isInteger(size) || size > recording.size || size === live.sent) throw error;
        live.sent = size; // it tells where to go on
    }
}

/** Gives the server all of a recording that it lacks, and ends it. What throws is passing, or the recording has to go another way. */
export async function finishLive(live: Live, recording: Blob): Promise<void> {
    await announce(live);
    do {
        await append(live, recording, true);
    } while (live.sent < recording.size);
}

/** Takes back what was spoken, on every server. */
export async function takeBack(live: Live): Promise<void> {
    try {
        await me().http.authedRequest(Method.Delete, pathOf(live), undefined, undefined, { prefix, localTimeoutMs: patience });
    } catch (error) {
        if (passing(error)) throw error;
        // The server has ended it by itself: it is an ordinary message by now.
        if (live.event) await remove(live.room, live.event);
    }
}

/** Redacts a live message so that no trace of it is shown. */
export async function remove(room: string, event: string): Promise<void> {
    const path = `/rooms/${encodeURIComponent(room)}/redact/${encodeURIComponent(event)}/${encodeURIComponent(me().makeTxnId())}`;
    await me().http.authedRequest(Method.Put, path, undefined, { [marker]: {} });
}

/** One thing that is said while others listen, from the press of the button to its release. */
export class LiveSpeech {
    /**
     * Soon: nobody has been told yet. On: others hear it. Interrupted: the server cannot be reached, and gets the rest as soon as it can.
     * Off: it cannot be live, and goes out as an ordinary message.
     */
    readonly state = signal<"soon" | "on" | "interrupted" | "off">("soon");
    /** What is known of it once it has begun. */
    live: Live | undefined;
    /** Why it is off. */
    problem = "";
    /** The server takes no more: the longest allowed time is over. */
    readonly full = signal(false);

    #chunks: Blob[] = [];
    #tell = (): void => undefined;
    /** When others are to be told, or it is over. */
    #due = new Promise<void>((resolve) => (this.#tell = resolve));
    #early = true;
    #hesitates = false;
    #timer: number;
    #running: Promise<unknown> | undefined;
    #over = new AbortController();
    #hung = new AbortController();
    #wake = (): void => undefined;

    /** The relation is what the message answers to. */
    constructor(
        readonly room: Room,
        readonly relation: Record<string, unknown>,
    ) {
        prepareLive();
        this.#timer = window.setTimeout(() => {
            this.#early = false;
            this.hesitate(this.#hesitates);
        }, grace);
        speaking.value = this;
    }

    /** While the person may be about to take it back, nobody who was not told yet is told. */
    hesitate(hesitates: boolean): void {
        this.#hesitates = hesitates;
        if (!hesitates && !this.#early) this.#tell();
    }

    /** Takes the next part of the recording. */
    take(chunk: Blob): void {
        if (chunk.size === 0) return;
        this.#chunks.push(chunk);
        if (!this.#over.signal.aborted) this.#running ??= this.#run();
        this.#wake();
    }

    async #run(): Promise<void> {
        if (!(await this.#persist(async () => (this.live ??= await this.#describe())))) return;
        const live = this.live!;
        // The event and the sound do not wait for each other.
        const told = this.#due
            .then(() => this.#persist(() => announce(live, this.#hung.signal)))
            .then((done) => {
                if (done && this.state.value !== "off") this.state.value = "on";
            });
        while (!this.#over.signal.aborted) {
            const recording = new Blob(this.#chunks);
            if (recording.size > live.sent) {
                if (!(await this.#persist(() => append(live, recording, false, this.#hung.signal)))) break;
                if (live.event) this.state.value = "on";
            } else {
                await new Promise<void>((resolve) => (this.#wake = resolve));
            }
        }
        await told;
    }

    async #describe(): Promise<Live> {
        const type = liveType()!;
        const mimetype = type.split(";")[0];
        const content = {
            msgtype: "m.audio",
            body: `Voice message.${mimetype === "audio/webm" ? "webm" : "m4a"}`,
            url: await takePlace(),
            info: { mimetype },
            "org.matrix.msc1767.audio": {},
            "org.matrix.msc3245.voice": {},
            "m.mentions": {},
            ...this.relation,
            [marker]: {},
        };
        return { room: this.room.roomId, url: content.url, transaction: me().makeTxnId(), content, type, sent: 0 };
    }

    /** Tries until it works; false if it never will, or the speech is over. */
    async #persist(what: () => Promise<unknown>): Promise<boolean> {
        for (let pause = 250; !this.#over.signal.aborted && this.state.value !== "off"; pause = Math.min(2 * pause, 4000)) {
            try {
                await what();
                return true;
            } catch (error: any) {
                if (this.#over.signal.aborted) return false;
                console.warn("live voice", error);
                if (!passing(error)) {
                    this.full.value = error?.httpStatus === 413;
                    this.problem = problem(error);
                    this.state.value = "off";
                    return false;
                }
                this.state.value = "interrupted";
                const wait = (retryAfter(error) ?? 0) * 1000 || pause;
                await new Promise<void>((resolve) => {
                    setTimeout(resolve, wait);
                    this.#over.signal.addEventListener("abort", () => resolve(), { once: true });
                    window.addEventListener("online", () => resolve(), { once: true });
                });
            }
        }
        return false;
    }

    /** Ends it here; what is under way to the server gets there or is given up. The rest is for finishLive or takeBack. */
    async stop(): Promise<void> {
        clearTimeout(this.#timer);
        this.#over.abort();
        this.#tell(); // which nobody does now
        this.#wake();
        const giveUp = setTimeout(() => this.#hung.abort(), 1500);
        await Promise.race([this.#running, new Promise((resolve) => setTimeout(resolve, 2000))]);
        clearTimeout(giveUp);
    }

    /** Nothing more is said of it here. */
    leave(): void {
        if (speaking.value === this) speaking.value = null;
        if (this.state.value !== "off") prepareLive(); // where there is one there is often another
    }
}
