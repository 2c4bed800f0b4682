import { ClientEvent, Method, type MatrixClient, type MatrixEvent } from "matrix-js-sdk";
import { me, revision } from "../matrix/session";

/** What was said in a voice message, as text. docs/voice.md */
export interface Transcript {
    text: string;
    language?: string;
    /** The sender has put it right. */
    corrected?: boolean;
}

const prefix = "/_matrix/client/unstable/im.parley.voice";
/** How long the server may hold a request while a transcript is made. Milliseconds. */
const patience = 30_000;

/** The transcripts of voice messages: what events carry, and what came after them. */
class Transcripts {
    /** null: there is none and none is coming. */
    #known = new Map<string, Transcript | null>();
    #pending = new Set<string>();
    #queue: MatrixEvent[] = [];
    #asking = 0;

    /** Takes what comes in /sync, later than its message. */
    watch(client: MatrixClient): void {
        client.on(ClientEvent.Event, (event: MatrixEvent) => {
            if (event.getType() !== "im.parley.voice.transcript") return;
            for (const [id, transcript] of Object.entries(event.getContent())) {
                const { text, corrected } = transcript as Transcript;
                this.#learn(id, text || !corrected ? (transcript as Transcript) : null);
            }
        });
    }

    /** What is known; undefined if there is none. */
    of(event: MatrixEvent): Transcript | undefined {
        const known = this.#known.get(event.getId() ?? "");
        if (known !== undefined) return known ?? undefined;
        return (event.getUnsigned() as Record<string, any>)["im.parley.voice"]?.transcript;
    }

    /** Whether one is being made now. */
    isPending(event: MatrixEvent): boolean {
        return this.#pending.has(event.getId() ?? "");
    }

    /** Sees to it that a message's transcript becomes known, if it will have one. */
    want(event: MatrixEvent): void {
        const id = event.getId();
        if (!id || event.status || event.getContent().file || event.isEncrypted() || this.#known.has(id) || this.of(event)) return;
        if (this.#queue.some((other) => other.getId() === id)) return;
        this.#queue.push(event);
        this.#next();
    }

    #next(): void {
        // A few at a time: most are there or are not, but one being made holds its request.
        while (this.#asking < 3 && this.#queue.length > 0) {
            this.#asking++;
            void this.#ask(this.#queue.shift()!).finally(() => {
                this.#asking--;
                this.#next();
            });
        }
    }

    async #ask(event: MatrixEvent): Promise<void> {
        const id = event.getId()!;
        for (let timeout = 0; ; timeout = patience) {
            try {
                const query = { timeout: String(timeout) };
                const answer = await me().http.authedRequest<Transcript & { pending?: boolean }>(Method.Get, path(event), query, undefined, { prefix, localTimeoutMs: 2 * patience });
                if (!answer.pending) {
                    this.#learn(id, answer);
                    return;
                }
                if (!this.#pending.has(id)) {
                    this.#pending.add(id);
                    revision.value++;
                }
            } catch (error: any) {
                if (error.httpStatus === 404) this.#learn(id, null);
                else console.warn("the transcript is not known", error);
                this.#pending.delete(id);
                return;
            }
        }
    }

    #learn(id: string, transcript: Transcript | null): void {
        this.#known.set(id, transcript);
        this.#pending.delete(id);
        revision.value++;
    }

    /** Puts one's own message's transcript right; an empty text takes it away. */
    async correct(event: MatrixEvent, text: string): Promise<void> {
        const language = this.of(event)?.language;
        await me().http.authedRequest(Method.Put, path(event), undefined, { text, ...(language ? { language } : {}) }, { prefix });
        this.#learn(event.getId()!, text ? { text, language, corrected: true } : null);
    }
}

function path(event: MatrixEvent): string {
    return `/rooms/${encodeURIComponent(event.getRoomId()!)}/transcript/${encodeURIComponent(event.getId()!)}`;
}

export const transcripts = new Transcripts();
