/** A browser on a phone may have only the kind that manages its memory itself. */
const Source: typeof MediaSource | undefined = (globalThis as any).ManagedMediaSource ?? globalThis.MediaSource;

/** So often a connection that breaks is made anew before one gives up. */
const attempts = 8;

/** What this browser can play while it comes, for what the server says a recording is; undefined if it cannot. */
export function streamable(type: string): string | undefined {
    const [container] = type.split(";");
    return [type, `${container}; codecs="opus"`, `${container}; codecs="mp4a.40.2"`].find((t) => t.includes("codecs") && Source?.isTypeSupported(t));
}

/**
 * A recording that is still growing, played as it comes. An audio element that is given the address alone waits for its buffer to be full,
 * which is ten seconds of speech.
 */
export class Stream {
    /** What the audio element plays. */
    readonly url: string;
    #source = new Source!();
    #closed = new AbortController();
    /** The bytes that have come. */
    #received = 0;
    #opened = new Promise<void>((resolve) => this.#source.addEventListener("sourceopen", () => resolve(), { once: true }));
    #buffer: SourceBuffer | undefined;

    /** Asks at once, and again if the connection breaks. Failed is told if there is no going on. */
    constructor(
        readonly ask: (signal: AbortSignal) => Promise<Response>,
        readonly type: string,
        failed: (error: unknown) => void,
    ) {
        this.url = URL.createObjectURL(this.#source);
        const broken = (error: unknown): void => {
            if (this.#closed.signal.aborted) return;
            if (this.#source.readyState === "open") this.#source.endOfStream("network");
            failed(error);
        };
        void this.#run().catch(broken);
    }

    close(): void {
        this.#closed.abort();
        URL.revokeObjectURL(this.url);
    }

    async #run(): Promise<void> {
        for (let failures = 0; ; ) {
            const before = this.#received;
            try {
                await this.#fetch();
                break;
            } catch (error: any) {
                if (this.#received > before) failures = 0;
                if (this.#closed.signal.aborted || error?.httpStatus === 404 || ++failures >= attempts) throw error;
                await new Promise((resolve) => setTimeout(resolve, Math.min(4000, 250 * 2 ** failures)));
            }
        }
        this.#source.endOfStream();
    }

    /** Reads the recording to its end. While it grows the server knows no ranges, so what has come before is passed over. */
    async #fetch(): Promise<void> {
        const [answer] = await Promise.all([this.ask(this.#closed.signal), this.#opened]);
        const buffer = (this.#buffer ??= this.#source.addSourceBuffer(this.type));
        let skip = this.#received;
        const reader = answer.body!.getReader();
        for (;;) {
            const { done, value } = await reader.read();
            if (done) return;
            const fresh = value.subarray(Math.min(skip, value.length));
            skip -= value.length - fresh.length;
            if (fresh.length === 0) continue;
            this.#received += fresh.length;
            await new Promise<void>((resolve, reject) => {
                buffer.onupdateend = () => resolve();
                buffer.onerror = () => reject(new Error("what came cannot be played"));
                buffer.appendBuffer(fresh);
            });
        }
    }
}
