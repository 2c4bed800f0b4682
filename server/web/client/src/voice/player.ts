import { signal } from "@preact/signals";
import type { MatrixEvent } from "matrix-js-sdk";
import { download, mediaLink } from "../matrix/attachments";
import { me } from "../matrix/session";
import { played } from "./played";

export const speeds = [1, 1.5, 2, 0.5];
const speedKey = "parley.speed";

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
    readonly speed = signal(Number(localStorage.getItem(speedKey)) || 1);

    #audio = new Audio();
    #url: string | undefined;
    /** What follows when a message ends. */
    #next: (event: MatrixEvent) => MatrixEvent | undefined = () => undefined;
    #ticker = 0;

    constructor() {
        this.#audio.preload = "metadata"; // of a long message, only what is played is fetched
        this.#audio.addEventListener("ended", () => this.#ended());
        this.#audio.addEventListener("pause", () => this.#stopped());
        this.#audio.addEventListener("playing", () => {
            this.playing.value = true;
            cancelAnimationFrame(this.#ticker);
            this.#tick();
        });
    }

    #tick(): void {
        this.position.value = this.#audio.currentTime * 1000;
        if (this.playing.value) this.#ticker = requestAnimationFrame(() => this.#tick());
    }

    #stopped(): void {
        this.playing.value = false;
        const event = this.current.value;
        if (event && !this.#audio.ended) played.setPosition(event, this.#audio.currentTime * 1000);
    }

    #ended(): void {
        const event = this.current.value;
        if (!event) return;
        this.playing.value = false;
        played.markPlayed(event);
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
        await this.#open(event);
        this.loading.value = false;
    }

    /**
     * Opens a recording: by a link, of which the browser fetches the parts that it plays; from memory if it is encrypted or the
     * browser cannot play what the link leads to.
     */
    async #open(event: MatrixEvent): Promise<void> {
        const content = event.getContent();
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

    /** Makes the audio element play from an address, and waits until it knows what it has there. */
    async #source(event: MatrixEvent, url: string): Promise<void> {
        if (this.current.value !== event) throw new DOMException("another message was chosen", "AbortError");
        if (this.#url) URL.revokeObjectURL(this.#url);
        this.#url = undefined;
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
        this.#audio.currentTime = position / 1000;
        this.position.value = position;
    }

    nextSpeed(): void {
        this.speed.value = speeds[(speeds.indexOf(this.speed.value) + 1) % speeds.length];
        localStorage.setItem(speedKey, String(this.speed.value));
        this.#audio.playbackRate = this.speed.value;
    }
}

export const player = new Player();
