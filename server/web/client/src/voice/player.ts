import { signal } from "@preact/signals";
import { RoomEvent, type MatrixClient, type MatrixEvent } from "matrix-js-sdk";
import { download, mediaLink, request } from "../matrix/attachments";
import { me } from "../matrix/session";
import { isLive } from "./live";
import { played } from "./played";
import { Stream, streamable } from "./stream";

export const speeds = [1, 1.5, 2, 0.5];
const speedKey = "parley.speed";
/** Faster than it is spoken one can only play what is further behind than this. Seconds. */
const nearEnd = 0.7;

/** The container in which this browser plays Opus; first the one that has an index, with which a jump costs one request. */
function playable(): string | undefined {
    return ["mp4", "ogg", "webm"].find((container) => document.createElement("audio").canPlayType(`audio/${container}; codecs=opus`));
}

/** Plays one voice message at a time, remembers where one stopped, and goes on to the next that was not played. */
class Player {
    /** The message that is playing or paused. */
    readonly current = signal<MatrixEvent | null>(null);
    readonly playing = signal(false);
    readonly loading = signal(false);
    readonly failed = signal<string | null>(null);
    /** Milliseconds. */
    readonly position = signal(0);
    /** How much there is of a message that is still being spoken. Milliseconds. */
    readonly available = signal(0);
    readonly speed = signal(Number(localStorage.getItem(speedKey)) || 1);

    #audio = new Audio();
    #url: string | undefined;
    #stream: Stream | undefined;
    /** What follows when a message ends. */
    #next: (event: MatrixEvent) => MatrixEvent | undefined = () => undefined;
    #ticker = 0;

    constructor() {
        this.#audio.preload = "metadata"; // of a long message, only what is played is fetched
        this.#audio.addEventListener("ended", () => this.#ended());
        this.#audio.addEventListener("pause", () => this.#stopped());
        this.#audio.addEventListener("progress", () => this.#measure());
        this.#audio.addEventListener("playing", () => {
            this.playing.value = true;
            this.loading.value = false;
            cancelAnimationFrame(this.#ticker);
            this.#tick();
        });
    }

    /** Stops with a message that is deleted, or taken back while it is spoken. */
    watch(client: MatrixClient): void {
        client.on(RoomEvent.Redaction, (redaction: MatrixEvent) => {
            const id = redaction.event.redacts ?? redaction.getContent().redacts;
            if (!id || this.current.value?.getId() !== id) return;
            this.#audio.pause();
            this.#close();
            this.#ended();
        });
    }

    /** Sees how much has come of what is spoken now, and does not run ahead of it. */
    #measure(): void {
        if (!this.#stream) return;
        const { buffered, currentTime } = this.#audio;
        const end = buffered.length ? buffered.end(buffered.length - 1) : 0;
        this.available.value = end * 1000;
        const live = this.current.value && isLive(this.current.value);
        this.#audio.playbackRate = live && end - currentTime < nearEnd ? Math.min(1, this.speed.value) : this.speed.value;
    }

    #tick(): void {
        this.#measure();
        this.position.value = this.#audio.currentTime * 1000;
        if (this.playing.value) this.#ticker = requestAnimationFrame(() => this.#tick());
    }

    #stopped(): void {
        this.playing.value = false;
        const event = this.current.value;
        if (event && !this.#audio.ended && !event.isRedacted()) played.setPosition(event, this.#audio.currentTime * 1000);
    }

    #ended(): void {
        const event = this.current.value;
        if (!event) return;
        this.playing.value = false;
        if (!event.isRedacted()) played.markPlayed(event);
        const next = this.#next(event);
        if (next) void this.play(next, this.#next);
        else this.current.value = null;
    }

    /** Plays a message from where it was left; next tells what follows it. */
    async play(event: MatrixEvent, next: (event: MatrixEvent) => MatrixEvent | undefined = () => undefined): Promise<void> {
        this.#next = next;
        try {
            if (this.current.value?.getId() !== event.getId() || this.failed.value === event.getId()) await this.#load(event);
            this.#audio.playbackRate = this.speed.value;
            this.loading.value = this.#audio.readyState < HTMLMediaElement.HAVE_FUTURE_DATA;
            await this.#audio.play();
            played.markPlayed(event);
        } catch (error) {
            this.loading.value = false;
            this.playing.value = false;
            if ((error as Error).name !== "AbortError") this.failed.value = event.getId() ?? null;
        }
    }

    async #load(event: MatrixEvent): Promise<void> {
        this.#audio.pause();
        this.current.value = event;
        this.failed.value = null;
        this.loading.value = true;
        this.position.value = played.position(event);
        this.available.value = 0;
        await this.#open(event);
    }

    /**
     * Opens a recording: by a link, of which the browser fetches the parts that it plays; from memory if it is encrypted or the
     * browser cannot play what the link leads to.
     */
    async #open(event: MatrixEvent): Promise<void> {
        const content = event.getContent();
        this.#close();
        const type = isLive(event) && streamable(String(content.info?.mimetype));
        if (type) {
            const stream = new Stream((signal) => request(me(), content.url, { signal, cache: "no-store" }), type, (error) => {
                console.warn("a live message broke off", error);
                if (this.current.value !== event) return;
                this.#audio.pause();
                this.failed.value = event.getId() ?? null;
            });
            this.#stream = stream;
            this.#audio.disableRemotePlayback = true; // Safari plays what is still coming only so
            this.#audio.src = stream.url; // nothing of it needs to be known before it plays
            if (this.position.value > 0) this.#audio.currentTime = this.position.value / 1000;
            return;
        }
        for (const container of content.file ? [] : [playable(), undefined]) {
            try {
                await this.#source(event, await mediaLink(me(), content.url, container));
                return;
            } catch (error) {
                if (this.current.value !== event) throw error;
            }
        }
        const blob = await download(me(), content, content.info?.mimetype ?? "audio/ogg");
        const url = URL.createObjectURL(blob);
        await this.#source(event, url);
        this.#url = url;
    }

    /** Lets go of what was played before. */
    #close(): void {
        this.#stream?.close();
        this.#stream = undefined;
        if (this.#url) URL.revokeObjectURL(this.#url);
        this.#url = undefined;
    }

    /** Makes the audio element play from an address, and waits until it knows what it has there. */
    async #source(event: MatrixEvent, url: string): Promise<void> {
        if (this.current.value !== event) throw new DOMException("another message was chosen", "AbortError");
        const known = new Promise<void>((resolve, reject) => {
            this.#audio.onloadedmetadata = () => resolve();
            this.#audio.onerror = () => reject(new Error(this.#audio.error?.message ?? "cannot be played"));
        });
        this.#audio.src = url;
        this.#audio.currentTime = this.position.value / 1000;
        await known.finally(() => (this.#audio.onloadedmetadata = this.#audio.onerror = null));
    }

    pause(): void {
        this.#audio.pause();
    }

    /** Goes to a position, in milliseconds; loads the message first if need be. */
    async seek(event: MatrixEvent, position: number): Promise<void> {
        if (this.current.value?.getId() !== event.getId()) {
            played.setPosition(event, position);
            return;
        }
        const to = this.#stream ? Math.min(position, this.available.value) : position;
        this.#audio.currentTime = to / 1000;
        this.position.value = to;
    }

    nextSpeed(): void {
        this.speed.value = speeds[(speeds.indexOf(this.speed.value) + 1) % speeds.length];
        localStorage.setItem(speedKey, String(this.speed.value));
        this.#audio.playbackRate = this.speed.value;
    }
}

export const player = new Player();
