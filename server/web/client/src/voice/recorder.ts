import { signal } from "@preact/signals";

/** A finished recording. */
export interface Recording {
    blob: Blob;
    /** Milliseconds. */
    duration: number;
    /** 100 values, 0 to 1024. */
    waveform: number[];
}

const types = ["audio/ogg;codecs=opus", "audio/webm;codecs=opus", "audio/mp4;codecs=opus", "audio/mp4"];
/** While it is being recorded, browsers play WebM and MP4 as it comes, but no Ogg. */
const liveTypes = types.slice(1);

/** What this browser records for others to hear meanwhile, if it can. */
export function liveType(): string | undefined {
    return liveTypes.find((type) => MediaRecorder.isTypeSupported(type));
}

/** How often a part of what others hear meanwhile is given away. Milliseconds. */
const liveSlice = 200;
/** The first parts come in between as well: until a listener's browser has that much, it waits. Milliseconds after the beginning. */
const earlyParts = [100, 300, 500];

/** How long the microphone is kept open after a recording, so that the next one starts at once. Milliseconds. */
const keepWarm = 30_000;

/**
 * Records voice. The microphone is opened when the pointer comes near the button, so that recording begins with the
 * press and not a second later.
 */
export class Recorder {
    /** Loudness now, 0 to 1. */
    readonly level = signal(0);
    /** Whether what is said now is recorded. Until the microphone is open it is not. */
    readonly running = signal(false);
    /** Milliseconds recorded so far. */
    readonly elapsed = signal(0);

    #stream: Promise<MediaStream> | undefined;
    #context: AudioContext | undefined;
    #analyser: AnalyserNode | undefined;
    #recorder: MediaRecorder | undefined;
    #chunks: Blob[] = [];
    #onChunk: ((chunk: Blob) => void) | undefined;
    #levels: number[] = [];
    #started = 0;
    #ticker = 0;
    #cooling = 0;
    #early: number[] = [];

    /** Opens the microphone, which may ask the person for permission. */
    async prepare(): Promise<void> {
        clearTimeout(this.#cooling);
        this.#stream ??= this.#open();
        try {
            await this.#stream;
        } catch (error) {
            this.#stream = undefined;
            throw error;
        }
        this.#cool();
    }

    /** Opens the microphone if that asks nobody anything. */
    async prepareIfAllowed(): Promise<void> {
        try {
            const permission = await navigator.permissions.query({ name: "microphone" as PermissionName });
            if (permission.state === "granted") await this.prepare();
        } catch {
            // The press itself will tell.
        }
    }

    async #open(): Promise<MediaStream> {
        const stream = await navigator.mediaDevices.getUserMedia({
            audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
        });
        this.#context = new AudioContext();
        this.#analyser = this.#context.createAnalyser();
        this.#analyser.fftSize = 1024;
        this.#context.createMediaStreamSource(stream).connect(this.#analyser);
        return stream;
    }

    /** Begins to record. With onChunk the parts of the recording are given away as they come, a few each second. */
    async start(onChunk?: (chunk: Blob) => void): Promise<void> {
        await this.prepare();
        clearTimeout(this.#cooling);
        const stream = await this.#stream!;
        void this.#context!.resume(); // only the level waits for it
        this.#chunks = [];
        this.#levels = [];
        this.elapsed.value = 0;
        const mimeType = onChunk ? liveType() : types.find((type) => MediaRecorder.isTypeSupported(type));
        this.#onChunk = onChunk;
        this.#recorder = new MediaRecorder(stream, { mimeType, audioBitsPerSecond: 24_000 });
        this.#recorder.ondataavailable = ({ data }) => {
            this.#chunks.push(data);
            this.#onChunk?.(data);
        };
        this.#recorder.start(onChunk ? liveSlice : 250);
        const recorder = this.#recorder;
        if (onChunk) this.#early = earlyParts.map((after) => window.setTimeout(() => recorder.state === "recording" && recorder.requestData(), after));
        this.#started = performance.now();
        this.running.value = true;
        this.#ticker = window.setInterval(() => this.#measure(), 50);
    }

    #measure(): void {
        const samples = new Float32Array(this.#analyser!.fftSize);
        this.#analyser!.getFloatTimeDomainData(samples);
        let sum = 0;
        for (const s of samples) sum += s * s;
        const decibels = 10 * Math.log10(sum / samples.length + 1e-10);
        this.level.value = Math.min(1, Math.max(0, (decibels + 50) / 50));
        this.#levels.push(this.level.value);
        this.elapsed.value = performance.now() - this.#started;
    }

    /** Ends the recording and gives it. */
    async stop(): Promise<Recording> {
        const recorder = this.#recorder;
        if (!recorder) throw new Error("not recording");
        const duration = Math.round(performance.now() - this.#started);
        await this.#end(recorder);
        return { blob: new Blob(this.#chunks, { type: recorder.mimeType.split(";")[0] }), duration, waveform: waveform(this.#levels) };
    }

    /** Ends the recording and throws it away. */
    async cancel(): Promise<void> {
        this.#onChunk = undefined;
        if (this.#recorder) await this.#end(this.#recorder);
        this.#chunks = [];
    }

    #end(recorder: MediaRecorder): Promise<void> {
        clearInterval(this.#ticker);
        this.#early.forEach(clearTimeout);
        this.level.value = 0;
        this.running.value = false;
        this.#recorder = undefined;
        this.#cool();
        if (recorder.state === "inactive") return Promise.resolve();
        return new Promise((resolve) => {
            recorder.onstop = () => resolve();
            recorder.stop();
        });
    }

    #cool(): void {
        clearTimeout(this.#cooling);
        this.#cooling = window.setTimeout(() => void this.#close(), keepWarm);
    }

    async #close(): Promise<void> {
        if (this.#recorder || !this.#stream) return;
        const stream = await this.#stream;
        this.#stream = undefined;
        for (const track of stream.getTracks()) track.stop();
        await this.#context?.close();
        this.#context = undefined;
    }
}

/** 100 values from however many levels there are: the loudest of each hundredth. */
export function waveform(levels: number[]): number[] {
    return Array.from({ length: 100 }, (_, i) => {
        const from = Math.floor((i * levels.length) / 100);
        const to = Math.max(from + 1, Math.floor(((i + 1) * levels.length) / 100));
        return Math.round(1024 * Math.max(0, ...levels.slice(from, to)));
    });
}
